"""The remote engine: any server with OpenAI's API, such as vLLM's, llama.cpp's or LM Studio's."""

import asyncio
import functools
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, closing, nullcontext
from typing import Any

from mixtral_rag.engines import (
    NATIVE_CTX,
    Cancellation,
    Interrupted,
    Prompt,
    check_n_ctx,
    check_prompt,
)
from mixtral_rag.engines.constraint import is_constrained
from mixtral_rag.engines.remote_answer import RemoteAnswer
from mixtral_rag.engines.remote_errors import Failure
from mixtral_rag.engines.remote_http import Connection
from mixtral_rag.engines.remote_loop import LOOP, held, result
from mixtral_rag.engines.remote_prompt import as_chat, as_text, prompt_tokens
from mixtral_rag.engines.remote_servers import (
    LLAMA_CPP_PYTHON,
    OLLAMA,
    VLLM,
    Form,
    Server,
    find_server,
    request,
    takes_ids,
    text_of,
)
from mixtral_rag.engines.remote_vocab import GivenVocabulary, mixtral_vocabulary
from mixtral_rag.errors import ServerError, SettingsError
from mixtral_rag.prompts import render_raw
from mixtral_rag.tokenizer import Tokenizer, decode
from mixtral_rag.types import Message, Piece, SamplingOptions

_SAMPLE = "Hello, 世界"


