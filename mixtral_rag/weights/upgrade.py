"""Old Mixtral GGUF files made loadable: experts stacked into one tensor a layer, bytes untouched.

Until April 2024 llama.cpp kept each expert in a tensor of its own (`blk.N.ffn_gate.E.weight`).
Since its pull request 6387 it wants one tensor a layer (`blk.N.ffn_gate_exps.weight`) with the
expert as the outermost dimension. That dimension is the slowest in memory, so the new tensor is the
experts' bytes one after another, whatever their quantisation.
"""

import os
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mixtral_rag.errors import ModelFileError
from mixtral_rag.weights.disk import Progress, check_room, made_whole
from mixtral_rag.weights.gguf import (
    GGML_TYPES,
    GGUFHeader,
    TensorInfo,
    check_complete,
    read_header,
    refuse_split,
)

_EXPERT = re.compile(r"^(?P<stem>blk\.\d+\.ffn_(?:gate|down|up))\.(?P<number>\d+)\.weight$")
_CHUNK = 16 << 20  # bytes in memory at a time


@dataclass(frozen=True, slots=True)
class Stacked:
    """A tensor of the new file and the tensors of the old one whose bytes it takes, in order."""

    name: str
    shape: tuple[int, ...]
    type: int
    parts: tuple[TensorInfo, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return sum(part.size or 0 for part in self.parts)


def upgrade(
    source: Path,
    target: Path | None = None,
    *,
    replace: bool = False,
    on_progress: Progress = lambda done, total: None,
) -> Path:
    """Write `source` in today's expert layout and return the new file.

    The new file appears whole or not at all: it is written beside its place, compared with the old
    byte for byte, and then moved there. Interrupted, it can be run again.

    Args:
        source: a Mixtral GGUF in the old layout.
        target: the new file; None adds `-upgraded` to the name.
        replace: put the new file in the place of the old one.
        on_progress: gets bytes done and bytes to do; writing and comparing count alike.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelFileError: not a GGUF, truncated, already in the new layout, split, with missing or
            differing experts, no room on the disk, or the target exists.
    """
    header = read_header(source)
    check_complete(header)
    tensors = plan(header)
    if replace and target is not None:
        raise ModelFileError("give either a target or replace, not both")
    goal = source if replace else target or source.with_name(f"{source.stem}-upgraded.gguf")
    if not replace and goal.exists():
        raise ModelFileError(f"{goal} exists already; remove it or choose another name")
    head, offsets = head_of(header, tensors)
    total = len(head) + offsets[-1] + tensors[-1].size
    check_room(goal, total)
    done = _Counter(2 * sum(t.size for t in tensors), on_progress)
    with made_whole(goal) as partial:
        with source.open("rb") as old, partial.open("wb+") as new:
            new.write(head)
            for tensor, offset in zip(tensors, offsets, strict=True):
                new.seek(len(head) + offset)
                for part in tensor.parts:
                    _copy(old, header.data_offset + part.offset, new, part.size or 0, done)
            new.flush()
            os.fsync(new.fileno())
            _verify(header, tensors, old, partial, done)
        shutil.copymode(source, partial)
    return goal


def plan(header: GGUFHeader) -> list["Stacked"]:
    """The tensors of the new file, in order.

    Raises:
        ModelFileError: there is nothing to upgrade, or it cannot be done; the text says why.
    """
    path = header.path
    if not header.has_old_expert_layout:
        raise ModelFileError(f"{path} does not keep experts apart; there is nothing to upgrade")
    refuse_split(header)
    n_expert = header.number("expert_count") or 0
    experts: dict[str, dict[int, TensorInfo]] = {}
    order: dict[str, TensorInfo | None] = {}
    for tensor in header.tensors:
        if tensor.size is None:
            raise ModelFileError(f"{path}: {tensor.name} has the unknown type {tensor.type}")
        if match := _EXPERT.match(tensor.name):
            experts.setdefault(match["stem"], {})[int(match["number"])] = tensor
            order.setdefault(match["stem"], None)
        else:
            order[tensor.name] = tensor
    return [
        Stacked(name, one.shape, one.type, (one,))
        if one is not None
        else _stack(path, name, experts[name], n_expert)
        for name, one in order.items()
    ]


def _stack(path: Path, stem: str, experts: dict[int, TensorInfo], n_expert: int) -> Stacked:
    missing = sorted(set(range(n_expert)) - experts.keys())
    if missing or len(experts) != n_expert:
        what = f"lacks expert {missing[0]}" if missing else f"has {len(experts)} experts"
        raise ModelFileError(f"{path}: {stem} {what} of {n_expert}; download the file again")
    parts = tuple(experts[i] for i in range(n_expert))
    types = sorted({GGML_TYPES[p.type][0] for p in parts})
    if len(types) > 1:
        raise ModelFileError(
            f"{path}: the experts of {stem} have differing types ({', '.join(types)}), which one "
            "tensor cannot hold; quantise the model again from its full weights"
        )
    if len({p.shape for p in parts}) > 1:
        raise ModelFileError(f"{path}: the experts of {stem} have differing shapes")
    shape = (*parts[0].shape, n_expert)
    return Stacked(f"{stem}_exps.weight", shape, parts[0].type, parts)


def head_of(header: GGUFHeader, tensors: list[Stacked]) -> tuple[bytes, list[int]]:
    """Everything before the weights, and each tensor's offset; the metadata as it was."""
    offsets: list[int] = []
    at = 0
    for tensor in tensors:
        offsets.append(at)
        at += tensor.size + -tensor.size % header.alignment
    start, end = header.metadata_span
    with header.path.open("rb") as file:
        file.seek(start)
        metadata = file.read(end - start)
    out = [
        b"GGUF",
        struct.pack("<IQQ", header.version, len(tensors), len(header.metadata)),
        metadata,
    ]
    for tensor, offset in zip(tensors, offsets, strict=True):
        name = tensor.name.encode()
        out += [struct.pack("<Q", len(name)), name, struct.pack("<I", len(tensor.shape))]
        out += [struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)]
        out += [struct.pack("<IQ", tensor.type, offset)]
    head = b"".join(out)
    return head + bytes(-len(head) % header.alignment), offsets


