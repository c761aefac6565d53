"""A LoRA adapter as peft saves it: which tensors of the base it changes, and how.

LoRA (arXiv:2106.09685) adds `scale * B @ A` to a weight, with `scale` of lora_alpha / r, or of
lora_alpha / sqrt(r) for rank-stabilised LoRA (arXiv:2312.03732). Names and layouts follow peft 0.21
(`tuners/lora/layer.py`, `utils/transformers_weight_conversion.py`). Two kinds of Mixtral adapters
exist: older ones have an A and a B for each expert; over Transformers 5, which fuses a layer's
experts in memory, peft saves one A and one B for all of them.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtral_rag.errors import AdapterError, ModelNotFoundError
from mixtral_rag.weights.checkpoint import Checkpoint, read_json, read_shards

# Settings of an adapter that this module follows, or that matter for training only.
_KNOWN = {
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "target_parameters", "modules_to_save", "bias", "fan_in_fan_out", "init_lora_weights",
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "loftq_config", "megatron_core",
    "peft_type", "peft_version", "revision", "runtime_config", "task_type", "qalora_group_size",
    "eva_config",
}  # fmt: skip
# Others, such as PiSSA and OLoRA, changed the base before training; A and B alone do not tell how.
_KNOWN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_FACTOR = re.compile(
    r"^(?P<module>.+)\.(?P<which>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.weight)?$"
)
_FUSED = re.compile(r"^(?P<layer>model\.layers\.\d+)\.mlp\.experts(?:\.base_layer)?$")


@dataclass(frozen=True, slots=True)
class Change:
    """One step on one tensor of the base: another tensor in its place, or `scale * B @ A` added.

    Args:
        replacement: the adapter's tensor that takes the place; None for a product.
        transposed: the product is added transposed, as for embeddings.
        expert: number of the expert and how many share A and B; None for a weight of its own.
        first_row: the row of B that belongs to the tensor's first.
    """

    adapter: Checkpoint
    replacement: str | None = None
    a: str = ""
    b: str = ""
    scale: float = 0.0
    transposed: bool = False
    expert: tuple[int, int] | None = None
    first_row: int = 0

    def apply(self, block: Any, start: int) -> Any:
        """`block`, rows of the base in float32 from row `start`, after this change."""
        stop = start + len(block)
        if self.replacement is not None:
            return self.adapter.rows(self.replacement, start, stop).float()
        if self.transposed:
            a, b = (self.adapter.rows(name).float() for name in (self.a, self.b))
            return block.addmm_(a[:, start:stop].T, b.T, alpha=self.scale)
        a, b = (
            self.adapter.rows,
            self.adapter.rows(self.b, self.first_row + start, self.first_row + stop),
        )
        if self.expert is None:
            return block.addmm_(b.float(), a(self.a).float(), alpha=self.scale)
        number, count = (
            self.expert
        )  # in A an expert's ranks lie together, in B they are interleaved
        rank = b.shape[1] // count
        own = a(self.a, number * rank, (number + 1) * rank)
        return block.addmm_(b[:, number::count].float(), own.float(), alpha=self.scale)


def read_adapter(folder: Path, base: Checkpoint) -> dict[str, list[Change]]:
    """What the adapter in `folder` does to each tensor of `base`, in order.

    Raises:
        ModelNotFoundError: no adapter in the folder.
        AdapterError: it is not LoRA, uses something not supported, does not fit the base, or a
            tensor of it would not be used.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"no such folder: {folder}; give the one with adapter_config.json")
    config = read_json(folder / "adapter_config.json")
    _check_config(folder, config)
    shards = [folder / f"adapter_model.{kind}" for kind in ("safetensors", "bin")]
    found = [path for path in shards if path.is_file()][:1]
    if not found:
        raise ModelNotFoundError(
            f"{folder} holds no adapter_model.safetensors or adapter_model.bin"
        )
    adapter = Checkpoint(folder, config, tuple(found), read_shards(found))
    return _Plan(adapter, base).changes()


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    where = folder / "adapter_config.json"
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"{where}: peft_type is {config.get('peft_type')}; only LORA can be merged"
        )
    advice = "merge it with peft's own merge_and_unload"
    for name, value in sorted(config.items()):
        if value and name not in _KNOWN:
            raise AdapterError(f"{where}: {name} is set, which is not supported; {advice}")
    if config.get("init_lora_weights", True) not in _KNOWN_STARTS:
        raise AdapterError(
            f"{where}: init_lora_weights is {config['init_lora_weights']}, which changes the base "
            f"before training and is not supported; {advice}"
        )
    for name in ("modules_to_save", "target_parameters"):
        value = config.get(name) or []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise AdapterError(f"{where}: {name} is not a list of names")
    for name in ("rank_pattern", "alpha_pattern"):
        _check_patterns(where, name, config.get(name) or {})
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float) or config[name] <= 0:
            raise AdapterError(f"{where}: {name} is {config.get(name)!r}, not a number above 0")


