"""A vector index in parts, so that building it takes the memory of one part.

Chroma keeps every vector of an open collection in memory, about 2 KB a passage.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mixtral_rag.embeddings import Vectors
from mixtral_rag.store.vectors import VectorIndex

SHARD = 100_000  # passages: a search of 1,000,000 asks ten shards, some milliseconds each


class Shards:
    """Chroma collections in `folder`, filled one after the other.

    Every method raises `IndexDamagedError` where Chroma fails.

    Args:
        folder: where they are, a folder each.
        size: most passages of one.
    """

    def __init__(self, folder: Path, *, size: int | None = None) -> None:
        self.folder, self._size = folder, size or SHARD
        self._listed: list[VectorIndex] | None = None

    def add(self, keys: Sequence[str], vectors: Vectors) -> None:
        """Add passages that no shard holds."""
        shards = self._shards()
        while len(keys):
            room = self._size - shards[-1].count() if shards else 0
            if room <= 0:
                if shards:
                    shards[-1].close()
                shards.append(VectorIndex(self.folder / f"{len(shards):04}"))
                room = self._size
            shards[-1].upsert(keys[:room], vectors[:room])
            keys, vectors = keys[room:], vectors[room:]

    def put(self, keys: Sequence[str], vectors: Vectors) -> None:
        """Add passages, or replace those with the same keys."""
        place = {key: row for row, key in enumerate(keys)}
        for shard in self._in_turn():
            if held := shard.held(list(place)):
                shard.upsert(held, vectors[[place.pop(key) for key in held]])
        if place:
            self.add(list(place), vectors[list(place.values())])

    def delete(self, keys: Sequence[str]) -> None:
        """Remove passages; unknown keys are ignored."""
        if keys:
            for shard in self._in_turn():
                shard.delete(shard.held(keys))

    def count(self) -> int:
        """Number of passages."""
        return sum(shard.count() for shard in self._in_turn())

    def vectors(self, keys: Sequence[str]) -> dict[str, Vectors]:
        """The vectors that are held for some passages."""
        found: dict[str, Vectors] = {}
        for shard in self._shards():
            if left := [key for key in keys if key not in found]:
                found |= shard.vectors(left)
        return found

    def query(self, vector: Vectors, k: int) -> list[tuple[str, float]]:
        """The `k` nearest passages to one row, best first, with their cosines."""
        hits = [hit for shard in self._shards() for hit in shard.query(vector, k)]
        return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k]

    def close(self) -> None:
        """Close its files; it opens again on the next use, and then sees what others wrote."""
        for shard in self._listed or ():
            shard.close()
        self._listed = None

    def _in_turn(self) -> Iterator[VectorIndex]:
        """Each shard, closed again but for the last, which is the one that grows."""
        for shard in (shards := self._shards()):
            yield shard
            if shard is not shards[-1]:
                shard.close()

    def _shards(self) -> list[VectorIndex]:
        if self._listed is None:
            self._listed = [VectorIndex(path) for path in sorted(self.folder.glob("[0-9]*"))]
        return self._listed
