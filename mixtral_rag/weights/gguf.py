"""Read the header of a GGUF file, trusting nothing in it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3,
little-endian). Every count and length is checked against the bytes that are left before anything is
read or allocated, so a truncated or hostile file gives `ModelFileError` and costs little memory.
"""

import math
import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mixtral_rag.errors import ModelFileError, ModelNotFoundError

# type number: (name, weights in a block, bytes of a block), from ggml's type traits.
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
            11: "<q", 12: "<d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
_LONGEST_KEPT_STRING = 1 << 20  # a chat template is a few kilobytes; token texts are skipped
_LONGEST_KEPT_ARRAY = 1024
_MOST_KEPT = 64 << 20
_ALIGNMENTS = tuple(1 << n for n in range(21))
_MOST_TENSORS, _MOST_METADATA, _MOST_STRINGS = 100_000, 10_000, 2_000_000
_OLD_EXPERT = re.compile(r"^blk\.\d+\.ffn_(?:gate|down|up)\.\d+\.weight$")


@dataclass(frozen=True, slots=True)
class Array:
    """An array in the metadata: element type number and length, values only when short."""

    element_type: int
    length: int
    values: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape (innermost dimension first), ggml type number, and place in the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    size: int | None

    @property
    def n_weights(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Everything before the weights."""

    path: Path
    version: int
    metadata: dict[str, object] = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    metadata_span: tuple[int, int]  # where the metadata begins and ends in the file
    alignment: int
    data_offset: int
    file_size: int

    def text(self, key: str) -> str | None:
        """The string at `key`, None when absent or of another type."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """The integer at `key` of this architecture, such as `context_length`."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) else None

    @property
    def architecture(self) -> str:
        """`general.architecture`; Mixtral files say `llama`."""
        return self.text("general.architecture") or "unknown"

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template, when the file has one."""
        return self.text("tokenizer.chat_template")

    @property
    def context_length(self) -> int:
        """Tokens of context the model was trained for, 0 when not stated."""
        return self.number("context_length") or 0

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, 0 when the file has no vocabulary."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return tokens.length if isinstance(tokens, Array) else 0

    @property
    def is_mixtral(self) -> bool:
        """Whether this is a Mixtral: llama with experts and the SentencePiece vocabulary."""
        return (
            self.architecture == "llama"
            and (self.number("expert_count") or 0) > 1
            and self.text("tokenizer.ggml.model") == "llama"
        )

    @property
    def is_instruct(self) -> bool:
        """Whether name, file name or template say the model was tuned to follow instructions."""
        names = [self.text(f"general.{k}") or "" for k in ("name", "basename", "finetune")]
        said = " ".join([*names, self.path.name]).lower()
        return "instruct" in said or "chat" in said or self.chat_template is not None

    @property
    def has_long_factors(self) -> bool:
        """Whether the window decides how positions are turned (LongRoPE, arXiv 2402.13753)."""
        return any(t.name.startswith("rope_factors_long") for t in self.tensors)

    @property
    def has_old_expert_layout(self) -> bool:
        """Whether each expert is a tensor of its own, as llama.cpp wrote before April 2024."""
        return any(_OLD_EXPERT.match(t.name) for t in self.tensors)

    @property
    def n_weights(self) -> int:
        """Numbers in all tensors."""
        return sum(t.n_weights for t in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors whose type is known."""
        return sum(t.size or 0 for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors over all weights, 0 without any."""
        return 8 * self.tensor_bytes / self.n_weights if self.n_weights else 0.0

    @property
    def expected_size(self) -> int:
        """Bytes the file needs to hold every tensor whose type is known."""
        ends = [self.data_offset + t.offset + t.size for t in self.tensors if t.size is not None]
        return max(ends, default=self.data_offset)


def read_header(path: Path) -> GGUFHeader:
    """Read and check the header of `path`.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelFileError: not a GGUF, damaged or truncated.
    """
    try:
        with path.open("rb") as file:
            return _Reader(path, file).header()
    except FileNotFoundError:
        raise ModelNotFoundError(f"no such model file: {path}") from None
    except IsADirectoryError:
        raise ModelFileError(f"{path} is a folder; give the .gguf file inside it") from None
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error


def check_complete(header: GGUFHeader) -> None:
    """Raise `ModelFileError` when the file is shorter than its tensors say."""
    if header.file_size < header.expected_size:
        raise ModelFileError(
            f"{header.path} is truncated: {header.file_size:,} bytes of "
            f"{header.expected_size:,}; download or copy it again"
        )


def refuse_split(header: GGUFHeader) -> None:
    """Raise `ModelFileError` when the file is one of several parts."""
    if header.metadata.get("split.count") not in (None, 0, 1):
        raise ModelFileError(
            f"{header.path} is one of several parts; join them with llama-gguf-split first"
        )


def tensor_bytes(kind: int, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of ggml type number `kind`."""
    _, block, block_bytes = GGML_TYPES[kind]
    return math.prod(shape) // block * block_bytes


class _Reader:
    """A cursor over the file that refuses to go past its end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.left = self.file_size = os.fstat(file.fileno()).st_size
        self.kept = 0  # bytes of strings

    def header(self) -> GGUFHeader:
        if self.left < 4 or self.read(4) != b"GGUF":
            raise ModelFileError(f"{self.path} is not a GGUF file")
        version = self.unpack("<I")
        if version not in (2, 3):
            raise ModelFileError(f"{self.path} is GGUF version {version}; 2 and 3 can be read")
        n_tensors = self.count(self.unpack("<Q"), at_least=24, most=_MOST_TENSORS)
        n_metadata = self.count(self.unpack("<Q"), at_least=13, most=_MOST_METADATA)
        start = self.file_size - self.left
        metadata = {self.string(): self.value(self.unpack("<I")) for _ in range(n_metadata)}
        span = (start, self.file_size - self.left)
        tensors = tuple(self.tensor() for _ in range(n_tensors))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment not in _ALIGNMENTS:
            raise self.damaged(f"alignment of {alignment!r}")
        if len(metadata) != n_metadata:
            raise self.damaged("a metadata key stands twice")
        end = self.file_size - self.left
        data_offset = end + -end % alignment
        return GGUFHeader(
            self.path, version, metadata, tensors, span, alignment, data_offset, self.file_size
        )

    def damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.path} is damaged or truncated ({what}); download it again")

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise self.damaged(f"{size:,} bytes wanted, {self.left:,} left")
        self.left -= size
        return self.file.read(size)

    def skip(self, size: int) -> None:
        if size > self.left:
            raise self.damaged(f"{size:,} bytes wanted, {self.left:,} left")
        self.left -= size
        self.file.seek(size, os.SEEK_CUR)

    def unpack(self, layout: str) -> int:
        value: int = struct.unpack(layout, self.read(struct.calcsize(layout)))[0]
        return value

    def count(self, claimed: int, *, at_least: int, most: int) -> int:
        """`claimed` items of at least so many bytes each must fit in what is left.

        A sparse file can claim any size, so there is a limit beyond all real models too.
        """
        if claimed > most or claimed * at_least > self.left:
            raise self.damaged(f"{claimed:,} items claimed")
        return claimed

    def string(self) -> str:
        length = self.unpack("<Q")
        self.kept += length
        if length > _LONGEST_KEPT_STRING or self.kept > _MOST_KEPT:
            self.skip(length)
            return ""
        return self.read(length).decode("utf-8", errors="replace")

    def value(self, kind: int) -> object:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])
        if kind == _ARRAY:
            return self.array()
        raise self.damaged(f"metadata type {kind}")

    def array(self) -> Array:
        element, length = self.unpack("<I"), self.unpack("<Q")
        if element in _SCALARS:
            width = struct.calcsize(_SCALARS[element])
            if length > _LONGEST_KEPT_ARRAY:
                self.skip(length * width)
                return Array(element, length)
            return Array(element, length, tuple(self.value(element) for _ in range(length)))
        if element != _STRING:
            raise self.damaged(f"array of type {element}")
        self.count(length, at_least=8, most=_MOST_STRINGS)
        if length <= _LONGEST_KEPT_ARRAY:
            return Array(element, length, tuple(self.string() for _ in range(length)))
        for _ in range(length):
            self.skip(self.unpack("<Q"))
        return Array(element, length)

    def tensor(self) -> TensorInfo:
        name, n_dims = self.string(), self.unpack("<I")
        if n_dims > 4:
            raise self.damaged(f"tensor {name!r} of {n_dims} dimensions")
        shape = tuple(self.unpack("<Q") for _ in range(n_dims))
        kind, offset = self.unpack("<I"), self.unpack("<Q")
        size = tensor_bytes(kind, shape) if kind in GGML_TYPES else None
        return TensorInfo(name, shape, kind, offset, size)