def _check_patterns(where: Path, name: str, patterns: Any) -> None:
    try:
        sound = all(isinstance(v, int | float) and re.compile(k) for k, v in patterns.items())
    except (re.error, AttributeError):
        sound = False
    if not sound:
        raise AdapterError(f"{where}: {name} is not a table of patterns and numbers")


class _Plan:
    """Matches the tensors of an adapter with those of the base."""

    def __init__(self, adapter: Checkpoint, base: Checkpoint) -> None:
        self.adapter, self.base, self.config = adapter, base, adapter.config
        self.found: dict[str, list[Change]] = {}

    def changes(self) -> dict[str, list[Change]]:
        factors: dict[str, dict[str, str]] = {}
        for key in self.adapter.tensors:
            name = key.removeprefix("base_model.model.")
            if match := _FACTOR.match(name):
                factors.setdefault(match["module"], {})[match["which"]] = key
            else:
                self._replace(key, name)
        self._check_saved()
        for module, keys in factors.items():
            self._add(module, keys)
        if not factors and not self.found:
            raise AdapterError(f"{self.adapter.folder} holds no LoRA weights")
        return self.found

    def _replace(self, key: str, name: str) -> None:
        """A tensor trained in full (modules_to_save, a bias, a saved embedding)."""
        for part in ("lora_magnitude_vector", "lora_B.bias", "lora_"):
            if part in name:
                raise AdapterError(f"{self.adapter.folder}: {key} is not supported ({part})")
        module = name.rpartition(".")[0].replace(".modules_to_save", "").replace(".base_layer", "")
        last = module.rpartition(".")[2]
        saved = self.config.get("modules_to_save") or []
        is_bias = name.endswith(".bias") and self.config.get("bias", "none") != "none"
        expected = any(module == m or module.endswith(f".{m}") for m in saved)
        if not (expected or is_bias or last in ("embed_tokens", "lm_head")):
            raise AdapterError(
                f"{self.adapter.folder}: {key} would not be used: it is no LoRA weight and not "
                "named in modules_to_save"
            )
        target = self._base_name(f"{module}.{name.rpartition('.')[2]}")
        if target is None or target in self.found:
            raise self._mismatch(f"it brings {key}, which has no place in the base")
        shapes = self.adapter.tensors[key].shape, self.base.tensors[target].shape
        if shapes[0] != shapes[1]:
            raise self._mismatch(f"its {module} is {shapes[0]} and the base's is {shapes[1]}")
        self.found[target] = [Change(self.adapter, replacement=key)]

    def _check_saved(self) -> None:
        for name in self.config.get("modules_to_save") or []:
            if not any(f".{name}." in f".{target}" for target in self.found):
                raise AdapterError(
                    f"{self.adapter.folder}: modules_to_save names {name}, but the weights lack it"
                )

    def _add(self, module: str, keys: dict[str, str]) -> None:
        embedding = "lora_embedding_A" in keys or "lora_embedding_B" in keys
        prefix = "lora_embedding_" if embedding else "lora_"
        if set(keys) != {f"{prefix}A", f"{prefix}B"}:
            raise AdapterError(f"{self.adapter.folder}: {module} has {', '.join(keys)} alone")
        a, b = keys[f"{prefix}A"], keys[f"{prefix}B"]
        shapes = [self.adapter.tensors[key].shape for key in (a, b)]
        if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1]:
            raise AdapterError(
                f"{self.adapter.folder}: A and B of {module} are {shapes[0]} and {shapes[1]}, "
                "which cannot be multiplied; was the adapter saved whole?"
            )
        target = self._base_name(f"{module}.weight")
        if target is None:
            self._add_fused(module, a, b)
            return
        product = (shapes[1][0], shapes[0][1])
        wanted = self.base.tensors[target].shape
        if (product[::-1] if embedding else product) != wanted:
            raise self._mismatch(f"its change of {module} is {product} and the base's is {wanted}")
        name = f"{module}.weight" if self._is_parameter(f"{module}.weight") else module
        scale = self._scale(name, shapes[0][0])
        self.found.setdefault(target, []).append(
            Change(self.adapter, a=a, b=b, scale=scale, transposed=embedding)
        )

    def _add_fused(self, module: str, a: str, b: str) -> None:
        """One A and one B for all experts of a layer; which weights they change, the sizes tell."""
        match = _FUSED.match(module)
        stem = f"{match['layer']}.block_sparse_moe.experts" if match else ""
        count = self.base.config.get("num_local_experts") or 0
        first = self.base.tensors.get(f"{stem}.0.w1.weight")
        if first is None or not count:
            raise self._mismatch(f"it changes {module}, which the base does not have")
        (n_ff, n_embd), n_ranks = first.shape, self.adapter.tensors[a].shape[0]
        product = (self.adapter.tensors[b].shape[0], self.adapter.tensors[a].shape[1])
        if product == (2 * n_ff, n_embd):
            parameter, parts = "gate_up_proj", {"w1": 0, "w3": n_ff}
        elif product == (n_embd, n_ff):
            parameter, parts = "down_proj", {"w2": 0}
        else:
            raise self._mismatch(
                f"its change of {module} is {product}, which fits no expert weight"
            )
        name = f"{module.removesuffix('.base_layer')}.{parameter}"
        if n_ranks % count:
            raise self._mismatch(f"{name} has {n_ranks} ranks for {count} experts")
        scale = self._scale(name, n_ranks // count)
        for expert in range(count):
            for part, row in parts.items():
                target = f"{stem}.{expert}.{part}.weight"
                change = Change(
                    self.adapter, a=a, b=b, scale=scale, expert=(expert, count), first_row=row
                )
                self.found.setdefault(target, []).append(change)

    def _base_name(self, name: str) -> str | None:
        """The base's name of a weight; Transformers 5 calls block_sparse_moe mlp."""
        for candidate in (name, name.replace(".mlp.gate.", ".block_sparse_moe.gate.")):
            if candidate in self.base.tensors:
                return candidate
        return None

    def _is_parameter(self, name: str) -> bool:
        listed = self.config.get("target_parameters") or []
        return any(name == p or name.endswith(f".{p}") for p in listed)

    def _scale(self, name: str, rank: int) -> float:
        """lora_alpha / r of a module, by the first pattern that matches its name, as in peft."""
        r, alpha = (
            next(
                (v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", name)),
                default,
            )
            for patterns, default in (
                (self.config.get("rank_pattern"), self.config["r"]),
                (self.config.get("alpha_pattern"), self.config["lora_alpha"]),
            )
        )
        if r != rank:
            raise AdapterError(
                f"{self.adapter.folder}: {name} has rank {rank} and adapter_config.json says {r}"
            )
        return float(alpha) / (math.sqrt(r) if self.config.get("use_rslora") else r)

    def _mismatch(self, what: str) -> AdapterError:
        trained = self.config.get("base_model_name_or_path") or "another model"
        return AdapterError(
            f"{self.adapter.folder} does not fit {self.base.folder}: {what}; it was trained on "
            f"{trained}"
        )