class _Counter:
    def __init__(self, total: int, on_progress: Progress) -> None:
        self.done, self.total, self._report = 0, total, on_progress

    def add(self, n: int) -> None:
        self.done += n
        self._report(self.done, self.total)


def _copy(old: BinaryIO, offset: int, new: BinaryIO, size: int, done: _Counter) -> None:
    old.seek(offset)
    while size:
        data = old.read(min(size, _CHUNK))
        if not data:
            raise ModelFileError(f"{old.name} became shorter while it was read")
        new.write(data)
        size -= len(data)
        done.add(len(data))


def _verify(
    header: GGUFHeader, tensors: list[Stacked], old: BinaryIO, partial: Path, done: _Counter
) -> None:
    """Read the new file as any reader would and compare every byte of every tensor."""
    fresh = read_header(partial)
    check_complete(fresh)
    with partial.open("rb") as new:
        for wanted, found in zip(tensors, fresh.tensors, strict=True):
            same = (found.name, found.shape, found.type) == (wanted.name, wanted.shape, wanted.type)
            new.seek(fresh.data_offset + found.offset)
            for part in wanted.parts:
                same = same and _equal(old, header.data_offset + part.offset, new, part, done)
            if not same:
                raise ModelFileError(f"{partial}: {wanted.name} was not written as it was read")


def _equal(old: BinaryIO, offset: int, new: BinaryIO, part: TensorInfo, done: _Counter) -> bool:
    old.seek(offset)
    left = part.size or 0
    while left:
        size = min(left, _CHUNK)
        data = old.read(size)
        if not data or data != new.read(len(data)):
            return False
        left -= len(data)
        done.add(len(data))
    return True
