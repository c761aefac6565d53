"""Which files have to be read: those that are new, have changed, or are to be read another way."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from mixtral_rag.ingest.readers import LOST
from mixtral_rag.ingest.report import IngestReport
from mixtral_rag.store.ledger import Document, Failure

_READERS = 2  # grows when readers or windows change so that documents should be read again


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may have to be read, as it is on the disk now."""

    path: Path
    size: int
    mtime_ns: int
    known: Document | None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How documents are read: what stands in the ledger beside each."""

    window_tokens: int
    ocr: str | None = None

    def __str__(self) -> str:
        return f"{self._base};ocr={self.ocr or ''}"

    @property
    def _base(self) -> str:
        return f"readers={_READERS};window={self.window_tokens}"

    def is_of(self, document: Document) -> bool:
        """Whether reading the same content again would give nothing new."""
        base, _, ocr = document.recipe.partition(";ocr=")
        if base != self._base:
            return False
        return self.ocr in (None, ocr) or not any(state in document.pages for state in LOST)

    def failed_with(self, failure: Failure) -> bool:
        """Whether the failure came of the same way of reading."""
        base, _, ocr = failure.recipe.partition(";ocr=")
        return base == self._base and self.ocr in (None, ocr)


def candidates(
    files: Sequence[Path],
    known: Mapping[Path, Document],
    recipe: Recipe,
    report: IngestReport,
    *,
    retry_failed: bool,
) -> list[Candidate]:
    """The files whose content must at least be looked at; the others go into `report`.

    A file with the size and time that the ledger has costs one look at these.
    """
    found = []
    for path in files:
        document = known.get(path)
        try:
            stat = path.stat()
        except OSError as error:
            report.failed[path] = f"cannot read {path}: {error.strerror}"
            continue
        if not S_ISREG(stat.st_mode):
            report.failed[path] = f"{path} is not a regular file"
            continue
        now = Candidate(path, stat.st_size, stat.st_mtime_ns, document)
        if document and document.failure and not retry_failed:
            if _failed_as_it_is(now, document.failure, recipe):
                report.still_failed[path] = document.failure.reason
                continue
        elif document and not document.failure and _is_stored(now, document, recipe):
            report.unchanged.append(path)
            continue
        found.append(now)
    return found


def _failed_as_it_is(now: Candidate, failure: Failure, recipe: Recipe) -> bool:
    same = (now.size, now.mtime_ns) == (failure.size, failure.mtime_ns)
    return same and failure.sha256 != "" and recipe.failed_with(failure)


def _is_stored(now: Candidate, document: Document, recipe: Recipe) -> bool:
    same = (now.size, now.mtime_ns) == (document.size, document.mtime_ns)
    return same and recipe.is_of(document)


def gone(
    paths: Iterable[Path], known: Mapping[Path, Document], found: Iterable[Path]
) -> list[Path]:
    """Ingested files at or under `paths` that are no longer there."""
    roots = [Path(os.path.abspath(p.expanduser())) for p in paths]
    here = set(found)
    return [
        path
        for path, document in known.items()
        if document.is_file
        and path not in here
        and any(root == path or root in path.parents for root in roots)
        and not os.path.lexists(path)
    ]
