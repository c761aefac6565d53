"""What a Hugging Face folder says of its model, read without loading weights."""

import functools
from pathlib import Path
from typing import Any

from mixtral_rag.engines import NATIVE_CTX
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
