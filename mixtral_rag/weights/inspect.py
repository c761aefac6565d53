"""What a GGUF file is, and whether this machine can run it; reads only the header."""

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mixtral_rag.errors import SettingsError
from mixtral_rag.machine import model_memory
from mixtral_rag.weights.catalog import COMPUTE_BYTES
from mixtral_rag.weights.gguf import GGML_TYPES, GGUFHeader, read_header


@dataclass(frozen=True, slots=True)
class ModelReport:
    """Facts of one model file. Sizes are in bytes; None where the file does not say.

    Args:
        layout: `stacked` (today's), `one tensor an expert` (before April 2024, must be upgraded),
            or `dense` without experts.
        types: tensors of each type.
        bits_per_weight: all tensor bytes over all weights.
        kv_bytes: KV cache for `n_ctx` tokens of type `kv_type`.
        needed_bytes: weights, KV cache and working buffers.
        memory_bytes: what this machine has for it, GPUs included when memory alone is too small.
        missing_bytes: how much shorter the file is than its header says.
    """

    path: Path
    name: str
    architecture: str
    is_mixtral: bool
    is_instruct: bool
    layout: str
    n_experts: int | None
    n_experts_used: int | None
    n_layers: int | None
    n_weights: int
    types: dict[str, int]
    bits_per_weight: float
    context_length: int
    rope_base: float | None
    tokenizer: str
    vocabulary_size: int
    has_chat_template: bool
    file_bytes: int
    missing_bytes: int
    n_ctx: int
    kv_type: str
    kv_bytes: int | None
    needed_bytes: int | None
    memory_bytes: int

    @property
    def problem(self) -> str | None:
        """Why this machine cannot run it, and the way out; None when it can."""
        if self.missing_bytes:
            return "the file is truncated; download or copy it again"
        if self.layout == "one tensor an expert":
            command = f"mixtral-rag upgrade {shlex.quote(str(self.path))}"
            return f"today's llama.cpp cannot load it; run: {command}"
        return self.memory_problem

    @property
    def memory_problem(self) -> str | None:
        """What it needs and this machine lacks, and the way out; None when it fits."""
        if self.needed_bytes is None or self.needed_bytes <= self.memory_bytes:
            return None
        return (
            f"it needs {self.needed_bytes / 1e9:.1f} GB and this machine has "
            f"{self.memory_bytes / 1e9:.1f} GB; choose a smaller quantisation, a smaller "
            "n_ctx or kv_type q8_0"
        )


def inspect(path: Path, *, n_ctx: int | None = None, kv_type: str = "f16") -> ModelReport:
    """Facts of the model file at `path`, for a context of `n_ctx` tokens.

    Raises:
        SettingsError: an unknown KV type or a context below 1.
        ModelNotFoundError: there is no such file.
        ModelFileError: not a GGUF, or its header is damaged.
    """
    header = read_header(path)
    n_ctx = n_ctx if n_ctx is not None else min(header.context_length or 32_768, 32_768)
    if n_ctx < 1:
        raise SettingsError(f"n_ctx is {n_ctx}; it must be at least 1")
    kv_bytes = _kv_bytes(header, n_ctx, kv_type)
    needed = None if kv_bytes is None else header.tensor_bytes + kv_bytes + COMPUTE_BYTES
    rope = header.metadata.get(f"{header.architecture}.rope.freq_base")
    return ModelReport(
        path=path,
        name=header.text("general.name") or path.stem,
        architecture=header.architecture,
        is_mixtral=header.is_mixtral,
        is_instruct=header.is_instruct,
        layout=_layout(header),
        n_experts=header.number("expert_count"),
        n_experts_used=header.number("expert_used_count"),
        n_layers=header.number("block_count"),
        n_weights=header.n_weights,
        types=_types(header),
        bits_per_weight=header.bits_per_weight,
        context_length=header.context_length,
        rope_base=float(rope) if isinstance(rope, int | float) else None,
        tokenizer=header.text("tokenizer.ggml.model") or "none",
        vocabulary_size=header.vocabulary_size,
        has_chat_template=header.chat_template is not None,
        file_bytes=header.file_size,
        missing_bytes=max(0, header.expected_size - header.file_size),
        n_ctx=n_ctx,
        kv_type=kv_type,
        kv_bytes=kv_bytes,
        needed_bytes=needed,
        memory_bytes=model_memory(needed),
    )


def _kv_bytes(header: GGUFHeader, n_ctx: int, kv_type: str) -> int | None:
    """Keys and values of every layer: heads times head size times two, for each token."""
    sizes = {name.lower(): (block, size) for name, block, size in GGML_TYPES.values()}
    if kv_type not in sizes:
        raise SettingsError(f"unknown kv_type {kv_type!r}; try f16, q8_0 or q4_0")
    layers, heads = header.number("block_count"), header.number("attention.head_count")
    width = header.number("embedding_length")
    if not layers or not heads or not width:
        return None
    kv_heads = header.number("attention.head_count_kv") or heads
    per_head = header.number("attention.key_length") or width // heads
    block, size = sizes[kv_type]
    return layers * kv_heads * per_head * 2 * n_ctx * size // block


def _layout(header: GGUFHeader) -> str:
    if header.has_old_expert_layout:
        return "one tensor an expert"
    return "stacked" if (header.number("expert_count") or 0) > 1 else "dense"


def _types(header: GGUFHeader) -> dict[str, int]:
    counts = Counter(t.type for t in header.tensors)
    names = {kind: GGML_TYPES.get(kind, (f"type {kind}",))[0] for kind in counts}
    return {names[kind]: n for kind, n in counts.most_common()}
