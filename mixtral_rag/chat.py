"""`ChatChineseMixtral`: the model as a LangChain chat model, messages in and a message out."""

import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from mixtral_rag.engines import Cancellation, cancellation
from mixtral_rag.errors import SettingsError
from mixtral_rag.messages import to_messages
from mixtral_rag.model import MixtralModel, context_length, nth
from mixtral_rag.outputs import joined, message_chunks
from mixtral_rag.replies import Request, reply
from mixtral_rag.structured import chosen_tools, schema_of, structured
from mixtral_rag.threads import check_wanted, in_order, in_thread, stoppable


class ChatChineseMixtral(MixtralModel, BaseChatModel):
    """A Mixtral model as a LangChain chat model.

    Setup:
        `pip install 'mixtral_rag[llamacpp]'`, or `[vllm]`, `[transformers]` or `[remote]`, and
        `mixtral-rag pull chinese-mixtral-instruct` for the model.

    Key init args, completion params:
        temperature, top_k, top_p, min_p, repeat_penalty, seed: how to choose tokens.
        max_tokens, stop: when to end. n: how many answers.
        logprobs, top_logprobs: whether to return log-probabilities.
        json_schema: hold answers to a JSON schema, which is not told to the model.
        pattern: hold answers to a regular expression.

    Key init args, client params:
        model: file, folder, or name of a pulled model. engine: what runs it. n_ctx: its context.
        base_url, api_key (or MIXTRAL_RAG_API_KEY), timeout, max_retries: of a server.
        See the fields for all. Completion params may also be given with any call.

    Instantiate:
        ```python
        from mixtral_rag import ChatChineseMixtral

        chat = ChatChineseMixtral(model="chinese-mixtral-instruct", n_ctx=8192, max_tokens=256)
        ```
        By another engine:
        ```python
        weights = "./chinese-mixtral-instruct"  # a folder of full weights
        ChatChineseMixtral(model=weights, engine="vllm", tensor_parallel_size=2)
        ChatChineseMixtral(model=weights, engine="transformers", quantization="4bit")
        server = "http://127.0.0.1:8000/v1"
        ChatChineseMixtral(model="chinese-mixtral", engine="remote", base_url=server, api_key="k")
        ```

    Invoke:
        ```python
        message = chat.invoke([("system", "你是一名律师。"), ("human", "什么是合同？")])
        message.content
        ```

    Stream:
        ```python
        for chunk in chat.stream("写一首诗。"):
            print(chunk.text, end="")
        ```

    Async:
        ```python
        message = await chat.ainvoke("1+1=?", temperature=0)
        ```

    Tool calling:
        ```python
        def weather(city: str) -> str:
            "Tell the weather of a city."

        chat.bind_tools([weather], tool_choice="any").invoke("北京天气如何？").tool_calls
        ```
        gives `[{'name': 'weather', 'args': {'city': '北京'}, 'id': 'call_...', 'type':
        'tool_call'}]`. Calls always fit their schema; one that is cut off by `max_tokens` is in
        `invalid_tool_calls`.

    Structured output:
        ```python
        from typing import Literal
        from pydantic import BaseModel

        class Mood(BaseModel):
            "The mood of a text."

            mood: Literal["good", "bad"]

        chat.with_structured_output(Mood).invoke("今天真高兴！")
        ```
        gives `Mood(mood='good')`.

    Token usage:
        ```python
        message.usage_metadata
        ```
        gives `{'input_tokens': 15, 'output_tokens': 5, 'total_tokens': 20, 'input_token_details':
        {'cache_read': 0}}`; of a stream, its last chunk has it.

    Logprobs:
        ```python
        message = chat.invoke("你好", logprobs=True, top_logprobs=2)
        message.response_metadata["logprobs"]["content"][0]["top_logprobs"]
        ```

    Response metadata:
        ```python
        message.response_metadata["finish_reason"]
        ```
        is `stop`, `length` (`max_tokens` are reached) or `tool_calls`. `model_name`,
        `model_provider` and `logprobs` stand beside it.

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

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """What LangChain's caches go by; its own would hold things that change no answer."""
        return str(sorted((self._identity() | {"type": self._llm_type}).items())) + str(
            sorted({"stop": stop, **kwargs}.items())
        )

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = self._ls_params(stop, kwargs)
        params["ls_model_type"] = "chat"
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        # A server is not asked only because a model object is made.
        n_ctx = self.n_ctx if self.engine == "remote" else context_length(self)
        if n_ctx is None and self.engine != "remote":
            return None
        profile = ModelProfile(
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
            reasoning_output=False,
        )
        if n_ctx is not None:
            profile["max_input_tokens"] = n_ctx
            profile["max_output_tokens"] = self.max_tokens or n_ctx
        return profile

    def request(
        self, messages: list[BaseMessage], stop: list[str] | None, call: dict[str, Any]
    ) -> Request:
        """A call as `replies.reply` takes it; raises `SettingsError` and `PromptError`."""
        call = dict(call)
        tools, choice = call.pop("tools", None) or (), call.pop("tool_choice", None)
        parallel, form = call.pop("parallel_tool_calls", None), call.pop("response_format", None)
        apart = tuple(call.pop("apart", None) or ())
        options = self._options(stop, call)
        told = None
        if form is not None:
            told, enforced = schema_of(form)
            text = json.dumps(enforced, ensure_ascii=False)
            options = dataclasses.replace(options, json_schema=text)
        chosen, forced = chosen_tools(tools, choice)
        turns = to_messages(messages, keep_marks=self.keep_markers)
        return Request(turns, options, chosen, forced, bool(parallel), told, apart)

    def _chunks(
        self, request: Request, cancel: Cancellation, *, whole: bool = False
    ) -> Iterator[ChatGenerationChunk]:
        parts = reply(self, request, cancel, whole=whole)
        return message_chunks(parts, self._engine.model_name)

    def _whole(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        call: dict[str, Any],
        cancel: Cancellation,
    ) -> Iterator[ChatGeneration]:
        """`n` answers, in order."""
        n = self._answers(call)
        request = self.request(messages, stop, call)

        def work(i: int) -> ChatGeneration:
            wanted = dataclasses.replace(request, options=nth(request.options, i))
            return joined(list(self._chunks(wanted, cancel, whole=True)))

        yield from in_order(work, n, self._engine.concurrency, cancel)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        cancel = cancellation()
        made = list(self._whole(messages, stop, kwargs, cancel))
        check_wanted(cancel)
        return ChatResult(generations=made)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        made = in_thread(lambda cancel: self._whole(messages, stop, kwargs, cancel))
        return ChatResult(generations=[g async for g in made])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self.request(messages, stop, self._single(kwargs))
        for chunk in self._chunks(request, cancellation()):
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
        request = self.request(messages, stop, self._single(kwargs))
        async for chunk in in_thread(lambda cancel: self._chunks(request, cancel)):
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """`invoke` for every input, as many at once as the engine is good for."""
        configs = get_config_list(config, len(inputs))
        for one in configs:
            if one.get("max_concurrency") is None:
                one["max_concurrency"] = self._engine.concurrency
        return stoppable(partial(super().batch, inputs, configs, **kwargs))

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools it may call.

        Args:
            tools: functions, Pydantic classes, LangChain tools or JSON schemas.
            tool_choice: `auto` (also None) lets the model choose; `any`, `required` or True makes
                it call one; `none` forbids it; the name of a tool makes it call that.
            parallel_tool_calls: whether one answer may hold several calls. Unless True it holds
                one, since a model without training for tools is apt to repeat itself.
            kwargs: options of every call.

        Raises:
            SettingsError: `tool_choice` names no tool.
        """
        formatted = [convert_to_openai_tool(tool) for tool in tools]
        chosen_tools(formatted, tool_choice)
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(tools=formatted, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model with answers of a given form.

        Args:
            schema: a Pydantic class, a TypedDict class or a JSON schema; a Pydantic class gives
                its objects, the others give dicts.
            method: `json_schema` holds the answer to the schema; `function_calling` has a tool of
                that form called; `json_mode` holds it to any JSON object, and the prompt must say
                which.
            include_raw: give a dict of the message (`raw`), what was parsed (`parsed`), and the
                error if it could not be (`parsing_error`).
            kwargs: `strict` is taken and means nothing: schemas are always enforced.

        Raises:
            SettingsError: an unknown method or argument.
        """
        kwargs.pop("strict", None)
        if kwargs:
            raise SettingsError(f"with_structured_output has no argument {sorted(kwargs)[0]!r}")
        return structured(self, schema, method=method, include_raw=include_raw)

    def get_token_ids(self, text: str) -> list[int]:
        """Token IDs of plain text in the model's own vocabulary."""
        return self.count_tokens(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None, **kwargs: Any
    ) -> int:
        """Tokens the engine gets for `messages` and `tools`: text, format and BOS.

        Args:
            messages: a conversation.
            tools: as for `bind_tools`.
            kwargs: more options of the call, such as `response_format`, which is told as text.
        """
        formatted = [convert_to_openai_tool(tool) for tool in tools or ()]
        request = self.request(messages, None, {"tools": formatted, **kwargs})
        return len(self.render_messages(request.told))
