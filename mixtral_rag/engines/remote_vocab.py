"""The vocabulary a user names for a model that is on a server."""

import functools
from pathlib import Path

from mixtral_rag.engines.hf_folder import ModelFolder
from mixtral_rag.engines.hf_vocab import FolderVocabulary
from mixtral_rag.errors import ModelNotFoundError
from mixtral_rag.tokenizer import Tokenizer
from mixtral_rag.weights.gguf import GGUFHeader, read_header
from mixtral_rag.weights.vocabulary import read_chat_template


class GivenVocabulary:
    """A GGUF file, a Hugging Face folder, or a SentencePiece file; read on first use.

    The properties may raise:
        ModelNotFoundError: no such file, or no tokenizer in the folder.
        ModelFileError: it is damaged, or of a kind that cannot be read.
        MissingExtraError: a library for it is not installed.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path).expanduser()

    def __str__(self) -> str:
        return str(self._path)

    @functools.cached_property
    def _header(self) -> GGUFHeader | None:
        if not self._path.exists():
            raise ModelNotFoundError(f"no such file or folder for tokenizer: {self._path}")
        if self._path.is_dir():
            return None
        with self._path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        return read_header(self._path) if is_gguf else None

    @functools.cached_property
    def _folder(self) -> ModelFolder | None:
        """The folder, where it also has the config of a model."""
        is_model = (self._path / "config.json").is_file()
        return ModelFolder(str(self._path), extra="remote") if is_model else None

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary itself."""
        if self._header is not None:
            from mixtral_rag.engines.llama_vocab import LlamaVocabulary

            return LlamaVocabulary(self._header)
        return FolderVocabulary(self._path, extra="remote")

    @property
    def is_mixtral(self) -> bool:
        """Whether it says of itself that it is a Mixtral's."""
        known = self._header or self._folder
        return known is not None and known.is_mixtral

    @property
    def is_instruct(self) -> bool:
        """Whether it says of itself that it is an instruct model's."""
        known = self._header or self._folder
        return known.is_instruct if known is not None else self.chat_template is not None

    @functools.cached_property
    def chat_template(self) -> str | None:
        """The Jinja chat template in it."""
        if self._header is not None:
            return self._header.chat_template
        return read_chat_template(self._path) if self._path.is_dir() else None
