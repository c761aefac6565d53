"""`ChineseMixtral`: the model as a LangChain LLM, text in and text out."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue

from mixtral_rag.messages import to_messages
from mixtral_rag.model import SAMPLING, MixtralModel
from mixtral_rag.types import Message, Piece


class ChineseMixtral(MixtralModel, BaseLLM):
    """A Mixtral model as a LangChain LLM.

    Instruct models get the text inside `[INST] ... [/INST]`, base models get it as it is. Messages,
    such as those of a chat prompt, become the turns of a conversation.

    Setup:
        `pip install 'mixtral_rag[llamacpp]'` and a GGUF file of Chinese-Mixtral-Instruct.

    Instantiate:
        >>> from mixtral_rag import ChineseMixtral
        >>> llm = ChineseMixtral(model="chinese-mixtral-instruct-q4_k.gguf", n_ctx=32768)

    Invoke, stream, async:
        >>> llm.invoke("用一句话介绍北京。")                        # doctest: +SKIP
        >>> for text in llm.stream("写一首关于秋天的诗。"): ...        # doctest: +SKIP
        >>> await llm.ainvoke("1+1=?", temperature=0)              # doctest: +SKIP

    Usage:
        `llm.generate([...]).generations[0][0].generation_info` holds `finish_reason`, `usage` and
        `model_name`.

    Sampling options (`temperature`, `top_k`, `top_p`, `min_p`, `repeat_penalty`, `seed`,
    `max_tokens`, `stop`) are fields, and may be given with any call.

    Raises:
        SettingsError: an option is out of range or unknown.
        ModelError: on first use, when the file is missing or cannot be loaded.
        ContextError: prompt and `max_tokens` do not fit the context.
    """

    @property
    def _llm_type(self) -> str:
        return "chinese-mixtral"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self._identity()

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = self._ls_params(stop, kwargs)
        params["ls_model_type"] = "llm"
        return params

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        value = super()._convert_input(model_input)
        if isinstance(value, StringPromptValue | _ConversationValue):
            return value
        return _ConversationValue(messages=value.to_messages())

    def generate_prompt(
        self,
        prompts: list[PromptValue],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Generate for prompt values, keeping the turns of chat prompts."""
        values = [self._convert_input(p) for p in prompts]
        return super().generate_prompt(values, stop, callbacks, **kwargs)

    async def agenerate_prompt(
        self,
        prompts: list[PromptValue],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Generate for prompt values, keeping the turns of chat prompts."""
        values = [self._convert_input(p) for p in prompts]
        return await super().agenerate_prompt(values, stop, callbacks, **kwargs)

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, *args: Any, **kwargs: Any
    ) -> LLMResult:
        """Generate for texts; a call's own options are part of what a cache goes by."""
        model, kwargs = self._with_options(kwargs)
        return super(ChineseMixtral, model).generate(prompts, stop, *args, **kwargs)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, *args: Any, **kwargs: Any
    ) -> LLMResult:
        """Generate for texts; a call's own options are part of what a cache goes by."""
        model, kwargs = self._with_options(kwargs)
        return await super(ChineseMixtral, model).agenerate(prompts, stop, *args, **kwargs)

    def _with_options(self, call: dict[str, Any]) -> tuple["ChineseMixtral", dict[str, Any]]:
        """This model with a call's options as its own: LangChain leaves them out of cache keys."""
        options = {k: v for k, v in call.items() if k in SAMPLING}
        rest = {k: v for k, v in call.items() if k not in SAMPLING}
        return (self.model_copy(update=options) if options else self), rest

    def _prompt_ids(self, prompt: str) -> list[int]:
        if isinstance(prompt, _Conversation):
            return self.render_messages(prompt.messages)
        return self._render_text(prompt)

    def _is_turn(self) -> bool:
        return self._engine.is_instruct if self.instruct is None else self.instruct

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        results = [
            _joined(list(self._stream(prompt, stop, run_manager, **kwargs))) for prompt in prompts
        ]
        return self._result(results)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        results = [
            _joined([c async for c in self._astream(prompt, stop, run_manager, **kwargs)])
            for prompt in prompts
        ]
        return self._result(results)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        ids, options = self._prompt_ids(prompt), self._options(stop, kwargs)
        for piece in self._pieces(ids, options, is_turn=self._is_turn()):
            chunk = self._chunk(piece)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        ids, options = self._prompt_ids(prompt), self._options(stop, kwargs)
        async for piece in self._apieces(ids, options, is_turn=self._is_turn()):
            chunk = self._chunk(piece)
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _chunk(self, piece: Piece) -> GenerationChunk:
        if piece.usage is None:
            return GenerationChunk(text=piece.text)
        info = {
            "finish_reason": piece.finish_reason,
            "model_name": self._engine.model_name,
            "usage": {
                "prompt_tokens": piece.usage.prompt_tokens,
                "completion_tokens": piece.usage.completion_tokens,
                "total_tokens": piece.usage.total_tokens,
                "cached_tokens": piece.usage.cached_tokens,
            },
        }
        return GenerationChunk(text=piece.text, generation_info=info)

    def _result(self, results: list[Generation]) -> LLMResult:
        infos = [(r.generation_info or {})["usage"] for r in results]
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        total = {name: sum(info[name] for info in infos) for name in names}
        output = {"token_usage": total, "model_name": self._engine.model_name}
        return LLMResult(generations=[[r] for r in results], llm_output=output)

    def get_token_ids(self, text: str) -> list[int]:
        """Token IDs of plain text in the model's own vocabulary."""
        return self.count_tokens(text)


class _Conversation(str):
    """The text LangChain's callbacks and caches see for a conversation, carrying its turns."""

    messages: list[Message]


class _ConversationValue(ChatPromptValue):
    """A chat prompt that survives the way through an LLM, which passes prompts as strings."""

    def to_string(self) -> str:
        messages = to_messages(self.messages)
        turns = [[m.role, m.content] for m in messages]
        text = _Conversation("messages: " + json.dumps(turns, ensure_ascii=False))
        text.messages = messages
        return text


def _joined(chunks: list[GenerationChunk]) -> Generation:
    return Generation(
        text="".join(c.text for c in chunks), generation_info=chunks[-1].generation_info
    )
