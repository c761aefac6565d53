"""Loading full weights with transformers, LoRA weights with peft, and sharing what is loaded."""

import importlib.util
import json
import logging
import pickle
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtral_rag.engines.hf_folder import ModelFolder
from mixtral_rag.engines.torch_experts import LINEAR_MIXTRAL, mixtral_of_linear_layers
from mixtral_rag.errors import (
    AdapterError,
    MissingExtraError,
    ModelError,
    ModelFileError,
    ModelNotFoundError,
    SettingsError,
)
from mixtral_rag.weights.checkpoint import read_json

DTYPES = ("auto", "bfloat16", "float16", "float32")
QUANTIZATIONS = ("8bit", "4bit")
# What decides whether a folder may run code or reach a network is not for options to change.
_FIXED = ("trust_remote_code", "local_files_only")


@dataclass(frozen=True)
class Loading:
    """How to load a folder; see `TransformersEngine` for the options.

    Raises:
        SettingsError: an option that does not exist.
    """

    dtype: str = "auto"
    quantization: str | None = None
    device: str | None = None
    adapter: str | None = None
    more: str = "{}"
    """More arguments of `from_pretrained`, as JSON."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise SettingsError(
                f"unknown dtype {self.dtype!r} for the engine transformers; choose one of: "
                f"{', '.join(DTYPES)}"
            )
        if self.quantization not in (None, *QUANTIZATIONS):
            raise SettingsError(
                f"unknown quantization {self.quantization!r} for the engine transformers; choose "
                f"one of: {', '.join(QUANTIZATIONS)}"
            )


def options_as_json(options: Mapping[str, Any] | None) -> str:
    """More arguments of `from_pretrained` as text, so that they can be compared.

    Raises:
        SettingsError: one that is fixed, or that has no JSON form.
    """
    for name in _FIXED:
        if options and name in options:
            raise SettingsError(
                f"engine_options cannot set {name}: models run no code of their own"
            )
    try:
        return json.dumps(dict(options or {}), sort_keys=True)
    except TypeError as error:
        raise SettingsError(f"engine_options must be plain values: {error}") from error


_models: "weakref.WeakValueDictionary[tuple[object, ...], Any]" = weakref.WeakValueDictionary()
_models_lock = threading.Lock()


def shared_model(folder: ModelFolder, how: Loading) -> Any:
    """`load_model`, but contexts of any size over one folder share its weights."""
    folder.check_weights()
    files = sorted(f for f in folder.path.iterdir() if f.suffix in (".safetensors", ".bin"))
    stats = tuple((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in files)
    key = (folder.path.resolve(), stats, how)
    with _models_lock:
        model = _models.get(key)
        if model is None:
            model = _models[key] = load_model(folder, how)
        return model


def load_model(folder: ModelFolder, how: Loading) -> Any:
    """The model in `folder` as a torch module, ready to compute.

    Raises:
        MissingExtraError: transformers, torch or peft is not installed.
        SettingsError: an option names what this machine or torch does not have.
        ModelNotFoundError: there are no weights in the folder, or no adapter.
        ModelFileError: the weights are damaged, incomplete or of a model transformers has not.
        AdapterError: the LoRA weights do not fit.
    """
    transformers = load_transformers()
    folder.check_weights()
    adapter = None if how.adapter is None else _adapter_folder(how.adapter)
    arguments = _arguments(folder, how, transformers)
    with _quiet(transformers):
        try:
            model, info = _class_for(folder, how).from_pretrained(
                str(folder.path), **arguments, local_files_only=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
        except _loading_errors() as error:
            raise _explained(error, folder.path, how) from error
        if missing := sorted(info["missing_keys"]):  # transformers would fill it with noise
            raise ModelFileError(
                f"{folder.path} lacks {len(missing)} of the model's tensors, such as {missing[0]}; "
                "download it again"
            )
        if adapter is not None:
            model = _adapted(model, adapter, merge=how.quantization is None)
    return model.eval()


def load_transformers() -> Any:
    """The `transformers` module, checked to have torch.

    Raises:
        MissingExtraError: one of the two is not installed.
    """
    for name in ("torch", "transformers"):
        try:
            module = __import__(name)
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or name, "transformers") from error
    return module


def _arguments(folder: ModelFolder, how: Loading, transformers: Any) -> dict[str, Any]:
    import torch

    device = how.device or _best_device()
    _check_device(device)
    arguments: dict[str, Any] = {"dtype": _dtype(folder, how.dtype, device)}
    if device != "cpu":
        if importlib.util.find_spec("accelerate") is None:
            raise MissingExtraError("accelerate", "transformers")
        arguments["device_map"] = "auto" if device == "auto" else {"": device}
    if how.quantization is not None:
        _check_bitsandbytes()
        settings = (
            {"load_in_8bit": True}
            if how.quantization == "8bit"
            else {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_compute_dtype": torch.bfloat16,
            }
        )
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            **settings, llm_int8_skip_modules=["lm_head", "gate"]
        )
        arguments.setdefault("device_map", {"": device})
    return arguments | dict(json.loads(how.more))


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_device(device: str) -> None:
    """Refuse what torch does not know, or this machine does not have."""
    import torch

    if device == "auto":
        return
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise SettingsError(
            f"device {device!r} cannot be used: {reason}; leave device out, or choose cpu"
        ) from error


def _dtype(folder: ModelFolder, name: str, device: str) -> Any:
    import torch

    if name != "auto":
        return getattr(torch, name)
    stored = folder.config.get("dtype") or folder.config.get("torch_dtype")
    # In float16 a processor takes about four times as long for a prompt.
    return torch.bfloat16 if device == "cpu" and stored == "float16" else "auto"


def _check_bitsandbytes() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingsError(
            "quantization needs bitsandbytes, which is not installed; run: pip install bitsandbytes"
        )
    # It warns of every matrix it multiplies that it computes in float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def _class_for(folder: ModelFolder, how: Loading) -> Any:
    import transformers

    if how.quantization is not None and folder.is_mixtral:
        return mixtral_of_linear_layers()
    return transformers.AutoModelForCausalLM


def _adapter_folder(adapter: str) -> Path:
    folder = Path(adapter).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise ModelNotFoundError(
            f"{folder} holds no LoRA weights (there is no adapter_config.json)"
            if folder.is_dir()
            else f"no such folder: {folder}; give the folder with adapter_config.json"
        )
    read_json(folder / "adapter_config.json")
    return folder


def _adapted(model: Any, folder: Path, *, merge: bool) -> Any:
    """`model` with LoRA weights: added to its own once, where those are not quantised."""
    try:
        import peft
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "peft", "transformers") from error
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        # Dropout is for training; peft refuses experts that were trained with it.
        config.lora_dropout = 0.0
        if type(model).__name__ == LINEAR_MIXTRAL:  # else peft looks for experts in one tensor
            model.config.model_type = LINEAR_MIXTRAL
        adapted = peft.PeftModel.from_pretrained(model, str(folder), config=config)
        return adapted.merge_and_unload() if merge else adapted
    except _loading_errors() as error:
        raise AdapterError(
            f"the LoRA weights in {folder} do not fit {model.config.name_or_path}: {_line(error)}"
        ) from error


def _explained(error: BaseException, folder: Path, how: Loading) -> ModelError | SettingsError:
    if isinstance(error, TypeError) and how.more != "{}":
        return SettingsError(f"engine_options do not suit {folder}: {_line(error)}")
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return ModelError(
            f"there is not enough memory for {folder}; choose quantization 4bit, device auto, or "
            "the engine llamacpp with a GGUF file"
        )
    return ModelFileError(f"transformers cannot load {folder}: {_line(error)}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _loading_errors() -> tuple[type[Exception], ...]:
    """What transformers and peft raise over files they cannot use; they document none of it."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (MemoryError, RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError,
            ImportError, EOFError, AssertionError, pickle.UnpicklingError, SafetensorError,
            StrictDataclassError)  # fmt: skip


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars on standard error."""
    settings = transformers.utils.logging
    was_enabled = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            settings.enable_progress_bar()
