"""Weights as Hugging Face keeps them: a folder with a config and shards, read a few rows at a time.

Shards are safetensors or PyTorch archives (`pytorch_model*.bin`); an index names the shard of each
tensor. An adapter's folder is read in the same way.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixtral_rag.errors import MissingExtraError, ModelFileError, ModelNotFoundError
from mixtral_rag.weights.safetensors import DTYPES, Tensor, read_header

_BLOCK = 32 << 20  # bytes of float32 in memory at a time


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder, by name, in the order of the shards; `config` is its config.json."""

    folder: Path
    config: dict[str, Any] = field(repr=False)
    shards: tuple[Path, ...]
    tensors: dict[str, Tensor] = field(repr=False)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """Rows of a tensor as a torch tensor of the type it is stored in."""
        tensor = self.tensors[name]
        stop = tensor.n_rows if stop is None else stop
        if tensor.offset < 0:
            stored = _archive(tensor.file)[name]
            return stored[start:stop].clone() if tensor.shape else stored.reshape(1).clone()
        torch = load_torch()
        width = tensor.row_elements * DTYPES[tensor.dtype]
        data = bytearray((stop - start) * width)
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(tensor.offset + start * width)
            _fill(file, data, tensor.file)
        values = torch.frombuffer(data, dtype=torch_dtype(tensor.dtype)) if data else torch.empty(0)
        return values.reshape(stop - start if tensor.shape else 1, *tensor.shape[1:])

    def blocks(self, name: str) -> Iterator[tuple[int, Any]]:
        """All rows of a tensor, in blocks of a few megabytes, each with its first row's number."""
        tensor = self.tensors[name]
        step = max(1, _BLOCK // (4 * max(1, tensor.row_elements)))
        for start in range(0, tensor.n_rows, step):
            yield start, self.rows(name, start, min(start + step, tensor.n_rows))


def open_checkpoint(folder: Path) -> Checkpoint:
    """The full weights in `folder`.

    Raises:
        ModelNotFoundError: no such folder, or no weights in it.
        ModelFileError: a shard or a tensor is missing or damaged, or the weights are quantised.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"no such folder: {folder}; give the folder with config.json")
    config = read_json(folder / "config.json")
    if "quantization_config" in config:
        raise ModelFileError(
            f"{folder} holds quantised weights (quantization_config); take the full ones"
        )
    index, shards = _shards(folder)
    tensors = read_shards(shards)
    missing = sorted(set(index) - tensors.keys())
    if missing:
        raise ModelFileError(
            f"{folder}: {index[missing[0]]} lacks {missing[0]}, which the index says it holds; "
            "download it again"
        )
    return Checkpoint(folder, config, tuple(shards), tensors)


def _shards(folder: Path) -> tuple[dict[str, str], list[Path]]:
    """What the index says, if there is one, and the files in order."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index_file = folder / f"{single}.index.json"
        if index_file.exists():
            index = read_json(index_file).get("weight_map")
            if not isinstance(index, dict) or not all(isinstance(v, str) for v in index.values()):
                raise ModelFileError(f"{index_file} has no weight_map; download it again")
            names = sorted(set(index.values()))
            absent = [n for n in names if Path(n).name != n or not (folder / n).is_file()]
            if absent:
                raise ModelFileError(
                    f"{folder} lacks {absent[0]} ({len(absent)} of {len(names)} shards are "
                    "missing); download it again"
                )
            return index, [folder / n for n in names]
        if (folder / single).is_file():
            return {}, [folder / single]
    raise ModelNotFoundError(
        f"{folder} holds no model.safetensors, pytorch_model.bin or index of either"
    )


def read_shards(shards: list[Path]) -> dict[str, Tensor]:
    """The tensors of all `shards`, by name."""
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        found = read_header(shard) if shard.suffix == ".safetensors" else _archive_tensors(shard)
        for tensor in found:
            if tensor.name in tensors:
                raise ModelFileError(
                    f"{shard} and {tensors[tensor.name].file} both hold {tensor.name}"
                )
            tensors[tensor.name] = tensor
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelFileError: not readable, or no JSON object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path.parent} has no {path.name}") from None
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelFileError(f"{path} is not JSON; download it again") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is not a JSON object; download it again")
    return value


def load_torch() -> Any:
    """The `torch` module.

    Raises:
        MissingExtraError: torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "weights") from error
    return torch


def torch_dtype(name: str) -> Any:
    """The torch type of a safetensors type name."""
    torch = load_torch()
    names = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
             "U8": "uint8", "BOOL": "bool"}  # fmt: skip
    default = name.replace("F", "float").replace("I", "int")
    return getattr(torch, names.get(name, default))


def stays_finite(values: Any, dtype: Any) -> bool:
    """Whether all values are numbers within the range of a torch type; one pass over them."""
    torch = load_torch()
    if not values.numel():
        return True
    low, high = torch.aminmax(values)
    limit = torch.finfo(dtype).max
    return bool(-limit <= low.item() and high.item() <= limit)  # false for what is not a number


def _archive(path: Path) -> dict[str, Any]:
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise ModelNotFoundError(f"no such file: {path}") from None
    return _load_archive(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2)  # the experts of a layer may lie in two shards
def _load_archive(path: Path, _mtime_ns: int, _size: int) -> dict[str, Any]:
    """A PyTorch archive, mapped where its format allows; only tensors are unpickled."""
    import pickle
    import zipfile

    torch = load_torch()
    try:
        mapped = zipfile.is_zipfile(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ModelFileError(f"{path} is not a PyTorch file of tensors: {reason}") from error
    if not isinstance(loaded, dict) or not all(torch.is_tensor(v) for v in loaded.values()):
        raise ModelFileError(f"{path} holds more than named tensors")
    return loaded


def _archive_tensors(path: Path) -> list[Tensor]:
    names = {torch_dtype(name): name for name in DTYPES}
    tensors = []
    for name, value in _archive(path).items():
        if value.dtype not in names:
            raise ModelFileError(f"{path}: {name} has the type {value.dtype}, not supported")
        tensors.append(Tensor(name, names[value.dtype], tuple(value.shape), path))
    return tensors


def _fill(file: Any, data: bytearray, path: Path) -> None:
    view = memoryview(data)
    while view:
        n = file.readinto(view)
        if not n:
            raise ModelFileError(f"{path} became shorter while it was read")
        view = view[n:]
