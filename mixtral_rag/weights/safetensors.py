"""The safetensors format: an 8-byte length, a JSON header, then the tensors' bytes.

Format: https://github.com/huggingface/safetensors#format. Read and written by hand, because the
library maps whole files into memory or wants every tensor at once; here only the rows in use are
held.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtral_rag.errors import ModelFileError, ModelNotFoundError

# Bytes of one element.
DTYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F32", "F16", "BF16")
_LONGEST_HEADER = 100_000_000  # the library's own limit


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a file: `shape` outermost dimension first, `offset` bytes from the file's start.

    An offset of -1 means that the file is a PyTorch archive.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int = -1

    @property
    def n_rows(self) -> int:
        """Size of the outermost dimension, 1 for a single number."""
        return self.shape[0] if self.shape else 1

    @property
    def row_elements(self) -> int:
        """Elements of one row."""
        return math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype]


def read_header(path: Path) -> list[Tensor]:
    """The tensors of a file, in the order of their bytes.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelFileError: not a safetensors file, damaged or truncated.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))[0]
            if length > min(_LONGEST_HEADER, size - 8):
                raise ModelFileError(f"{path} is not a safetensors file, or it is truncated")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = [_tensor(path, 8 + length, size, *item) for item in header.items()]
    except FileNotFoundError:
        raise ModelNotFoundError(f"no such file: {path}") from None
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(f"the header of {path} is damaged; download it again") from error
    return sorted(tensors, key=lambda t: t.offset)


def _tensor(path: Path, start: int, file_size: int, name: str, entry: dict[str, Any]) -> Tensor:
    if entry["dtype"] not in DTYPES:
        raise ModelFileError(
            f"{path}: {name} has the type {entry['dtype']}, which is not supported"
        )
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    tensor = Tensor(name, entry["dtype"], shape, path, start + begin)
    if begin < 0 or min(shape, default=0) < 0 or end - begin != tensor.size:
        raise ModelFileError(f"{path}: {name} says it has {end - begin:,} bytes; download it again")
    if start + end > file_size:
        raise ModelFileError(f"{path} is truncated at {name}; download or copy it again")
    return tensor


def head(tensors: Iterable[Tensor]) -> bytes:
    """What goes before the bytes of `tensors`, which follow in this order without a gap."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for t in tensors:
        offsets = [at, at + t.size]
        header[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": offsets}
        at += t.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write(path: Path, tensors: list[Tensor], chunks: Iterator[Any]) -> None:
    """Write `tensors` with the bytes of `chunks`, flush them to the disk, and read the header back.

    Raises:
        ModelFileError: what is in the file is not what was to be written.
    """
    start = head(tensors)
    with path.open("wb") as file:
        file.write(start)
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    found = [(t.name, t.dtype, t.shape) for t in read_header(path)]
    size = len(start) + sum(t.size for t in tensors)
    if found != [(t.name, t.dtype, t.shape) for t in tensors] or path.stat().st_size != size:
        raise ModelFileError(f"{path} was not written as planned; is the disk sound?")
