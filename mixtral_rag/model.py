"""What `ChineseMixtral` and `ChatChineseMixtral` share: their options and the way to an engine."""

import asyncio
import dataclasses
import difflib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from langchain_core.language_models.base import LangSmithParams
from pydantic import BaseModel, Field, PrivateAttr, model_validator

from mixtral_rag.engines import Cancellation, Engine, open_engine
from mixtral_rag.errors import MixtralRagError, PromptError, SettingsError, TemplateError
from mixtral_rag.prompts import merge_turns, neutralise, render, render_raw
from mixtral_rag.templates import render_template
from mixtral_rag.types import Message, Piece, SamplingOptions
from mixtral_rag.weights.library import locate

SAMPLING = tuple(f.name for f in dataclasses.fields(SamplingOptions))
_LOADING = ("n_ctx", "n_gpu_layers", "n_threads", "n_batch", "kv_type", "mmap")
# Sent along by LangChain for tracing; they say nothing to a model.
_IGNORED = frozenset({"ls_structured_output_format", "stream_usage"})
# Options that LangChain gives to any chat model, and that mean nothing to a local one.
_STANDARD = frozenset({"api_key", "base_url", "max_retries", "streaming", "timeout"})


class MixtralModel(BaseModel):
    """Options of the model faces. Making one is cheap: the weights load on first use."""

    model: str
    """Path of a GGUF file, or the name of a pulled model, such as `chinese-mixtral-instruct`."""
    engine: str = "llamacpp"
    """What runs the model."""

    n_ctx: int | None = None
    """Context window in tokens, to 131,072; None takes the model's own, at most 32,768."""
    n_gpu_layers: int = -1
    """Layers to put on the GPU, -1 for all that fit the build."""
    n_threads: int | None = None
    """CPU threads; None takes the usable cores."""
    n_batch: int = 512
    """Most prompt tokens computed in one step."""
    kv_type: str = "f16"
    """Type of the KV cache; q8_0 takes half the memory of f16."""
    mmap: bool = True
    """Map the model file instead of reading it into memory."""

    temperature: float = 0.2
    """0 takes the most likely token; higher is more varied."""
    top_k: int = 40
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 0.9
    """Keep the smallest set of tokens with at least this probability."""
    min_p: float = 0.0
    """Drop tokens below this share of the best one's probability."""
    repeat_penalty: float = 1.1
    """Divide the logits of recent tokens by this."""
    repeat_last_n: int = 64
    """How many recent tokens count, prompt included."""
    seed: int | None = None
    """Random seed; None for a fresh one each time."""
    max_tokens: int | None = 512
    """Most tokens to generate; None fills the context window."""
    stop: list[str] = Field(default_factory=list)
    """Texts that end the generation, beside those given with a call."""

    instruct: bool | None = None
    """Whether to use the instruct format; None tells by the model file."""
    keep_markers: bool = False
    """Leave `[INST]` and `[/INST]` inside messages as they are; only for text you trust."""

    _engine: Engine = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        """Refuse options that do not exist: LangChain's base classes would ignore them."""
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields and name not in _STANDARD:
                near = difflib.get_close_matches(name, cls.model_fields, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise SettingsError(f"{cls.__name__} has no option {name!r}{hint}")
        return values

    def model_post_init(self, context: Any, /) -> None:
        """Find or make the shared engine (no file is opened) and check the sampling options."""
        super().model_post_init(context)
        self._engine = open_engine(
            self.engine,
            str(locate(self.model)),
            **{name: getattr(self, name) for name in _LOADING},
        )
        self._options(None, {})

    @property
    def n_ctx_used(self) -> int:
        """The context window in effect, in tokens."""
        return self._engine.n_ctx

    def render_messages(self, messages: Sequence[Message]) -> list[int]:
        """Token IDs of a conversation, exactly as the engine will get them.

        Raises:
            PromptError: the conversation cannot be rendered for this model.
        """
        engine = self._engine
        template = engine.chat_template
        # Some fine-tunes of Mixtral were taught another format, such as ChatML.
        if engine.is_mixtral and (template is None or "[INST]" in template):
            return render(messages, engine.tokenizer, keep_markers=self.keep_markers)
        if template is None:
            raise PromptError(f"{self.model} has no chat template; it can only continue raw text")
        if not messages:
            raise PromptError("a conversation needs at least one message")
        if "[INST]" in template and not self.keep_markers:
            messages = [Message(m.role, neutralise(m.content)) for m in messages]
        try:
            return render_template(messages, engine.tokenizer, template)
        except TemplateError:  # many templates refuse a system turn or two turns of one role
            return render_template(merge_turns(messages), engine.tokenizer, template)

    def _render_text(self, text: str) -> list[int]:
        engine = self._engine
        instruct = engine.is_instruct if self.instruct is None else self.instruct
        if instruct:
            return self.render_messages([Message("user", text)])
        return render_raw(text, engine.tokenizer)

    def _options(self, stop: list[str] | None, call: dict[str, Any]) -> SamplingOptions:
        unknown = sorted(call.keys() - set(SAMPLING) - _IGNORED)
        if unknown:
            raise SettingsError(
                f"unknown option {unknown[0]!r} for a call; known are: {', '.join(SAMPLING)}"
            )
        values = {name: getattr(self, name) for name in SAMPLING}
        values |= {name: call[name] for name in SAMPLING if name in call}
        if isinstance(stop, str) or isinstance(values["stop"], str):
            raise SettingsError("stop must be a list of texts, not one text")
        values["stop"] = tuple(dict.fromkeys([*values["stop"], *(stop or [])]))
        return SamplingOptions(**values)

    def _identity(self) -> dict[str, Any]:
        """Everything that can change an answer: the key of LangChain's caches."""
        names = ("model", "engine", "n_ctx", "kv_type", "instruct", "keep_markers", *SAMPLING)
        return {name: getattr(self, name) for name in names}

    def _ls_params(self, stop: list[str] | None, call: dict[str, Any]) -> LangSmithParams:
        """What tracing tools show; a call's own options come before the object's."""
        max_tokens = call.get("max_tokens", self.max_tokens)
        params = LangSmithParams(
            ls_provider="mixtral_rag",
            ls_model_name=call.get("model", Path(self.model).name),
            ls_temperature=call.get("temperature", self.temperature),
        )
        if max_tokens is not None:
            params["ls_max_tokens"] = max_tokens
        if stops := [*self.stop, *(stop or [])]:
            params["ls_stop"] = stops
        return params

    def _pieces(
        self,
        ids: list[int],
        options: SamplingOptions,
        *,
        is_turn: bool = True,
        cancel: Cancellation | None = None,
    ) -> Iterator[Piece]:
        """Generate; the space that SentencePiece puts before every text is dropped from a turn."""
        at_start = is_turn and self._engine.tokenizer.adds_space_prefix
        for piece in self._engine.generate(ids, options, cancel=cancel):
            if at_start and piece.text:
                at_start = False
                piece = dataclasses.replace(piece, text=piece.text.removeprefix(" "))
            if piece.text or piece.finish_reason:
                yield piece

    async def _apieces(
        self, ids: list[int], options: SamplingOptions, *, is_turn: bool = True
    ) -> AsyncIterator[Piece]:
        """`_pieces` from a thread; leaving early or cancelling the task stops the engine."""
        loop, cancel = asyncio.get_running_loop(), Cancellation()
        queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()

        def put(item: Piece | BaseException | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            try:
                for piece in self._pieces(ids, options, is_turn=is_turn, cancel=cancel):
                    put(piece)
            except BaseException as error:  # noqa: BLE001 - raised again in the reader
                put(error)
            else:
                put(None)

        thread = threading.Thread(target=work, name="generate", daemon=True)
        thread.start()
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            cancel.cancel()

    def count_tokens(self, text: str) -> list[int]:
        """IDs of plain text in the model's own vocabulary, for counting."""
        return self._engine.tokenizer.encode(text)


def context_length(model: MixtralModel) -> int | None:
    """The context window of `model`, None while its file cannot be read."""
    try:
        return model.n_ctx_used
    except MixtralRagError:
        return None
