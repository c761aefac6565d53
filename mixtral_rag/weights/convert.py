"""Hugging Face weights to GGUF, a few rows at a time.

Names, metadata and layout follow llama.cpp's own converter (`convert_hf_to_gguf.py`): the experts
of a layer are stacked into one tensor, the rows of attn_q and attn_k are put in the order that
llama.cpp's rotation expects, and vectors and the router stay in float32.
"""

import os
import re
from pathlib import Path
from typing import Any

from mixtral_rag.errors import ModelFileError, SettingsError
from mixtral_rag.weights.checkpoint import Checkpoint, open_checkpoint
from mixtral_rag.weights.disk import Progress, check_room, made_whole
from mixtral_rag.weights.gguf import GGML_TYPES
from mixtral_rag.weights.gguf_write import Planned, load_gguf, rope, write_head, write_tensors
from mixtral_rag.weights.safetensors import FLOATS
from mixtral_rag.weights.vocabulary import read_vocabulary

# Type name: number of the tensor type, and of the file type (llama.cpp's enum llama_ftype).
CONVERT_TYPES = {"f32": (0, 0), "f16": (1, 1), "q8_0": (8, 7), "bf16": (30, 32)}
_ARCHITECTURES = ("MixtralForCausalLM", "MistralForCausalLM", "LlamaForCausalLM")
_EXPERT = re.compile(r"^model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight$")
_EXPERT_NAMES = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}
_NOT_WEIGHTS = re.compile(r"\.rotary_emb\.inv_freq$")


def convert(
    folder: Path,
    target: Path | None = None,
    *,
    type: str | None = None,
    replace: bool = False,
    on_progress: Progress = lambda done, total: None,
) -> Path:
    """Write the weights in `folder` as a GGUF file and return its path.

    As in llama.cpp's converter, a sliding window (early Mistral-7B; Mixtral has none) is left out:
    the model attends to everything. The file appears whole or not at all. Rounding is to the
    nearest; f32 and the weights' own type lose nothing.

    Args:
        folder: full Hugging Face weights of a Mixtral, Mistral or Llama with its tokenizer.
        target: the new file; None names it after the folder and the type, beside the folder.
        type: f16, bf16, f32 or q8_0; None takes the type of the weights.
        replace: overwrite an existing target.
        on_progress: gets bytes written and bytes to write.

    Raises:
        SettingsError: unknown type.
        ModelNotFoundError: the folder, its weights or its tokenizer are missing.
        ModelFileError: another architecture, damaged or unexpected weights, no room, or the target
            exists.
        MissingExtraError: torch, gguf or sentencepiece is not installed.
    """
    if type is not None and type not in CONVERT_TYPES:
        raise SettingsError(f"unknown type {type!r}; choose one of: {', '.join(CONVERT_TYPES)}")
    weights = open_checkpoint(folder)
    _check(weights)
    kind = type or _own_type(weights)
    home = Path(os.path.abspath(folder))
    goal = target or home.with_name(f"{home.name}-{kind}.gguf")
    if goal.exists() and not replace:
        raise ModelFileError(
            f"{goal} exists already; remove it, choose another name or --replace it"
        )
    planned = _plan(weights, CONVERT_TYPES[kind][0])
    vocabulary = read_vocabulary(folder, weights.config)
    _check_rows(folder, planned, len(vocabulary.pieces))
    check_room(goal, sum(t.size for t in planned) + (16 << 20))
    with made_whole(goal) as partial:
        write_head(partial, weights, vocabulary, planned, CONVERT_TYPES[kind][1])
        write_tensors(partial, weights, planned, on_progress)
    return goal


def _check(weights: Checkpoint) -> None:
    folder, config = weights.folder, weights.config
    names = config.get("architectures") or [config.get("model_type")]
    if names[0] not in _ARCHITECTURES:
        raise ModelFileError(
            f"{folder} is a {names[0]}; only {', '.join(_ARCHITECTURES)} can be converted"
        )
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if not isinstance(config.get(key), int):
            raise ModelFileError(f"{folder}/config.json has no {key}")
    scaling = rope(config).get("rope_type", "default")
    if scaling not in ("default", "linear"):
        raise ModelFileError(f"{folder} scales its positions by {scaling}, which is not supported")
    bad = next((t for t in weights.tensors.values() if t.dtype not in FLOATS), None)
    if bad is not None:
        raise ModelFileError(
            f"{folder}: {bad.name} is {bad.dtype}; only full weights can be converted"
        )


