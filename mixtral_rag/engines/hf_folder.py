"""What a Hugging Face folder says of its model, read without loading weights."""

import functools
from pathlib import Path
from typing import Any

from mixtral_rag.engines import NATIVE_CTX, check_n_ctx
from mixtral_rag.engines.hf_vocab import FolderVocabulary
from mixtral_rag.errors import ModelFileError, ModelNotFoundError
from mixtral_rag.weights.checkpoint import read_json
from mixtral_rag.weights.vocabulary import read_chat_template


class ModelFolder:
    """A folder of full weights: config.json, a tokenizer and shards; nothing is read at once.

    Args:
        path: the folder.
        extra: the extra of this package that brings the libraries for its tokenizer.

    The properties below may raise:
        ModelNotFoundError: no such folder, or a file is missing in it.
        ModelFileError: not a folder of full weights, or a file in it is damaged.
    """

    def __init__(self, path: str, *, extra: str) -> None:
        self.path, self._extra = Path(path).expanduser(), extra

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        if self.path.suffix == ".gguf" or self.path.is_file():
            raise ModelFileError(
                f"{self.path} is a file; this engine loads folders of full weights, "
                "and the engine llamacpp GGUF files"
            )
        if not self.path.is_dir():
            raise ModelNotFoundError(
                f"no such folder: {self.path}; give the folder with config.json"
            )
        if (self.path / "adapter_config.json").is_file() and not self._file("config.json"):
            raise ModelFileError(
                f"{self.path} holds LoRA weights; give it as adapter, and the full weights that "
                "they belong to as model"
            )
        return read_json(self.path / "config.json")

    @functools.cached_property
    def vocabulary(self) -> FolderVocabulary:
        """The tokenizer, loaded on first use."""
        _ = self.config  # so that a wrong path is told as such
        return FolderVocabulary(self.path, extra=self._extra)

    @functools.cached_property
    def chat_template(self) -> str | None:
        """The model's own Jinja chat template."""
        _ = self.config
        return read_chat_template(self.path)

    @property
    def is_mixtral(self) -> bool:
        """Whether this is a Mixtral."""
        return self.config.get("model_type") == "mixtral"

    @property
    def is_instruct(self) -> bool:
        """Whether name or template say the model was tuned to follow instructions."""
        said = self.model_name.lower()
        return "instruct" in said or "chat" in said or self.chat_template is not None

    @property
    def model_name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def native_ctx(self) -> int:
        """Tokens of context to use unless asked otherwise: what it was trained for, to 32,768."""
        trained = self.config.get("max_position_embeddings")
        return min(trained if isinstance(trained, int) and trained > 0 else NATIVE_CTX, NATIVE_CTX)

    def check_weights(self) -> None:
        """Raise `ModelNotFoundError` when there is a config and no weights."""
        _ = self.config
        if not any((*self.path.glob("*.safetensors"), *self.path.glob("pytorch_model*.bin"))):
            raise ModelNotFoundError(
                f"{self.path} has config.json and no weights (model*.safetensors or "
                "pytorch_model*.bin); download it again"
            )

    def _file(self, name: str) -> bool:
        return (self.path / name).is_file()


class OverFolder:
    """What engines over a folder of full weights tell of their model.

    Args:
        model: the folder.
        n_ctx: context window in tokens; None takes the model's own, at most 32,768.
        extra: the extra of this package that brings the engine's libraries.
    """

    takes_messages, takes_pattern = False, True

    def __init__(self, model: str, n_ctx: int | None, *, extra: str) -> None:
        check_n_ctx(n_ctx)
        self._folder, self._wanted_ctx = ModelFolder(model, extra=extra), n_ctx

    @property
    def tokenizer(self) -> FolderVocabulary:
        """The model's vocabulary; loads no weights."""
        return self._folder.vocabulary

    @functools.cached_property
    def n_ctx(self) -> int:
        """Context window in tokens."""
        return self._folder.native_ctx if self._wanted_ctx is None else self._wanted_ctx

    @property
    def is_mixtral(self) -> bool:
        """Whether prompts take the Mixtral instruct format."""
        return self._folder.is_mixtral

    @property
    def is_instruct(self) -> bool:
        """Whether the model was tuned to follow instructions."""
        return self._folder.is_instruct

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja chat template."""
        return self._folder.chat_template

    @property
    def model_name(self) -> str:
        """The folder's name."""
        return self._folder.model_name