class RemoteEngine:
    """One model of one server, used by any number of generations at once.

    Token IDs are sent where the server takes them and the model's vocabulary is known, so that the
    model sees exactly the tokens of this package's prompts; else conversations and text are sent,
    and the server makes the prompt (`takes_messages`). Which it is is found out on first use, with
    the kind of the server, which decides what it is sent of the options beside temperature, top_p,
    max_tokens, stop, seed and json_schema:

    - vLLM: top_k, min_p, repeat_penalty (over the whole text; `repeat_last_n` counts only when 0).
    - llama-server: all.
    - llama-cpp-python's server: top_k, min_p, repeat_penalty (over its own window, 64 tokens).
    - LM Studio: top_k, repeat_penalty.
    - Ollama, text-generation-webui and all others: nothing more.

    Where a server counts no tokens, they are counted with the vocabulary; without one a usage holds
    the pieces that came, and 0 for the prompt.

    Args:
        model: the name the server gives the model.
        n_ctx: context window in tokens, at most 131,072; None takes what the server says, else
            32,768 for a Mixtral.
        base_url: address of the server, such as http://127.0.0.1:8000/v1.
        api_key: key of the server; sent to it alone, redirections are not followed.
        timeout: most seconds to wait for the next piece, None to wait on.
        max_retries: how often to try again when the server cannot be reached or is busy, as long
            as nothing of the answer has come.
        tokenizer: the model's vocabulary: a GGUF file, a Hugging Face folder or a SentencePiece
            file; None takes Mixtral's, if the model has that in its name.
        engine_options: more fields for every request; they come before all others.

    Raises:
        SettingsError: an option is missing or out of range.
    """

    concurrency = 32

    def __init__(
        self,
        model: str,
        *,
        n_ctx: int | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        max_retries: int = 2,
        tokenizer: str | None = None,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_n_ctx(n_ctx)
        self._model, self._wanted_ctx = model, n_ctx
        self._http = Connection(base_url, api_key, timeout, max_retries)
        self._given = None if tokenizer is None else GivenVocabulary(tokenizer)
        self._more = dict(engine_options or {})
        try:
            json.dumps(self._more)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"engine_options cannot be sent as JSON: {error}") from error
        self._lock, self._trying = threading.Lock(), threading.Lock()
        self._server: Server | None = None
        self._takes_ids: bool | None = None
        self._gate: tuple[int, asyncio.Lock] | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary, which is never the server's to tell."""
        tokenizer = self._vocabulary()
        if tokenizer is None:
            raise SettingsError(
                f"the vocabulary of {self.model_name} is not known; give a GGUF file or a folder "
                "that has it as tokenizer"
            )
        return tokenizer

    def _vocabulary(self) -> Tokenizer | None:
        if self._given is not None:
            return self._given.tokenizer
        return mixtral_vocabulary() if self._is_named("mixtral") else None

    @property
    def n_ctx(self) -> int:
        """Context window in tokens."""
        n_ctx = self._known_ctx(self._found())
        if n_ctx is None:
            raise SettingsError(
                f"the server does not tell the context window of {self.model_name}; set n_ctx to it"
            )
        return n_ctx

    def _known_ctx(self, server: Server) -> int | None:
        if self._wanted_ctx is not None:
            return self._wanted_ctx
        if server.n_ctx is not None:
            return server.n_ctx
        # Ollama has a small window unless told otherwise, and cuts what does not fit in silence.
        return NATIVE_CTX if self.is_mixtral and server.kind != OLLAMA else None

    @property
    def is_mixtral(self) -> bool:
        """Whether prompts take the Mixtral instruct format."""
        given = self._given is not None and self._given.is_mixtral
        return given or self._is_named("mixtral")

    @property
    def is_instruct(self) -> bool:
        """Whether the model was tuned to follow instructions."""
        given = self._given is not None and self._given.is_instruct
        return given or self._is_named("instruct") or self._is_named("chat")

    def _is_named(self, part: str) -> bool:
        """Whether the model's name holds `part`, as asked for or as the server lists it."""
        if part in self._model.lower():
            return True
        server = self._found()
        return part in f"{server.model} {server.origin}".lower()

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja chat template, where a file with one is given as tokenizer."""
        return None if self._given is None else self._given.chat_template

    @property
    def model_name(self) -> str:
        """The name the server gives the model."""
        return self._found().model

    @property
    def takes_messages(self) -> bool:
        """Whether prompts are conversations or text, because no token IDs can be sent."""
        return not self._sends_ids(Cancellation())

    @property
    def takes_pattern(self) -> bool:
        """Whether the server can hold an answer to a regular expression."""
        return bool(self._found().kind == VLLM)

    def generate(
        self,
        prompt: Prompt,
        options: SamplingOptions,
        *,
        cancel: Cancellation | None = None,
        whole: bool = False,
    ) -> Iterator[Piece]:
        """Generate from token IDs, a conversation or text; the last piece carries the usage.

        It is always streamed, so that cancelling also stops the server.

        Raises:
            SettingsError: the prompt is empty, or the server cannot enforce a JSON schema.
            PromptError: a conversation that cannot be answered.
            ContextError: prompt and answer do not fit the context; nothing was computed.
            ServerError: the server cannot be reached or refuses.
            GenerationError: the server failed, or broke off.
        """
        cancel = cancel or Cancellation()
        with_ids = bool(prompt) and isinstance(prompt[0], int)
        answer = RemoteAnswer(options)
        try:
            server = self._found(cancel)
            answer.tokenizer = self._vocabulary() if with_ids else None
            body = self._body(prompt, options, server, cancel)
            path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
            source = functools.partial(self._events, server, path, body)
            with closing(LOOP.iterate(source, cancel)) as events:  # type: ignore[type-var]
                for event in events:
                    if cancel.cancelled:
                        raise Interrupted
                    piece = answer.push(event)
                    if piece is not None:
                        yield piece
                    if answer.ended:
                        break
        except Interrupted:
            answer.finish_reason = "cancelled"
        except Failure as failure:
            raise _translated(failure, options) from failure.__cause__
        yield answer.last(*self._counts(prompt, answer))

    def _counts(self, prompt: Prompt, answer: RemoteAnswer) -> tuple[int, int]:
        """Tokens of prompt and answer, for a server that does not count them."""
        if prompt and isinstance(prompt[0], int):
            return len(prompt), answer.n_made
        if answer.finish_reason == "cancelled" and not answer.received:
            return 0, 0
        tokenizer = self._vocabulary()
        if tokenizer is None:
            return 0, answer.n_made
        n_prompt = prompt_tokens(prompt, tokenizer, is_mixtral=self.is_mixtral)
        return n_prompt, len(tokenizer.encode(answer.received))

    def _body(
        self, prompt: Prompt, options: SamplingOptions, server: Server, cancel: Cancellation
    ) -> dict[str, Any]:
        """The request for a prompt, in the form that it has."""
        if not prompt:
            raise SettingsError("the prompt is empty")
        limit, form = options.max_tokens, Form.CHAT
        content: dict[str, Any]
        if isinstance(prompt, str):
            form, content = Form.TEXT, {"prompt": as_text(prompt, self._vocabulary())}
        elif isinstance(prompt[0], Message):
            messages = [m for m in prompt if isinstance(m, Message)]
            chat = as_chat(messages, self._vocabulary(), is_mixtral=self.is_mixtral)
            content = {"messages": chat}
        else:
            n_ctx = self._known_ctx(server)
            if n_ctx is not None or limit is None:
                limit = check_prompt(prompt, options, n_ctx or self.n_ctx)[1]
            if not self._sends_ids(cancel):
                raise SettingsError("this server takes no token IDs; give messages or text")
            form, content = Form.IDS, {"prompt": list(prompt)}
        return request(server, options, limit, form) | content | self._more

    async def _events(
        self, server: Server, path: str, body: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        # llama-cpp-python's server, as it comes, breaks off an answer when the next request comes.
        gate = self._one_at_a_time() if server.kind == LLAMA_CPP_PYTHON else nullcontext()
        async with gate, aclosing(self._http.events(path, body)) as events:
            try:
                async for event in events:
                    yield event
            except Failure as failure:
                if failure.is_silent:  # some servers say what is wrong only when not streaming
                    once = {name: body[name] for name in body if name != "stream_options"}
                    await self._http.ask("POST", path, once | {"stream": False, "max_tokens": 1})
                raise

    def _one_at_a_time(self) -> asyncio.Lock:
        if self._gate is None or self._gate[0] != os.getpid():
            self._gate = os.getpid(), asyncio.Lock()
        return self._gate[1]

    def _found(self, cancel: Cancellation | None = None) -> Server:
        """What is known of the server, asked once."""
        cancel = cancel or Cancellation()
        with held(self._lock, cancel):
            if self._server is None:
                ask = functools.partial(find_server, self._http, self._model)
                self._server = result(ask, cancel)
            return self._server

    def _sends_ids(self, cancel: Cancellation) -> bool:
        """Whether token IDs can be sent, tried once.

        Raises:
            SettingsError: the server's vocabulary is another one.
        """
        server, tokenizer = self._found(cancel), self._vocabulary()
        if tokenizer is None or server.kind in (LLAMA_CPP_PYTHON, OLLAMA):
            return False
        with held(self._trying, cancel):
            if self._takes_ids is None:
                self._takes_ids = self._try_ids(server, tokenizer, cancel)
            return self._takes_ids

    def _try_ids(self, server: Server, tokenizer: Tokenizer, cancel: Cancellation) -> bool:
        ids = render_raw(_SAMPLE, tokenizer)
        told = result(functools.partial(text_of, self._http, server, ids), cancel)
        if told is not None and not told.endswith(decode(tokenizer, ids).strip()):
            raise SettingsError(
                f"the server's {self._model} has another vocabulary than "
                f"{self._given or 'Mixtral-8x7B'}; give its own as tokenizer"
            )
        return result(functools.partial(takes_ids, self._http, server, ids), cancel)


def _translated(failure: Failure, options: SamplingOptions) -> Exception:
    refused = failure.status in (400, 422) and type(failure.error) is ServerError
    if refused and is_constrained(options):
        return SettingsError(
            f"the server refuses the JSON schema or pattern, or the request: {failure.error}"
        )
    return failure.error
