"""Documents that a program hands over: LangChain's `Document`s, from a loader or made by hand."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.changes import Recipe
from mixtral_rag.ingest.readers import Block
from mixtral_rag.ingest.reading import Job, with_headings
from mixtral_rag.ingest.split import split
from mixtral_rag.store.ledger import Document, Failure

_TAKEN_OVER = frozenset({"source", "page", "title", "section"})


class Given:
    """A job for each source among `documents`, as `Reading` gives for files.

    Neighbours with the same `source` in their metadata are one document; `page` (counted from 0, as
    LangChain's loaders do), `title` and `section` are taken over too, and the rest of the first
    one's metadata is kept.
    """

    def __init__(
        self,
        documents: Iterable[Any],
        recipe: Recipe,
        count: Callable[[str], int],
        known: Mapping[Path, Document],
    ) -> None:
        self._documents, self._recipe, self._count = documents, recipe, count
        self._known = known

    def stored(self, job: Job) -> None:
        """Nothing is read ahead here."""

    def __iter__(self) -> Iterator[Job]:
        for source, parts in groupby(self._documents, key=_source):
            yield self._job(Path(source), list(parts))

    def _job(self, path: Path, parts: list[Any]) -> Job:
        blocks = [Block(p.page_content, _page(p.metadata), _section(p.metadata)) for p in parts]
        text = "\x1e".join(f"{b.page}\x1f{b.section}\x1f{b.text}" for b in blocks)
        metadata = {k: v for k, v in parts[0].metadata.items() if k not in _TAKEN_OVER}
        text += json.dumps(metadata, default=str)
        sha256 = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        known = self._known.get(path)
        job = Job(path, size=len(text))
        if known and known.sha256 == sha256 and self._recipe.is_of(known):
            job.is_same = True
            job.mtime_ns = known.mtime_ns
            return job
        job.windows = split(blocks, self._count, max_tokens=self._recipe.window_tokens)
        if not job.windows:
            job.failure = Failure(str(UnreadableError(f"{path} holds no text")))
            return job
        title = str(parts[0].metadata.get("title") or "")
        job.texts = [with_headings(title, w) for w in job.windows]
        pages = {b.page for b in blocks if b.page is not None}
        job.document = Document(
            path,
            title=title,
            sha256=sha256,
            recipe=str(self._recipe),
            size=job.size,
            n_pages=len(pages) or None,
            is_file=False,
            metadata=metadata,
        )
        return job


def _source(document: Any) -> str:
    source = document.metadata.get("source")
    if source:
        return str(source)
    text = document.page_content.encode("utf-8", "replace")
    return f"text-{hashlib.sha256(text).hexdigest()[:12]}"


def _page(metadata: Mapping[str, Any]) -> int | None:
    page = metadata.get("page")
    return page + 1 if isinstance(page, int) else None


def _section(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    section = metadata.get("section") or ()
    return (section,) if isinstance(section, str) else tuple(map(str, section))
