"""Full weights from a base and its LoRA weights, a few rows at a time.

What peft's `merge_and_unload` computes, but each tensor is read, changed in float32, rounded once
and written before the next, so memory does not grow with the model. The experts of a Mixtral stay
apart, as its files keep them.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixtral_rag.errors import AdapterError, ModelFileError, SettingsError
from mixtral_rag.weights.checkpoint import Checkpoint, open_checkpoint, stays_finite, torch_dtype
from mixtral_rag.weights.disk import Progress, check_room, made_whole
from mixtral_rag.weights.lora import Change, read_adapter
from mixtral_rag.weights.safetensors import FLOATS, Tensor, write

# The types of the output, and what config.json calls them.
MERGE_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
# Families whose files name the weights as their modules do, all of them linear layers.
_FAMILIES = ("mixtral", "mistral", "llama")
_VOCABULARY = ("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
_TOKENIZER = (
    *_VOCABULARY, "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_LARGEST_COPIED = 100 << 20


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was written: the folder, its tensors, and how many an adapter changed or replaced."""

    path: Path
    n_tensors: int
    n_changed: int
    n_replaced: int


def merge(
    base: Path,
    adapters: Sequence[Path],
    output: Path,
    *,
    dtype: str | None = None,
    on_progress: Progress = lambda done, total: None,
) -> MergeReport:
    """Write `base` with `adapters` merged into it, one after another, to the new folder `output`.

    The folder appears whole or not at all. It holds safetensors shards of the base's names, their
    index, the base's config and the tokenizer of the last adapter that has one, else the base's.
    All adapters are added in float32 and rounded once.

    Args:
        base: folder of full Hugging Face weights (Mixtral, Mistral or Llama).
        adapters: folders of LoRA weights as peft saves them.
        output: the new folder.
        dtype: f32, f16 or bf16; None keeps each tensor's own.
        on_progress: gets bytes written and bytes to write.

    Raises:
        SettingsError: unknown dtype, or no adapter.
        ModelNotFoundError: a folder or its weights are missing.
        ModelFileError: the base is damaged or quantised, no room, or the output exists.
        AdapterError: an adapter does not fit the base or uses something not supported.
    """
    if dtype is not None and dtype not in MERGE_TYPES:
        raise SettingsError(f"unknown dtype {dtype!r}; choose one of: {', '.join(MERGE_TYPES)}")
    if not adapters:
        raise SettingsError("name at least one folder of LoRA weights")
    if output.exists() or output.is_symlink():
        raise ModelFileError(f"{output} exists already; remove it or choose another name")
    checkpoint = open_checkpoint(base)
    _check_base(checkpoint)
    changes = _changes(checkpoint, adapters)
    shards = _plan(checkpoint, dtype)
    total = sum(t.size for shard in shards.values() for t in shard)
    check_room(output, total)
    with made_whole(output) as partial:
        partial.mkdir()
        done = 0
        for name, tensors in shards.items():
            blocks = _reported(checkpoint, changes, tensors, done, total, on_progress)
            write(partial / name, tensors, blocks)
            done += sum(t.size for t in tensors)
        _copy_files(checkpoint, adapters, partial, dtype)
        _write_index(partial, shards)
        _sync_folder(partial)
    replaced = sum(any(c.replacement for c in steps) for steps in changes.values())
    return MergeReport(output, len(checkpoint.tensors), len(changes) - replaced, replaced)


def _check_base(base: Checkpoint) -> None:
    family = base.config.get("model_type")
    if family not in _FAMILIES:
        raise ModelFileError(
            f"{base.folder} is a {family}; LoRA weights can be merged into {', '.join(_FAMILIES)}"
        )
    fused = next((n for n in base.tensors if n.endswith(".experts.gate_up_proj")), None)
    if fused is not None:
        raise ModelFileError(
            f"{base.folder} keeps a layer's experts in one tensor ({fused}); save it with "
            "transformers' save_pretrained(..., save_original_format=True)"
        )


