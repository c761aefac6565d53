"""Engines: token IDs in, pieces of text out. They know nothing of LangChain or documents."""

import importlib
import inspect
import json
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from mixtral_rag.errors import ContextError, SettingsError
from mixtral_rag.tokenizer import Tokenizer
from mixtral_rag.types import Message, Piece, SamplingOptions

# The module of each engine and the class in it; a module loads its library on first use.
ENGINES = {
    "llamacpp": "LlamaCppEngine",
    "vllm": "VllmEngine",
    "transformers": "TransformersEngine",
    "remote": "RemoteEngine",
}

NATIVE_CTX, LARGEST_CTX = 32_768, 131_072  # tokens: the most unless asked for, and the most at all

Prompt = Sequence[int] | Sequence[Message] | str
"""Token IDs; an engine with `takes_messages` gets a conversation or plain text instead."""


class PassagePrompt(list[int]):
    """Token IDs with passages that may be computed each on its own, not having seen the others.

    Args:
        ids: all tokens.
        spans: first token and end of each passage, one right after the other.
    """

    def __init__(self, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> None:
        super().__init__(ids)
        self.spans = tuple(spans)


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


_stopped_by: "ContextVar[Cancellation | None]" = ContextVar("stopped_by", default=None)


@contextmanager
def stopped_by(cancel: Cancellation) -> Iterator[None]:
    """Within the block, `cancel` ends what this thread generates through LangChain's methods."""
    token = _stopped_by.set(cancel)
    try:
        yield
    finally:
        _stopped_by.reset(token)


def cancellation() -> Cancellation:
    """The switch of the `stopped_by` around, else a new one."""
    return _stopped_by.get() or Cancellation()


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

    @property
    def takes_pattern(self) -> bool:
        """Whether an answer can be held to a regular expression."""
        ...

    @property
    def takes_messages(self) -> bool:
        """Whether prompts are conversations or text, because no token IDs can be sent."""
        ...

    @property
    def concurrency(self) -> int:
        """How many generations are worth running at the same time."""
        ...

    def generate(
        self,
        prompt: Prompt,
        options: SamplingOptions,
        *,
        cancel: Cancellation | None = None,
        whole: bool = False,
    ) -> Iterator[Piece]:
        """Generate from a prompt; the last piece carries finish reason and usage.

        Args:
            prompt: token IDs, unless `takes_messages`.
            options: how to choose tokens, and when to end.
            cancel: ends the generation when thrown, also from another thread.
            whole: the caller wants the text at once; an engine may then give few large pieces.

        Raises:
            SettingsError: an option this engine cannot serve.
            ContextError: prompt and answer do not fit the context; nothing was computed.
            ModelError: the model cannot be loaded, or the engine failed.
        """
        ...


def check_n_ctx(n_ctx: int | None) -> None:
    """Raise `SettingsError` for a context window that no engine offers."""
    if n_ctx is not None and not 0 < n_ctx <= LARGEST_CTX:
        raise SettingsError(f"n_ctx is {n_ctx:,}; it must be from 1 to {LARGEST_CTX:,}")


def check_prompt(prompt: Prompt, options: SamplingOptions, n_ctx: int) -> tuple[list[int], int]:
    """The token IDs of a prompt, and how many tokens may follow.

    Raises:
        SettingsError: the prompt is empty, or no token IDs.
        ContextError: prompt and answer do not fit a window of `n_ctx` tokens.
    """
    ids = [i for i in prompt if isinstance(i, int)]
    if not ids or len(ids) < len(prompt):
        raise SettingsError("the prompt is empty" if not prompt else "token IDs are needed here")
    room, wanted = n_ctx - len(ids), options.max_tokens
    if room < 1 or (wanted is not None and wanted > room):
        raise ContextError(prompt_tokens=len(ids), max_tokens=wanted or 1, n_ctx=n_ctx)
    return ids, room if wanted is None else wanted


_engines: "weakref.WeakValueDictionary[tuple[object, ...], Any]" = weakref.WeakValueDictionary()
_engines_lock = threading.Lock()


def open_engine(name: str, model: str, **options: Any) -> Engine:
    """The engine `name` over `model`; equal arguments share one engine while it is in use.

    Nothing is read from disk until the engine is first asked for something.

    Args:
        name: one of `ENGINES`.
        model: what the engine loads: a file, a folder, or the name a server gives the model.
        options: keyword arguments of the engine, only those that differ from its defaults.

    Raises:
        SettingsError: there is no engine of that name, or it has no such option.
    """
    kind = _engine_class(name)
    for option in options:
        if option not in _options_of(kind):
            owners = [e for e in ENGINES if option in _options_of(_engine_class(e))]
            raise SettingsError(
                f"{option} is an option of the engine {' and '.join(owners)}, not of {name}"
            )
    frozen = json.dumps(options, sort_keys=True, default=str)
    with _engines_lock:
        engine: Engine | None = _engines.get((name, model, frozen))
        if engine is None:
            engine = _engines[name, model, frozen] = kind(model, **options)
        return engine


def _engine_class(name: str) -> Any:
    if name not in ENGINES:
        raise SettingsError(f"unknown engine {name!r}; choose one of: {', '.join(ENGINES)}")
    return getattr(importlib.import_module(f"mixtral_rag.engines.{name}"), ENGINES[name])


def _options_of(kind: Any) -> list[str]:
    parameters = inspect.signature(kind).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
