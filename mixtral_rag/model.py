"""What `ChineseMixtral` and `ChatChineseMixtral` share: their options and the way to an engine."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from langchain_core.language_models.base import LangSmithParams
from langchain_core.load import dumpd
from pydantic import PrivateAttr

from mixtral_rag.engines import Cancellation, Engine, PassagePrompt, Prompt, open_engine
from mixtral_rag.errors import MixtralRagError, PromptError, SettingsError, TemplateError
from mixtral_rag.model_options import STANDARD, ModelOptions
from mixtral_rag.prompts import merge_turns, neutralise, render, text_spans
from mixtral_rag.templates import render_template
from mixtral_rag.tokenizer import Tokenizer
from mixtral_rag.types import Message, Piece, SamplingOptions
from mixtral_rag.weights.library import locate, locate_weights

SAMPLING = tuple(f.name for f in dataclasses.fields(SamplingOptions))
# What an engine is made with; each takes some of them and refuses the others.
_LOADING = (
    "n_ctx", "n_gpu_layers", "n_threads", "n_batch", "parallel", "kv_type", "mmap",
    "kv_folder", "kv_bytes", "kv_memory", "dtype", "quantization", "device", "tensor_parallel_size",
    "adapter", "engine_options",
    "base_url", "api_key", "timeout", "max_retries", "tokenizer",
)  # fmt: skip
_ENGINE = frozenset({"model", "engine", *_LOADING})
_MOST_ANSWERS = 128
# Sent along by LangChain for tracing or for other models. Schemas are always strict here.
_IGNORED = frozenset({"ls_structured_output_format", "stream_usage", "strict"})


class MixtralModel(ModelOptions):
    """Options of the model faces. Making one is cheap: the weights load on first use."""

    _engine: Engine = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Find or make the shared engine (no file is opened) and check the sampling options."""
        super().model_post_init(context)
        self._open()
        self._options(None, {})
        self._answers({})

    def _open(self) -> None:
        self._engine = open_engine(self.engine, self._located(), **self._engine_arguments())

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _ENGINE:
            self._open()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy that shares the engine, unless `update` changes what that is made with."""
        copied = super().model_copy(update=update, deep=deep)
        if update and _ENGINE & update.keys():
            copied._open()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self._engine)] = self._engine  # as the original: weights are not copied
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        return super().__getstate__() | {"__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self.__pydantic_private__ = {}
        self._open()

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """LangChain's `dumps` and `loads` keep every option but the key of a server."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Written as the name of an environment variable."""
        return {"api_key": "MIXTRAL_RAG_API_KEY"}

    @property
    def _serialized(self) -> dict[str, Any]:
        """For LangChain's callbacks; its own is made once, and another option would not show."""
        return dict(dumpd(self))

    def _located(self) -> str:
        if self.engine == "remote":
            return self.model
        if self.engine in ("vllm", "transformers"):
            return str(locate_weights(self.model, "full"))
        return str(locate(self.model))

    def _engine_arguments(self) -> dict[str, Any]:
        """What differs from the defaults; a key or a timeout means nothing to a local engine."""
        values = {}
        for name in _LOADING:
            value, field = getattr(self, name), type(self).model_fields[name]
            ignored = name == "api_key" or (self.engine != "remote" and name in STANDARD)
            if not ignored and value != field.get_default(call_default_factory=True):
                values[name] = value
        if self.adapter is not None:
            values["adapter"] = str(locate_weights(self.adapter, "lora"))
        if self.engine == "remote" and self.api_key is not None:
            values["api_key"] = self.api_key.get_secret_value()
        return values

    @property
    def n_ctx_used(self) -> int:
        """The context window in effect, in tokens."""
        return self._engine.n_ctx

    def render_messages(
        self, messages: Sequence[Message], *, continue_final: bool = False
    ) -> list[int]:
        """Token IDs of a conversation, exactly as the engine will get them.

        Args:
            messages: turns in order.
            continue_final: leave a last assistant turn open, for the model to go on with.

        Raises:
            PromptError: the conversation cannot be rendered for this model.
        """
        engine, keep = self._engine, self.keep_markers
        template = engine.chat_template
        # Some fine-tunes of Mixtral were taught another format, such as ChatML.
        if engine.is_mixtral and (template is None or "[INST]" in template):
            return render(
                messages, engine.tokenizer, keep_markers=keep, continue_final=continue_final
            )
        if template is None:
            raise PromptError(f"{self.model} has no chat template; it can only continue raw text")
        if not messages:
            raise PromptError("a conversation needs at least one message")
        begun = ""
        if continue_final and messages[-1].role == "assistant":
            *messages, last = messages
            begun = last.content
        if "[INST]" in template and not keep:
            messages = [Message(m.role, neutralise(m.content)) for m in messages]
        try:
            ids = render_template(messages, engine.tokenizer, template)
        except TemplateError:  # many templates refuse a system turn or two turns of one role
            ids = render_template(merge_turns(messages), engine.tokenizer, template)
        return ids + engine.tokenizer.encode(begun)

    @property
    def concurrency(self) -> int:
        """How many generations are worth running at the same time."""
        return self._engine.concurrency

    @property
    def vocabulary(self) -> Tokenizer:
        """The model's own; loads no weights."""
        return self._engine.tokenizer

    @property
    def takes_pattern(self) -> bool:
        """Whether `pattern` can be had."""
        return self._engine.takes_pattern

    @property
    def takes_messages(self) -> bool:
        """Whether the engine gets conversations, because it takes no token IDs."""
        return self._engine.takes_messages

    def prompt(self, messages: Sequence[Message], *, apart: Sequence[str] = ()) -> Prompt:
        """A conversation as the engine takes it; of texts in it, see `engines.PassagePrompt`."""
        if self._engine.takes_messages:
            return list(messages)
        ids = self.render_messages(messages)
        spans = text_spans(ids, self._engine.tokenizer, apart)
        return PassagePrompt(ids, spans) if spans else ids

    def _options(self, stop: list[str] | None, call: dict[str, Any]) -> SamplingOptions:
        unknown = sorted(call.keys() - set(SAMPLING) - _IGNORED - {"n"})
        if unknown:
            raise SettingsError(
                f"unknown option {unknown[0]!r} for a call; known are: {', '.join(SAMPLING)}"
            )
        values = {name: getattr(self, name) for name in SAMPLING}
        values |= {name: call[name] for name in SAMPLING if name in call}
        if isinstance(stop, str) or isinstance(values["stop"], str):
            raise SettingsError("stop must be a list of texts, not one text")
        values["stop"] = tuple(dict.fromkeys([*values["stop"], *(stop or [])]))
        schema = values["json_schema"]
        if schema is not None and not isinstance(schema, str):
            values["json_schema"] = json.dumps(schema, ensure_ascii=False)
        return SamplingOptions(**values)

    def _identity(self) -> dict[str, Any]:
        """Everything that can change an answer: the key of LangChain's caches."""
        names = ("model", "engine", "n_ctx", "kv_type", "dtype", "quantization", "adapter",
                 "base_url", "engine_options", "tokenizer", "instruct", "keep_markers", "n",
                 *SAMPLING)  # fmt: skip
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

    def pieces(
        self,
        prompt: Prompt,
        options: SamplingOptions,
        *,
        cancel: Cancellation,
        is_turn: bool = True,
        whole: bool = False,
    ) -> Iterator[Piece]:
        """Generate; the space that SentencePiece puts before every text is dropped from a turn."""
        engine = self._engine
        at_start = is_turn and not engine.takes_messages and engine.tokenizer.adds_space_prefix
        for piece in engine.generate(prompt, options, cancel=cancel, whole=whole):
            if at_start and piece.text:
                at_start = False
                piece = dataclasses.replace(piece, text=piece.text.removeprefix(" "))
            if piece.text or piece.finish_reason or piece.logprobs:
                yield piece

    def _answers(self, call: dict[str, Any]) -> int:
        """How many answers a call wants to each prompt."""
        n = call.get("n", self.n)
        if not isinstance(n, int) or isinstance(n, bool) or not 0 < n <= _MOST_ANSWERS:
            raise SettingsError(f"n is {n!r}; it must be a whole number from 1 to {_MOST_ANSWERS}")
        return n

    def _single(self, call: dict[str, Any]) -> dict[str, Any]:
        """The options of a call that streams, which gives one answer."""
        if self._answers(call) > 1:
            raise SettingsError("n answers cannot be streamed; use generate, or n=1")
        return call

    def count_tokens(self, text: str) -> list[int]:
        """IDs of plain text in the model's own vocabulary, for counting."""
        return self._engine.tokenizer.encode(text)


def nth(options: SamplingOptions, i: int) -> SamplingOptions:
    """The options of the answer `i` of several to one prompt: each has a seed of its own."""
    if options.seed is None or i == 0:
        return options
    return dataclasses.replace(options, seed=options.seed + i)


def context_length(model: MixtralModel) -> int | None:
    """The context window of `model`, None while its file cannot be read."""
    try:
        return model.n_ctx_used
    except MixtralRagError:
        return None
