"""A folder of documents that changes between ingests, and an embedder that costs nothing."""

import os
import random
import shutil
import tempfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from mixtral_rag.ingest.changes import Recipe
from mixtral_rag.ingest.pipeline import _window_tokens
from mixtral_rag.ingest.readers import ReadOptions, read
from mixtral_rag.ingest.split import split

_WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("ara", "eno", "ilu") for c in "mnrstx"]
_DIMENSIONS = 256


class QuickEmbedder:
    """Embeds by hashed words, in small batches so that there are many commits."""

    fingerprint = "quick:1:256"
    max_tokens = 512
    relevant = 0.2
    batch = 8

    def count(self, text):
        return max(1, len(text) // 2)

    def passages(self, texts):
        return np.stack([self._vector(t) for t in texts])

    def query(self, text):
        return self.passages([text])

    def _vector(self, text):
        vector = np.full(_DIMENSIONS, 1e-3, np.float32)
        np.add.at(vector, [_place(word) for word in text.split()], 1)
        return vector / np.linalg.norm(vector)


@lru_cache(100_000)
def _place(word):
    return zlib.crc32(word.encode()) % _DIMENSIONS


def passages_of(text):
    """The texts of the passages that a text file with `text` has when it is ingested alone."""
    return _passages_of(text)


@lru_cache(20_000)
def _passages_of(text):
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        blocks = read(Path(file.name), ReadOptions()).blocks
    embedder = QuickEmbedder()
    tokens = Recipe(_window_tokens(embedder)).window_tokens
    return tuple(w.text for w in split(blocks, embedder.count, max_tokens=tokens))


class Corpus:
    """Text files under `folder`, each of some passages, all of whose texts differ.

    `moves` holds the renames of the last `change`, new name by old.
    """

    def __init__(self, folder, n_documents, seed):
        self.folder, self._random = folder, random.Random(seed)
        self._made = 0
        self.texts, self.moves = {}, {}
        folder.mkdir(parents=True)
        for _ in range(n_documents):
            self._add()

    def change(self):
        """Edit, add, delete, rename and copy some documents."""
        self.moves = {}
        names = sorted(self.texts)
        self._random.shuffle(names)
        some = max(1, len(names) // 20)
        for name in names[: 3 * some]:
            self._write(name, self._edited(self.texts[name]))
        for name in names[3 * some : 4 * some]:
            (self.folder / name).unlink()
            del self.texts[name]
        for name in names[4 * some : 5 * some]:
            new = self._new_name()
            os.rename(self.folder / name, self.folder / new)
            self.texts[new] = self.texts.pop(name)
            self.moves[name] = new
        copied = names[-1]
        new = self._new_name()
        shutil.copy(self.folder / copied, self.folder / new)
        self.texts[new] = self.texts[copied]
        for _ in range(some + 1):
            self._add()

    def passages(self):
        """What a store that has followed holds: the passages of each document by its name."""
        return {name: passages_of(text) for name, text in self.texts.items()}

    def _add(self):
        name = self._new_name()
        self._write(name, "\n\n".join(self._paragraph() for _ in range(self._random.randint(2, 9))))

    def _new_name(self):
        self._made += 1
        return f"{self._random.randint(0, 999):03}-{self._made}.txt"

    def _edited(self, text):
        parts = text.split("\n\n")
        parts[self._random.randrange(len(parts))] = self._paragraph()
        if self._random.random() < 0.3:
            parts.insert(self._random.randint(0, len(parts)), self._paragraph())
        return "\n\n".join(parts)

    def _paragraph(self):
        self._made += 1
        return f"Fact {self._made}: " + " ".join(self._random.choices(_WORDS, k=50)) + "."

    def _write(self, name, text):
        (self.folder / name).write_text(text, encoding="utf-8")
        self.texts[name] = text
