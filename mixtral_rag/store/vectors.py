"""The vector index: an embedded Chroma collection of passage keys and vectors, and nothing else.

Embedded Chroma can be left unreadable by a kill during a write, so its folder is disposable; see
`mixtral_rag.store.index`. The only importer of chromadb.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixtral_rag.embeddings import Vectors
from mixtral_rag.errors import MixtralRagError

_COLLECTION = "passages"
# With Chroma's default of 16 neighbours one build in three of 1,300 vectors had a passage that no
# search reached, even by its own vector; with 32 none of 48 had.
_HNSW = {"space": "cosine", "max_neighbors": 32, "ef_construction": 200, "ef_search": 200}
_BATCH = 5_000  # Chroma refuses more than 5,461 records a call


class IndexDamagedError(MixtralRagError):
    """The index cannot be used (the text says why) and must be made anew from the ledger."""


class VectorIndex:
    """A Chroma collection in `folder`, compared by cosine, opened on first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._client: Any = None
        self._opened: Any = None

    def upsert(self, keys: Sequence[str], vectors: Vectors) -> None:
        """Add passages or replace those with the same keys."""
        for start in range(0, len(keys), _BATCH):
            part = slice(start, start + _BATCH)
            self._call("upsert", ids=list(keys[part]), embeddings=vectors[part])

    def delete(self, keys: Sequence[str]) -> None:
        """Remove passages; unknown keys are ignored."""
        for start in range(0, len(keys), _BATCH):
            self._call("delete", ids=list(keys[start : start + _BATCH]))

    def count(self) -> int:
        """Number of passages."""
        return int(self._call("count"))

    def held(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that it holds."""
        return list(self._call("get", ids=list(keys), include=[])["ids"]) if keys else []

    def vectors(self, keys: Sequence[str]) -> dict[str, Vectors]:
        """The vectors that are held for some passages."""
        found = self._call("get", ids=list(keys), include=["embeddings"])
        return dict(zip(found["ids"], np.asarray(found["embeddings"], np.float32), strict=True))

    def query(self, vector: Vectors, k: int) -> list[tuple[str, float]]:
        """The `k` nearest passages to one row, best first, with their cosines."""
        found = self._call("query", query_embeddings=vector[:1], n_results=k, include=["distances"])
        return [
            (key, 1.0 - float(distance))
            for key, distance in zip(found["ids"][0], found["distances"][0], strict=True)
        ]

    def close(self) -> None:
        """Close its files; it opens again on the next use, and then sees what others wrote."""
        if self._client is not None:
            self._client.close()
        self._client = self._opened = None

    def _call(self, name: str, **arguments: Any) -> Any:
        try:
            return getattr(self._collection(), name)(**arguments)
        except (KeyboardInterrupt, SystemExit, MemoryError, ImportError):
            raise
        except BaseException as error:
            # among them panics of its Rust part, which are not `Exception`s
            raise IndexDamagedError(f"failed: {_first_line(error)}") from error

    def _collection(self) -> Any:
        if self._opened is None:
            import chromadb
            from chromadb.config import Settings

            self._client = chromadb.PersistentClient(
                path=str(self.folder), settings=Settings(anonymized_telemetry=False)
            )
            self._opened = self._client.get_or_create_collection(
                _COLLECTION,
                embedding_function=None,
                configuration={"hnsw": _HNSW},
            )
        return self._opened


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