def _changes(base: Checkpoint, adapters: Sequence[Path]) -> dict[str, list[Change]]:
    changes: dict[str, list[Change]] = {}
    for folder in adapters:
        for name, steps in read_adapter(folder, base).items():
            embedding = name in ("model.embed_tokens.weight", "lm_head.weight")
            if embedding and base.config.get("tie_word_embeddings"):
                raise AdapterError(
                    f"{folder} changes {name}, which the base uses for input and output alike "
                    "(tie_word_embeddings); this cannot be merged without changing the other"
                )
            changes.setdefault(name, []).extend(steps)
    for name in changes:
        if base.tensors[name].dtype not in FLOATS:
            raise ModelFileError(
                f"{base.folder}: {name} is {base.tensors[name].dtype}, not full weights"
            )
    return changes


def _plan(base: Checkpoint, dtype: str | None) -> dict[str, list[Tensor]]:
    """The tensors of each output file, in the order of the base."""
    shards: dict[str, list[Tensor]] = {}
    for tensor in base.tensors.values():
        name = tensor.file.name.removeprefix("pytorch_")
        name = name.removesuffix(".bin").removesuffix(".safetensors") + ".safetensors"
        kind = dtype.upper() if dtype and tensor.dtype in FLOATS else tensor.dtype
        shards.setdefault(name, []).append(replace(tensor, dtype=kind))
    return shards


def _reported(
    base: Checkpoint,
    changes: dict[str, list[Change]],
    tensors: list[Tensor],
    done: int,
    total: int,
    on_progress: Progress,
) -> Iterator[Any]:
    """The bytes of `tensors` after their changes, in blocks."""
    for tensor in tensors:
        for block in _blocks(base, changes.get(tensor.name, []), tensor):
            yield block
            done += len(block)
            on_progress(done, total)


def _blocks(base: Checkpoint, steps: list[Change], tensor: Tensor) -> Iterator[Any]:
    import torch

    for start, block in base.blocks(tensor.name):
        if steps or tensor.dtype != base.tensors[tensor.name].dtype:
            values = block.float() if steps else block
            for step in steps:
                values = step.apply(values, start)
            kind = torch_dtype(tensor.dtype)
            if not stays_finite(values, kind):
                _refuse(base, tensor, steps, stays_finite(values, values.dtype))
            block = values.to(kind)
        yield memoryview(block.contiguous().reshape(-1).view(torch.uint8).numpy())


def _refuse(base: Checkpoint, tensor: Tensor, steps: list[Change], fits: bool) -> None:
    if fits:
        raise ModelFileError(
            f"{tensor.name} has values beyond the range of {tensor.dtype}; use --dtype bf16"
        )
    where = steps[-1].adapter.folder if steps else base.folder
    raise ModelFileError(f"{where}: {tensor.name} comes out infinite or not a number")


def _copy_files(
    base: Checkpoint, adapters: Sequence[Path], target: Path, dtype: str | None
) -> None:
    """Configs, licences and the tokenizer; a tokenizer is taken from one place as a whole."""
    sources = {}
    for path in sorted(base.folder.iterdir()):
        wanted = path.suffix in (".json", ".jinja", ".model", ".txt") or path.stem in (
            "LICENSE",
            "NOTICE",
        )
        if wanted and path.is_file() and not path.name.endswith(".index.json"):
            sources[path.name] = path
    for folder in adapters:
        own = {name: folder / name for name in _TOKENIZER if (folder / name).is_file()}
        if any(name in own for name in _VOCABULARY):
            sources = {k: v for k, v in sources.items() if k not in _TOKENIZER}
        sources.update(own)
    for name, path in sources.items():
        if path.stat().st_size <= _LARGEST_COPIED and not name.startswith("adapter_"):
            shutil.copyfile(path, target / name)
    if dtype:
        config = {k: v for k, v in base.config.items() if k not in ("dtype", "torch_dtype")}
        key = "dtype" if "dtype" in base.config else "torch_dtype"
        config[key] = MERGE_TYPES[dtype]
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _write_index(folder: Path, shards: dict[str, list[Tensor]]) -> None:
    if list(shards) == ["model.safetensors"]:
        return
    index = {
        "metadata": {"total_size": sum(t.size for shard in shards.values() for t in shard)},
        "weight_map": {t.name: name for name, shard in shards.items() for t in shard},
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, "utf-8")


def _sync_folder(folder: Path) -> None:
    """Make sure that the files' names and contents are on the disk before the folder appears."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
