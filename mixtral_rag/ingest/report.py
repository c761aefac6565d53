"""What an ingest did, and how far it is."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mixtral_rag.ingest.readers import LOST
from mixtral_rag.store.ledger import Document


@dataclass(slots=True)
class IngestReport:
    """What an ingest did, file by file.

    Args:
        added: documents that were not in the store.
        updated: documents whose content changed, or that were read another way than before.
        moved: documents whose file has another name now, with the old one.
        unchanged: documents that needed nothing.
        removed: documents whose file is gone, with `prune`.
        failed: files that could not be read, with the reason.
        still_failed: the same for files that failed before and have not changed since; they were
            not tried again.
        passed_over: how many files in folders are of formats that no reader takes, by suffix;
            `discover.NO_SUFFIX` for those without.
        lost_pages: numbers of the pages whose text is not in the store, by document and by what is
            wrong with them.
        problems: parts of documents that could not be read.
        n_passages: passages of the documents that were read.
        n_pages: pages of these.
        n_embedded: passages that had to be embedded.
        seconds: what all took.
        embed_seconds: what the embedder took of that.
    """

    added: list[Path] = field(default_factory=list)
    updated: list[Path] = field(default_factory=list)
    moved: dict[Path, Path] = field(default_factory=dict)
    unchanged: list[Path] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    still_failed: dict[Path, str] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    lost_pages: dict[Path, dict[str, list[int]]] = field(default_factory=dict)
    problems: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    n_passages: int = 0
    n_pages: int = 0
    n_embedded: int = 0
    seconds: float = 0.0
    embed_seconds: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether all text of all files is in the store."""
        return not (self.failed or self.still_failed or self.lost_pages or self.problems)

    def note_losses(self, documents: Iterable[Document]) -> None:
        """Take over what the ledger knows of lost pages and parts."""
        for document in documents:
            lost = {str(s): list(document.pages[s]) for s in LOST if s in document.pages}
            if lost:
                self.lost_pages[document.path] = lost
            if document.problems:
                self.problems[document.path] = document.problems


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ingest is.

    `done` grows from 0 to 1 with the bytes of the files that had to be read, so that time left can
    be told from it, also when an earlier ingest did a part. `path` is the file at hand.
    """

    path: Path | None
    n_files_done: int
    n_files: int
    n_pages: int
    n_passages: int
    done: float
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """An estimate from what the work so far took; None at the beginning."""
        if self.done < 0.01 or self.seconds < 1:
            return None
        return self.seconds * (1 - self.done) / self.done
