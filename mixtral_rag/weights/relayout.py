"""Where each byte of a GGUF in the old expert layout belongs in today's.

With it a download is written in today's layout as it arrives: no second file, no second pass. The
original's bytes can be read back in their order, which is how its checksum is verified.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mixtral_rag.errors import ModelFileError
from mixtral_rag.weights.gguf import GGUFHeader, check_complete, read_header
from mixtral_rag.weights.upgrade import head_of, plan

_CHUNK = 4 << 20
_WIDEST_GAP = 1 << 20  # between tensors, for alignment; usually below 32 bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """The way from an old file to a new one.

    Args:
        old_head, head: everything before the weights, as it was and as it will be.
        moves: (old offset, new offset, size) of each tensor of the old file, in its order.
        old_size, size: bytes of the whole files.
    """

    old_head: bytes = field(repr=False)
    head: bytes = field(repr=False)
    moves: tuple[tuple[int, int, int], ...] = field(repr=False)
    old_size: int
    size: int

    def place(self, at: int, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Pieces of `data`, which stands at `at` in the old file, and where they go.

        What lies between tensors, zeros for alignment, goes nowhere.
        """
        end = at + len(data)
        first = bisect.bisect_right(self.moves, (at, 1 << 63, 0)) - 1
        for old, new, size in self.moves[max(first, 0) :]:
            if old >= end:
                return
            start, stop = max(at, old), min(end, old + size)
            if start < stop:
                yield new + start - old, data[start - at : stop - at]

    def is_headed(self, path: Path) -> bool:
        """Whether the new file begins with its head, and any reader finds its tensors."""
        check_complete(read_header(path))
        with path.open("rb") as file:
            return file.read(len(self.head)) == self.head

    def original(self, file: BinaryIO) -> Iterator[bytes]:
        """The bytes of the old file in their order, read from the new one."""
        yield self.old_head
        at = len(self.old_head)
        for old, new, size in self.moves:
            yield bytes(old - at)
            file.seek(new)
            left = size
            while left and (data := file.read(min(left, _CHUNK))):
                left -= len(data)
                yield data
            at = old + size
        yield bytes(self.old_size - at)


def layout_of(header: GGUFHeader, old_size: int) -> Layout:
    """The layout for an old file of `old_size` bytes, of which `header.path` holds the beginning.

    Raises:
        ModelFileError: it cannot be upgraded; the text says why.
    """
    tensors = plan(header)
    head, offsets = head_of(header, tensors)
    moves = []
    for tensor, offset in zip(tensors, offsets, strict=True):
        at = len(head) + offset
        for part in tensor.parts:
            moves.append((header.data_offset + part.offset, at, part.size or 0))
            at += part.size or 0
    moves.sort()
    end = header.data_offset
    for old, _, size in [*moves, (old_size, 0, 0)]:
        if not 0 <= old - end <= _WIDEST_GAP:
            raise ModelFileError(
                f"{header.path.name} is damaged: its tensors do not lie one after another"
            )
        end = old + size
    with header.path.open("rb") as file:
        old_head = file.read(header.data_offset)
    new_size = len(head) + offsets[-1] + tensors[-1].size
    return Layout(old_head, head, tuple(moves), old_size, new_size)
