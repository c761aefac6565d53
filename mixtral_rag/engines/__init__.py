"""Engines: token IDs in, pieces of text out. They know nothing of LangChain or documents."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from mixtral_rag.errors import SettingsError
from mixtral_rag.tokenizer import Tokenizer
from mixtral_rag.types import Piece, SamplingOptions

ENGINES = ("llamacpp",)


class Interrupted(Exception):
    """The computation was stopped on request; an engine turns it into a finish reason."""


class Cancellation:
    """A switch another thread may throw to end a generation, also during its prefill."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._listeners: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` has been called."""
        return self._cancelled

    def cancel(self) -> None:
        """End the generation at the next possible point; calling it again does nothing."""
        with self._lock:
            self._cancelled = True
            for listener in self._listeners:
                listener()

    @contextmanager
    def calling(self, listener: Callable[[], None]) -> Iterator[None]:
        """Within the block, call `listener` when cancelled, at once if it already is.

        When the block is left, the listener is neither running nor called again.
        """
        with self._lock:
            self._listeners.append(listener)
            if self._cancelled:
                listener()
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)


class Engine(Protocol):
    """What the LangChain faces need of an engine."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary; available without loading weights."""
        ...

    @property
    def n_ctx(self) -> int:
        """Context window in tokens."""
        ...

    @property
    def is_mixtral(self) -> bool:
        """Whether prompts take the Mixtral instruct format."""
        ...

    @property
    def is_instruct(self) -> bool:
        """Whether the model was tuned to follow instructions."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja chat template."""
        ...

    @property
    def model_name(self) -> str:
        """A short name of the model, for metadata."""
        ...

    def generate(
        self,
        prompt: Sequence[int],
        options: SamplingOptions,
        *,
        cancel: Cancellation | None = None,
    ) -> Iterator[Piece]:
        """Generate from token IDs; the last piece carries finish reason and usage.

        Raises:
            ContextError: prompt and answer do not fit the context; nothing was computed.
            ModelError: the model cannot be loaded, or the engine failed.
        """
        ...


_engines: "weakref.WeakValueDictionary[tuple[object, ...], Any]" = weakref.WeakValueDictionary()
_engines_lock = threading.Lock()


def open_engine(name: str, model: str, **options: Any) -> Engine:
    """The engine `name` over `model`; equal arguments share one engine while it is in use.

    Nothing is read from disk until the engine is first asked for something.

    Raises:
        SettingsError: there is no engine of that name.
    """
    if name not in ENGINES:
        raise SettingsError(f"unknown engine {name!r}; choose one of: {', '.join(ENGINES)}")
    from mixtral_rag.engines.llamacpp import LlamaCppEngine

    key = (name, model, *sorted(options.items()))
    with _engines_lock:
        engine: Engine | None = _engines.get(key)
        if engine is None:
            engine = _engines[key] = LlamaCppEngine(model, **options)
        return engine