def _own_type(weights: Checkpoint) -> str:
    types = {t.dtype for t in weights.tensors.values() if len(t.shape) > 1}
    return {frozenset(["F16"]): "f16", frozenset(["BF16"]): "bf16"}.get(frozenset(types), "f32")


def _plan(weights: Checkpoint, kind: int) -> list[Planned]:
    """Every tensor of the new file; each tensor of the weights is used once, or refused by name."""
    gguf = load_gguf()
    config, tensors = weights.config, weights.tensors
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    planned: dict[str, Planned] = {}
    experts: dict[str, dict[int, str]] = {}
    for name, tensor in tensors.items():
        if _NOT_WEIGHTS.search(name) or (name == "lm_head.weight" and _is_tied(config)):
            continue
        if match := _EXPERT.match(name):
            stem = f"blk.{match[1]}.{_EXPERT_NAMES[match[3]]}.weight"
            experts.setdefault(stem, {})[int(match[2])] = name
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise ModelFileError(
                f"{weights.folder}: {name} has no place in a GGUF file of this kind"
            )
        heads = _heads(config, new)
        if heads and tensor.n_rows % (2 * heads):
            raise ModelFileError(
                f"{weights.folder}: {name} has {tensor.n_rows} rows for {heads} heads"
            )
        stays = len(tensor.shape) < 2 or "ffn_gate_inp" in new
        own = 0 if stays else _fitting(kind, tensor.shape)
        planned[new] = Planned(new, tensor.shape, own, (name,), heads)
    for stem, numbered in experts.items():
        planned[stem] = _stack(weights, stem, numbered, kind)
    _check_all_there(weights, planned)
    return list(planned.values())


def _stack(weights: Checkpoint, stem: str, numbered: dict[int, str], kind: int) -> Planned:
    count = weights.config.get("num_local_experts") or 0
    parts = tuple(numbered[i] for i in sorted(numbered))
    shapes = {weights.tensors[name].shape for name in parts}
    if sorted(numbered) != list(range(count)) or len(shapes) != 1:
        raise ModelFileError(
            f"{weights.folder}: {stem} needs {count} experts of one size and {len(parts)} of "
            f"{len(shapes)} were found; download it again"
        )
    shape = (count, *shapes.pop())
    return Planned(stem, shape, _fitting(kind, shape), parts)


def _fitting(kind: int, shape: tuple[int, ...]) -> int:
    """The wanted type, or f16 where a row is no whole number of its blocks."""
    return kind if shape[-1] % GGML_TYPES[kind][1] == 0 else CONVERT_TYPES["f16"][0]


def _heads(config: dict[str, Any], name: str) -> int:
    heads: int = config["num_attention_heads"]
    if ".attn_q." in name:
        return heads
    return (config.get("num_key_value_heads") or heads) if ".attn_k." in name else 0


def _is_tied(config: dict[str, Any]) -> bool:
    return config.get("tie_word_embeddings") is True


def _check_all_there(weights: Checkpoint, planned: dict[str, Planned]) -> None:
    """A missing layer would be found by llama.cpp only after hours of copying and quantising."""
    layer = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"]
    experts = weights.config.get("num_local_experts")
    layer += (
        ["ffn_gate_inp", *_EXPERT_NAMES.values()] if experts else ["ffn_gate", "ffn_up", "ffn_down"]
    )
    wanted = ["token_embd.weight", "output_norm.weight"]
    wanted += [] if _is_tied(weights.config) else ["output.weight"]
    n = weights.config["num_hidden_layers"]
    wanted += [f"blk.{i}.{part}.weight" for i in range(n) for part in layer]
    missing = [name for name in wanted if name not in planned]
    if missing:
        raise ModelFileError(
            f"{weights.folder} lacks what becomes {missing[0]} ({len(missing)} "
            "tensors are missing); download it again"
        )


def _check_rows(folder: Path, planned: list[Planned], n_tokens: int) -> None:
    n_rows = next(t.shape[0] for t in planned if t.name == "token_embd.weight")
    if n_rows != n_tokens:
        raise ModelFileError(
            f"{folder}: the weights have {n_rows:,} tokens and the vocabulary {n_tokens:,}"
        )
