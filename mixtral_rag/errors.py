"""Every error this package raises on purpose.

    MixtralRagError
    ├── SettingsError            an option, environment variable or settings file is wrong
    ├── MissingExtraError        an optional package is needed; the message says what to install
    ├── LockedError              another process is writing to the same store
    ├── BusyError                the server has more to do than it may put off
    ├── PromptError              a conversation that cannot be rendered
    │   └── TemplateError        a model's own chat template failed
    ├── ModelError               a model file or engine
    │   ├── ModelNotFoundError   no such file, or no model chosen
    │   ├── ModelFileError       not a GGUF, truncated, or in a form the engine cannot load
    │   ├── AdapterError         LoRA weights that cannot be merged into the given base
    │   ├── ContextError         prompt and answer together exceed the context window
    │   ├── ServerError          a model server cannot be reached, or refuses
    │   └── GenerationError      the engine failed while computing
    ├── HubError                 a model hub cannot be reached, or lacks what was asked for
    │   ├── HubAccessError       the hub wants a token, or refuses the one it got
    │   └── ChecksumError        what arrived is not what the hub announced
    ├── DocumentError            one document; ingest records it and goes on
    │   ├── UnreadableError      missing, not permitted, damaged, or its reader crashed
    │   ├── EncryptedError       needs a password
    │   └── UnsupportedError     no reader for this kind of file
    └── StoreError               the store of ingested documents
        ├── EmptyStoreError      nothing has been ingested
        ├── EmbedderMismatchError  the store was made with another embedder
        └── NoDocumentsError     the given paths hold no document

The command line prints `str(error)` and exits with `error.exit_code`.
"""


class MixtralRagError(Exception):
    """Base of every error of this package; its text is one line for a person to read."""

    exit_code = 1


class SettingsError(MixtralRagError):
    """An option, environment variable or settings file is wrong."""

    exit_code = 2


class MissingExtraError(MixtralRagError):
    """An optional package is not installed.

    Args:
        package: the import or distribution that is missing.
        extra: the extra of this package that brings it.
    """

    exit_code = 2

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"{package} is not installed; run: pip install 'mixtral_rag[{extra}]'",
        )


class LockedError(MixtralRagError):
    """Another process is writing to the same store."""

    exit_code = 3


class BusyError(MixtralRagError):
    """The server has more to do than it may put off.

    Attributes:
        retry_after: seconds after which it is worth asking again.
        is_own_share: whether it is the asking client that has too much waiting.
    """

    def __init__(self, text: str, *, retry_after: int, is_own_share: bool = False) -> None:
        self.retry_after, self.is_own_share = retry_after, is_own_share
        super().__init__(text)


class PromptError(MixtralRagError):
    """A conversation that cannot be rendered."""


class TemplateError(PromptError):
    """A model's own chat template failed or asked for something not allowed."""


class ModelError(MixtralRagError):
    """A model file or engine."""


class ModelNotFoundError(ModelError):
    """No such model file, or no model was chosen."""

    exit_code = 2


class ModelFileError(ModelError):
    """Not a GGUF, truncated, or in a form the engine cannot load."""


class AdapterError(ModelError):
    """LoRA weights that cannot be merged into the given base."""


class ContextError(ModelError):
    """Prompt and answer together exceed the context window.

    Attributes:
        prompt_tokens: tokens of the rendered prompt.
        max_tokens: tokens reserved for the answer.
        n_ctx: size of the context window in tokens.
    """

    def __init__(self, *, prompt_tokens: int, max_tokens: int, n_ctx: int) -> None:
        self.prompt_tokens, self.max_tokens, self.n_ctx = prompt_tokens, max_tokens, n_ctx
        over = prompt_tokens + max_tokens - n_ctx
        super().__init__(
            f"the prompt has {prompt_tokens:,} tokens and the answer may take {max_tokens:,}, "
            f"which is {over:,} more than the context of {n_ctx:,}; "
            "shorten the prompt, lower max_tokens or raise n_ctx",
        )


class ServerError(ModelError):
    """A model server cannot be reached, is no such server, or refuses what was asked."""


class GenerationError(ModelError):
    """The engine failed while computing."""


class HubError(MixtralRagError):
    """A model hub cannot be reached, or lacks what was asked for."""


class HubAccessError(HubError):
    """The hub wants a token, or refuses the one it got."""


class ChecksumError(HubError):
    """What arrived is not what the hub announced."""


class DocumentError(MixtralRagError):
    """One document could not be read; the text names the file."""


class UnreadableError(DocumentError):
    """Missing, not permitted, damaged, or its reader crashed."""


class EncryptedError(DocumentError):
    """The document needs a password."""


class UnsupportedError(DocumentError):
    """There is no reader for this kind of file."""


class StoreError(MixtralRagError):
    """The store of ingested documents."""


class EmptyStoreError(StoreError):
    """Nothing has been ingested yet into the store at the given folder."""

    exit_code = 2

    def __init__(self, folder: object) -> None:
        super().__init__(f"the store {folder} is empty; first run: mixtral-rag ingest FOLDER")


class EmbedderMismatchError(StoreError):
    """The store was made with another embedder than the one given."""

    exit_code = 2


class NoDocumentsError(StoreError):
    """The given paths hold no document this package can read."""

    exit_code = 2
