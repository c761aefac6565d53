"""`ChatChineseMixtral`: the model as a LangChain chat model, messages in and a message out."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from mixtral_rag.errors import PromptError
from mixtral_rag.messages import to_messages
from mixtral_rag.model import MixtralModel, context_length
from mixtral_rag.types import Piece, Usage


class ChatChineseMixtral(MixtralModel, BaseChatModel):
    """A Mixtral model as a LangChain chat model.

    Setup:
        `pip install 'mixtral_rag[llamacpp]'` and a GGUF file of Chinese-Mixtral-Instruct.

    Instantiate:
        >>> from mixtral_rag import ChatChineseMixtral
        >>> chat = ChatChineseMixtral(model="chinese-mixtral-instruct-q4_k.gguf", n_ctx=32768)

    Invoke, stream, async:
        >>> chat.invoke([("system", "你是一名律师。"), ("human", "什么是合同？")])  # doctest: +SKIP
        >>> for chunk in chat.stream("写一首诗。"): ...                          # doctest: +SKIP
        >>> await chat.ainvoke("1+1=?", temperature=0)                        # doctest: +SKIP

    Usage:
        `usage_metadata` of the message counts tokens; `response_metadata` holds `finish_reason`,
        `model_name` and `model_provider`.

    Sampling options (`temperature`, `top_k`, `top_p`, `min_p`, `repeat_penalty`, `seed`,
    `max_tokens`, `stop`) are fields, and may be given with any call.

    Raises:
        SettingsError: an option is out of range or unknown.
        PromptError: a message that is not text, or a conversation that ends with the assistant.
        ModelError: on first use, when the file is missing or cannot be loaded.
        ContextError: prompt and `max_tokens` do not fit the context.
    """

    @property
    def _llm_type(self) -> str:
        return "chat-chinese-mixtral"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self._identity()

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = self._ls_params(stop, kwargs)
        params["ls_model_type"] = "chat"
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        n_ctx = context_length(self)
        if n_ctx is None:
            return None
        return ModelProfile(
            max_input_tokens=n_ctx,
            max_output_tokens=self.max_tokens or n_ctx,
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            tool_calling=False,
            structured_output=False,
            reasoning_output=False,
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _joined(list(self._stream(messages, stop, run_manager, **kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _joined([c async for c in self._astream(messages, stop, run_manager, **kwargs)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        ids, options = self.render_messages(to_messages(messages)), self._options(stop, kwargs)
        for piece in self._pieces(ids, options):
            chunk = self._chunk(piece)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        ids, options = self.render_messages(to_messages(messages)), self._options(stop, kwargs)
        async for piece in self._apieces(ids, options):
            chunk = self._chunk(piece)
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _chunk(self, piece: Piece) -> ChatGenerationChunk:
        if piece.usage is None:
            return ChatGenerationChunk(message=AIMessageChunk(content=piece.text))
        metadata = {
            "finish_reason": piece.finish_reason,
            "model_name": self._engine.model_name,
            "model_provider": "mixtral_rag",
        }
        message = AIMessageChunk(
            content=piece.text,
            usage_metadata=_usage_metadata(piece.usage),
            response_metadata=metadata,
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message, generation_info={})

    def get_token_ids(self, text: str) -> list[int]:
        """Token IDs of plain text in the model's own vocabulary."""
        return self.count_tokens(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Tokens the engine gets for `messages`: text, format and BOS."""
        if tools:
            raise PromptError("this model takes no tools yet")
        return len(self.render_messages(to_messages(messages)))


def _usage_metadata(usage: Usage) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def _joined(chunks: list[ChatGenerationChunk]) -> ChatResult:
    last = chunks[-1].message
    assert isinstance(last, AIMessageChunk)
    message = AIMessage(
        content="".join(c.text for c in chunks),
        usage_metadata=last.usage_metadata,
        response_metadata=last.response_metadata,
    )
    return ChatResult(generations=[ChatGeneration(message=message)])
