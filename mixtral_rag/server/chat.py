"""`/v1/chat/completions`: the model alone, or answers from documents with their citations."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from langchain_core.messages import BaseMessage, convert_to_messages

from mixtral_rag.call_reader import CallPart
from mixtral_rag.engines import Cancellation
from mixtral_rag.errors import ContextError, PromptError
from mixtral_rag.model import nth
from mixtral_rag.outputs import logprobs_info
from mixtral_rag.replies import Request as ModelRequest
from mixtral_rag.replies import reply
from mixtral_rag.server.answers import answer_body, answer_parts, plain_history
from mixtral_rag.server.failures import RefusedError
from mixtral_rag.server.metrics import AnswerTimes
from mixtral_rag.server.running import events, in_turn, while_here
from mixtral_rag.server.schemas import ChatRequest
from mixtral_rag.server.service import Service
from mixtral_rag.tools import call_schema
from mixtral_rag.types import Answer, Message, Piece, Usage

router = APIRouter()
Part = tuple[int, Piece | CallPart | Answer]
_READ = {"role", "content", "name", "tool_calls", "tool_call_id"}  # of a message


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, from documents where the model or `collection` names them."""
    service: Service = request.app.state.service
    _bounded(body, service)
    collection = service.collection_of(body.model, body.collection)
    if collection is None:
        work = _Plain(service, body)
        await asyncio.to_thread(work.prepare)  # so that what is wrong is told with its status
        make: Callable[[Cancellation], Iterator[Part]] = work.parts
    else:
        history, question = plain_history(body)
        make = partial(_grounded, service, collection, question, history)
    parts = in_turn(service.gate, client_of(request), service.options.answer_seconds, make)
    writer = ChatWriter(body, body.model or service.name, service.metrics.answer())
    if body.stream:
        return await events(writer.stream(parts), lambda text: text)
    return JSONResponse(await while_here(request, writer.whole(parts)))


def _grounded(
    service: Service, collection: str, question: str, history: Sequence[Message], _: Cancellation
) -> Iterator[Part]:
    return ((0, part) for part in answer_parts(service, collection, question, history))


def client_of(request: Request) -> str:
    """Who asks, for fair turns: the key, and the address it comes from."""
    address = request.client.host if request.client else ""
    return f"{request.scope.get('key_name', '')}@{address}"


def _bounded(body: ChatRequest, service: Service) -> None:
    options = service.options
    if body.n > options.most_answers:
        raise RefusedError(f"n is {body.n}; at most {options.most_answers} is served", param="n")
    if len(body.messages) > options.most_messages:
        raise RefusedError(
            f"{len(body.messages):,} messages; at most {options.most_messages:,} are taken",
            param="messages",
        )


class _Plain:
    """A conversation with the model alone."""

    def __init__(self, service: Service, body: ChatRequest) -> None:
        self._chat, self._body = service.chat, body
        self._request: ModelRequest | None = None

    def prepare(self) -> None:
        """Read the request.

        Raises:
            SettingsError, PromptError: something in it is wrong.
        """
        body = self._body
        call: dict[str, Any] = dict(body.sampling)
        if body.logprobs or body.top_logprobs:
            call |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
        for name in ("tools", "tool_choice", "parallel_tool_calls", "response_format"):
            if (value := getattr(body, name)) is not None:
                call[name] = value
        if (call.get("response_format") or {}).get("type") == "text":
            del call["response_format"]
        for tool in body.tools or ():
            _check_tool(tool)
        try:
            self._request = self._chat.request(langchain_messages(body), body.stops or None, call)
            if self._request.tools:
                call_schema(self._request.tools, parallel=self._request.parallel)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            what = "response_format or the tools" if body.tools or body.response_format else "it"
            raise RefusedError(f"{what} cannot be read: {type(error).__name__}") from error

    def parts(self, cancel: Cancellation) -> Iterator[Part]:
        """`n` answers, one after another."""
        assert self._request is not None
        for i in range(self._body.n):
            request = replace(self._request, options=nth(self._request.options, i))
            for part in self._fitted(request, cancel):
                yield i, part

    def _fitted(self, request: ModelRequest, cancel: Cancellation) -> Iterator[Piece | CallPart]:
        """An answer; one whose length was not asked for may be as long as there is room for."""
        whole = not self._body.stream
        try:
            yield from reply(self._chat, request, cancel, whole=whole)
        except ContextError as error:
            if self._body.max_tokens is not None or error.prompt_tokens >= error.n_ctx:
                raise
            longest = replace(request, options=replace(request.options, max_tokens=None))
            yield from reply(self._chat, longest, cancel, whole=whole)


def langchain_messages(body: ChatRequest) -> list[BaseMessage]:
    """The conversation as LangChain's messages.

    Raises:
        PromptError: a message cannot be read.
    """
    turns = []
    for message in body.messages:
        turn = message.model_dump(exclude_none=True, include=_READ)
        turn["role"] = "system" if message.role == "developer" else message.role
        turns.append(turn | {"content": message.content or ""})
    try:
        return convert_to_messages(turns)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PromptError(f"a message cannot be read: {error}") from error


