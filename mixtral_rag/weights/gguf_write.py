"""Write a GGUF file: the header with the gguf package, the tensors a few rows at a time."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtral_rag.errors import MissingExtraError, ModelFileError
from mixtral_rag.weights.checkpoint import Checkpoint, stays_finite
from mixtral_rag.weights.disk import Progress
from mixtral_rag.weights.gguf import GGML_TYPES, check_complete, read_header, tensor_bytes
from mixtral_rag.weights.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor of the new file, outermost dimension first, and the tensors whose rows it takes."""

    name: str
    shape: tuple[int, ...]
    type: int
    parts: tuple[str, ...]
    n_head: int = 0  # of attn_q and attn_k, whose rows are reordered

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return tensor_bytes(self.type, self.shape)


def load_gguf() -> Any:
    """The `gguf` module.

    Raises:
        MissingExtraError: gguf is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingExtraError("gguf", "weights") from error
    return gguf


def rope(config: dict[str, Any]) -> dict[str, Any]:
    """Base and scaling of the rotation, under one name each; Transformers 5 keeps them together."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_type", found.get("type", "default"))
    default = 1e6 if config.get("num_local_experts") else 1e4
    found.setdefault("rope_theta", config.get("rope_theta") or default)
    return found


def write_head(
    path: Path, weights: Checkpoint, vocabulary: Vocabulary, planned: list[Planned], file_type: int
) -> None:
    """Write everything before the tensors to `path`."""
    gguf = load_gguf()
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer, weights, file_type)
    writer.add_vocab_size(len(vocabulary.pieces))
    _add_vocabulary(writer, vocabulary)
    for tensor in planned:
        kind = gguf.GGMLQuantizationType(tensor.type)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _add_metadata(writer: Any, weights: Checkpoint, file_type: int) -> None:
    config, rotation = weights.config, rope(weights.config)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or width // heads
    writer.add_type("model")
    writer.add_name(weights.folder.absolute().name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_context_length(config.get("max_position_embeddings") or 32_768)
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    if size * heads != width:
        writer.add_key_length(size)
        writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rotation["rope_theta"]))
    if rotation["rope_type"] == "linear":
        writer.add_rope_scaling_type(load_gguf().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rotation["factor"]))
    if config.get("num_local_experts"):
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config.get("num_experts_per_tok") or 2)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.encode() for piece in vocabulary.pieces])
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    for name, i in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(i)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def write_tensors(
    path: Path, weights: Checkpoint, planned: list[Planned], on_progress: Progress
) -> None:
    """Fill in the tensors where the header says they are, and check that it is complete."""
    header = read_header(path)
    found = [(t.name, t.shape[::-1], t.type) for t in header.tensors]
    if found != [(t.name, t.shape, t.type) for t in planned]:
        raise ModelFileError(f"{path}: the header was not written as planned")
    done, total = 0, sum(t.size for t in planned)
    with path.open("rb+") as file:
        for place, tensor in zip(header.tensors, planned, strict=True):
            file.seek(header.data_offset + place.offset)
            for chunk in _chunks(weights, tensor):
                file.write(chunk)
                done += len(chunk)
                on_progress(done, total)
        file.truncate(header.expected_size)
        file.flush()
        os.fsync(file.fileno())
    check_complete(read_header(path))
    if done != total:
        raise ModelFileError(f"{path}: {done:,} bytes of {total:,} were written")


def _chunks(weights: Checkpoint, tensor: Planned) -> Iterator[Any]:
    """The bytes of a tensor in its new type and order."""
    for part in tensor.parts:
        if tensor.n_head:  # the rows of a whole head change places
            yield _encode(weights, _permuted(weights.rows(part), tensor.n_head), tensor)
            continue
        for _, block in weights.blocks(part):
            yield _encode(weights, block, tensor)


def _permuted(rows: Any, n_head: int) -> Any:
    """Rows of a head as pairs that rotate together, not as two halves, as llama.cpp wants them."""
    return rows.reshape(n_head, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _encode(weights: Checkpoint, values: Any, tensor: Planned) -> Any:
    import torch

    name = GGML_TYPES[tensor.type][0]
    if not stays_finite(values, values.dtype):
        raise ModelFileError(
            f"{weights.folder}: {tensor.parts[0]} has infinite values or none at all"
        )
    if name == "Q8_0":
        gguf = load_gguf()
        data = gguf.quants.quantize(values.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
        return memoryview(data.reshape(-1).view("uint8"))
    kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]
    if not stays_finite(values, kind):
        raise ModelFileError(
            f"{weights.folder}: {tensor.parts[0]} has values beyond the range of {name}; "
            "use --type bf16"
        )
    return memoryview(values.to(kind).contiguous().reshape(-1).view(torch.uint8).numpy())
