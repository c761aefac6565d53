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

from mixtral_rag.engines import Cancellation, Prompt
from mixtral_rag.messages import to_messages
from mixtral_rag.model import SAMPLING, MixtralModel, nth
from mixtral_rag.outputs import ending, logprobs_info, token_usage
from mixtral_rag.prompts import render_raw
from mixtral_rag.threads import in_order, in_thread
from mixtral_rag.types import Message, Piece, SamplingOptions


class ChineseMixtral(MixtralModel, BaseLLM):
    """A Mixtral model as a LangChain LLM.

    Instruct models get the text inside `[INST] ... [/INST]`, base models get it as it is. Messages,
    such as those of a chat prompt, become the turns of a conversation.

    Setup:
        `pip install 'mixtral_rag[llamacpp]'`, or `[vllm]`, `[transformers]` or `[remote]`, and
        `mixtral-rag pull chinese-mixtral-instruct` for the model.

    Key init args, completion params:
        temperature, top_k, top_p, min_p, repeat_penalty, seed: how to choose tokens.
        max_tokens, stop: when to end. n: how many answers to each prompt.
        logprobs, top_logprobs: whether to return log-probabilities.
        json_schema: hold answers to a JSON schema, which is not told to the model.
        pattern: hold answers to a regular expression.
        instruct: whether to use the instruct format; None tells by the model.

    Key init args, client params:
        model: file, folder, or name of a pulled model. engine: what runs it. n_ctx: its context.
        base_url, api_key (or MIXTRAL_RAG_API_KEY), timeout, max_retries: of a server.
        See the fields for all. Completion params may also be given with any call.

    Instantiate:
        ```python
        from mixtral_rag import ChineseMixtral

        llm = ChineseMixtral(model="chinese-mixtral-instruct", n_ctx=8192, max_tokens=64)
        ```
        By another engine:
        ```python
        weights = "./chinese-mixtral-instruct"  # a folder of full weights
        ChineseMixtral(model=weights, engine="vllm", tensor_parallel_size=2)
        ChineseMixtral(model=weights, engine="transformers", quantization="4bit")
        server = "http://127.0.0.1:8000/v1"
        ChineseMixtral(model="chinese-mixtral", engine="remote", base_url=server, api_key="k")
        ```

    Invoke:
        ```python
        llm.invoke("用一句话介绍北京。")
        ```

    Stream:
        ```python
        for text in llm.stream("写一首关于秋天的诗。"):
            print(text, end="")
        ```

    Async:
        ```python
        await llm.ainvoke("1+1=?", temperature=0)
        ```

    Several answers, token usage and logprobs:
        ```python
        result = llm.generate(["你好"], n=2, logprobs=True)
        info = result.generations[0][1].generation_info  # of the second answer
        info["finish_reason"], info["usage"], info["logprobs"]["content"]
        result.llm_output["token_usage"]  # of all
        ```

    JSON of a given form:
        ```python
        llm.invoke("北京在中国吗？", json_schema={"type": "boolean"})
        ```

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
        model, stop, kwargs = self._with_options(stop, kwargs)
        return super(ChineseMixtral, model).generate(prompts, stop, *args, **kwargs)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, *args: Any, **kwargs: Any
    ) -> LLMResult:
        """Generate for texts; a call's own options are part of what a cache goes by."""
        model, stop, kwargs = self._with_options(stop, kwargs)
        return await super(ChineseMixtral, model).agenerate(prompts, stop, *args, **kwargs)

    def _with_options(
        self, stop: list[str] | None, call: dict[str, Any]
    ) -> tuple["ChineseMixtral", list[str] | None, dict[str, Any]]:
        """This model with a call's options as its own, and the stop texts of both as the call's.

        LangChain leaves a call's options out of cache keys, and the model's own stop texts.
        """
        self._options(stop, {k: v for k, v in call.items() if k in SAMPLING})
        options = {k: v for k, v in call.items() if k in (*SAMPLING, "n")}
        rest = {k: v for k, v in call.items() if k not in options}
        model = self.model_copy(update=options) if options else self
        return model, [*model.stop, *(stop or [])] or None, rest

    def _prompt_of(self, prompt: str) -> Prompt:
        if isinstance(prompt, _Conversation):
            return self.prompt(prompt.messages)
        if self._is_turn():
            return self.prompt([Message("user", prompt)])
        if self._engine.takes_messages:
            return str(prompt)
        return render_raw(prompt, self._engine.tokenizer)

    def _is_turn(self) -> bool:
        return self._engine.is_instruct if self.instruct is None else self.instruct

    def _texts(
        self,
        prompt: str,
        options: SamplingOptions,
        cancel: Cancellation,
        *,
        whole: bool = False,
    ) -> Iterator[GenerationChunk]:
        is_turn = isinstance(prompt, _Conversation) or self._is_turn()
        pieces = self.pieces(
            self._prompt_of(prompt), options, cancel=cancel, is_turn=is_turn, whole=whole
        )
        return map(self._chunk, pieces)

    def _whole(
        self, prompts: list[str], stop: list[str] | None, call: dict[str, Any], cancel: Cancellation
    ) -> Iterator[Generation]:
        """`n` answers to each prompt, in order."""
        n, options = self._answers(call), self._options(stop, call)

        def work(i: int) -> Generation:
            chunks = self._texts(prompts[i // n], nth(options, i % n), cancel, whole=True)
            return _joined(list(chunks))

        yield from in_order(work, len(prompts) * n, self._engine.concurrency, cancel)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if run_manager and run_manager.handlers and len(prompts) * kwargs.get("n", self.n) == 1:
            results = [_joined(list(self._stream(prompts[0], stop, run_manager, **kwargs)))]
        else:
            results = list(self._whole(prompts, stop, kwargs, Cancellation()))
        return self._result(results, len(prompts))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if run_manager and run_manager.handlers and len(prompts) * kwargs.get("n", self.n) == 1:
            chunks = self._astream(prompts[0], stop, run_manager, **kwargs)
            results = [_joined([c async for c in chunks])]
        else:
            made = in_thread(lambda cancel: self._whole(prompts, stop, kwargs, cancel))
            results = [r async for r in made]
        return self._result(results, len(prompts))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        options = self._options(stop, self._single(kwargs))
        for chunk in self._texts(prompt, options, Cancellation()):
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
        options = self._options(stop, self._single(kwargs))
        async for chunk in in_thread(lambda cancel: self._texts(prompt, options, cancel)):
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _chunk(self, piece: Piece) -> GenerationChunk:
        info = logprobs_info(piece.logprobs)
        if piece.usage is not None:
            info |= ending(piece, self._engine.model_name) | {"usage": token_usage(piece.usage)}
        return GenerationChunk(text=piece.text, generation_info=info or None)

    def _result(self, results: list[Generation], n_prompts: int) -> LLMResult:
        infos = [(r.generation_info or {})["usage"] for r in results]
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        total = {name: sum(info[name] for info in infos) for name in names}
        output = {"token_usage": total, "model_name": self._engine.model_name}
        n = len(results) // max(1, n_prompts)
        grouped = [results[i * n : (i + 1) * n] for i in range(n_prompts)]
        return LLMResult(generations=grouped, llm_output=output)

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
    infos = [c.generation_info or {} for c in chunks]
    tokens = [t for info in infos for t in info.get("logprobs", {}).get("content", ())]
    info = infos[-1] | ({"logprobs": {"content": tokens}} if tokens else {})
    return Generation(text="".join(c.text for c in chunks), generation_info=info)