def _check_tool(tool: dict[str, Any]) -> None:
    function = tool.get("function")
    named = function.get("name") if isinstance(function, dict) else None
    if tool.get("type", "function") != "function" or not isinstance(named, str) or not named:
        raise RefusedError(
            "a tool must be {'type': 'function', 'function': {'name': ...}}", param="tools"
        )
    parameters = function.get("parameters") if isinstance(function, dict) else None
    if parameters is not None and not isinstance(parameters, dict):
        raise RefusedError("a tool's parameters must be a JSON schema", param="tools")


@dataclass(slots=True)
class _Choice:
    """One answer of several, as it grows."""

    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish: str | None = None
    answer: Answer | None = None

    def take(self, part: Piece | CallPart | Answer) -> None:
        if isinstance(part, Answer):
            self.answer, self.finish = part, part.finish_reason or "stop"
        elif isinstance(part, Piece):
            self.text += part.text
            self.logprobs += logprobs_info(part.logprobs).get("logprobs", {}).get("content", [])
            self.finish = part.finish_reason or self.finish
        elif part.name is not None:
            self.calls.append(_call(part) | {"id": call_id()})
        else:
            self.calls[-1]["function"]["arguments"] += part.arguments

    def told(self, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if self.calls:
            message["content"] = self.text or None
            message["tool_calls"] = self.calls
        logprobs = {"content": self.logprobs, "refusal": None} if self.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs,
                "finish_reason": self.finish or "stop"}  # fmt: skip


class ChatWriter:
    """Writes answers in the form of OpenAI's API."""

    def __init__(self, body: ChatRequest, model: str, times: AnswerTimes) -> None:
        self._body, self._times = body, times
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion",
                      "created": int(time.time()), "model": model}  # fmt: skip
        self._usage: Usage | None = None

    def _count(self, part: Piece | CallPart | Answer) -> None:
        if isinstance(part, Answer) or (isinstance(part, Piece) and part.usage is not None):
            self._times.end(part.usage)
            self._usage = _sum(self._usage, part.usage)
        else:
            self._times.piece()

    async def whole(self, parts: AsyncIterator[Part]) -> dict[str, Any]:
        """The whole response."""
        choices = [_Choice() for _ in range(self._body.n)]
        async for index, part in parts:
            self._count(part)
            choices[index].take(part)
        told: dict[str, Any] = {"choices": [c.told(i) for i, c in enumerate(choices)]}
        told["usage"] = usage_body(self._usage)
        if (answer := choices[0].answer) is not None:
            told |= answer_body(answer)
        return self._head | told

    async def stream(self, parts: AsyncIterator[Part]) -> AsyncIterator[str]:
        """The data of each event."""
        self._head["object"] = "chat.completion.chunk"
        try:
            begun: set[int] = set()
            n_calls = 0
            async for index, part in parts:
                self._count(part)
                if index not in begun:
                    begun.add(index)
                    n_calls = 0
                    yield self._chunk(index, {"role": "assistant", "content": ""})
                if isinstance(part, CallPart):
                    n_calls += part.name is not None
                    yield self._chunk(index, {"tool_calls": [_delta(part, n_calls - 1)]})
                elif isinstance(part, Answer):
                    more = answer_body(part)
                    yield self._chunk(index, {}, finish=part.finish_reason or "stop", more=more)
                else:
                    yield self._text(index, part)
            if self._body.wants_usage:
                yield self._json({"choices": [], "usage": usage_body(self._usage)})
            yield "[DONE]"
        finally:
            await parts.aclose()  # type: ignore[attr-defined]

    def _text(self, index: int, piece: Piece) -> str:
        delta = {"content": piece.text} if piece.text else {}
        return self._chunk(index, delta, finish=piece.finish_reason, piece=piece)

    def _chunk(
        self, index: int, delta: dict[str, Any], *, finish: str | None = None,
        piece: Piece | None = None, more: dict[str, Any] | None = None,
    ) -> str:  # fmt: skip
        choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": finish}
        if piece is not None and piece.logprobs:
            choice |= logprobs_info(piece.logprobs)
        told: dict[str, Any] = {"choices": [choice]} | (more or {})
        if self._body.wants_usage:
            told["usage"] = None
        return self._json(told)

    def _json(self, told: dict[str, Any]) -> str:
        return json.dumps(self._head | told, ensure_ascii=False)


def call_id() -> str:
    """A new name for a call of a tool."""
    return f"call_{secrets.token_hex(12)}"


def _call(part: CallPart) -> dict[str, Any]:
    return {"type": "function", "function": {"name": part.name, "arguments": part.arguments}}


def _delta(part: CallPart, index: int) -> dict[str, Any]:
    if part.name is not None:
        return {"index": index, "id": call_id()} | _call(part)
    return {"index": index, "function": {"arguments": part.arguments}}


def _sum(a: Usage | None, b: Usage | None) -> Usage | None:
    """Tokens of several answers to one prompt, which counts once."""
    if a is None or b is None:
        return a or b
    return Usage(a.prompt_tokens, a.completion_tokens + b.completion_tokens, a.cached_tokens)


def usage_body(usage: Usage | None) -> dict[str, Any]:
    """Counts of tokens as OpenAI names them."""
    usage = usage or Usage(0, 0)
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
