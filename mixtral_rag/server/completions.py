"""`/v1/completions`, `/v1/embeddings` and `/v1/models`."""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mixtral_rag.engines import Cancellation, Prompt
from mixtral_rag.model import nth
from mixtral_rag.prompts import render_raw
from mixtral_rag.server.chat import client_of, usage_body
from mixtral_rag.server.failures import NotFoundError, RefusedError
from mixtral_rag.server.metrics import AnswerTimes
from mixtral_rag.server.running import events, in_turn, one_in_turn, while_here
from mixtral_rag.server.schemas import CompletionRequest, EmbeddingRequest
from mixtral_rag.server.service import Service
from mixtral_rag.types import Piece, TokenLogprob, Usage

router = APIRouter()
_LONGEST_INPUT = 200_000  # characters of a text to embed
_EMBEDDED = 16  # texts at a time, so that a client that leaves is noticed


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The model, and each collection as a model that answers from it."""
    service: Service = request.app.state.service
    names = await asyncio.to_thread(service.models)
    return {"object": "list", "data": [_model(name) for name in names]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One of them."""
    service: Service = request.app.state.service
    if name not in await asyncio.to_thread(service.models):
        raise NotFoundError(f"there is no model {name[:128]!r}")
    return _model(name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "mixtral_rag"}


@router.post("/v1/completions", response_model=None)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Go on from a text or token IDs, without any format of a conversation."""
    service: Service = request.app.state.service
    total = body.n * len(body.prompts)
    if total > service.options.most_answers * (1 if body.stream else 8):
        raise RefusedError(f"{total} answers at once are more than is served", param="n")
    if service.collection_of(body.model, None) is not None:
        raise RefusedError("answers from documents take /v1/chat/completions", param="model")
    work = _Completing(service, body)
    await asyncio.to_thread(work.prepare)
    parts = in_turn(service.gate, client_of(request), service.options.answer_seconds, work.pieces)
    writer = _Writer(body, body.model or service.name, work, service.metrics.answer())
    if body.stream:
        return await events(writer.stream(parts), lambda text: text)
    return JSONResponse(await while_here(request, writer.whole(parts)))


class _Completing:
    """Raw prompts to the model."""

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        self._chat, self._body = service.chat, body
        self.prompts: list[Prompt] = []
        self.echoes: list[str] = []

    def prepare(self) -> None:
        """Read the request.

        Raises:
            SettingsError, RefusedError: something in it is wrong.
        """
        body, chat = self._body, self._chat
        call = dict(body.sampling)
        if body.logprobs is not None:
            call |= {"logprobs": True, "top_logprobs": body.logprobs}
        request = chat.request([], body.stops or None, call)
        self._options = request.options
        for prompt in body.prompts:
            self.prompts.append(self._prompt(prompt))
            self.echoes.append(self._echo(prompt) if body.echo else "")

    def _prompt(self, prompt: str | list[int]) -> Prompt:
        if isinstance(prompt, str):
            if not prompt:
                raise RefusedError("the prompt is empty", param="prompt")
            return (
                prompt if self._chat.takes_messages else render_raw(prompt, self._chat.vocabulary)
            )
        size = len(self._chat.vocabulary)
        if any(not 0 <= token < size for token in prompt):
            raise RefusedError(
                f"a token ID is not from 0 to {size - 1}, the model's vocabulary", param="prompt"
            )
        return prompt

    def _echo(self, prompt: str | list[int]) -> str:
        if isinstance(prompt, str):
            return prompt
        data = b"".join(self._chat.vocabulary.piece(token) for token in prompt)
        return data.decode("utf-8", "replace")

    def pieces(self, cancel: Cancellation) -> Iterator[tuple[int, Piece]]:
        """Each answer's pieces, one answer after another."""
        n, whole = self._body.n, not self._body.stream
        for i in range(n * len(self.prompts)):
            options = nth(self._options, i % n)
            found = self._chat.pieces(
                self.prompts[i // n], options, cancel=cancel, is_turn=False, whole=whole
            )
            if self._body.echo:
                yield i, Piece(self.echoes[i // n])
            for piece in found:
                yield i, piece


class _Writer:
    """Writes completions in the form of OpenAI's API."""

    def __init__(
        self, body: CompletionRequest, model: str, work: _Completing, times: AnswerTimes
    ) -> None:
        self._body, self._work, self._times = body, work, times
        self._head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion",
                      "created": int(time.time()), "model": model}  # fmt: skip
        self._usages: dict[int, Usage] = {}

    def _count(self, index: int, piece: Piece) -> None:
        self._times.piece()
        if piece.usage is not None:
            self._times.end(piece.usage)
            self._usages[index] = piece.usage

    def _usage(self) -> dict[str, Any]:
        """Tokens of all answers; a prompt with several answers counts once."""
        first = [u for i, u in self._usages.items() if i % self._body.n == 0]
        return usage_body(
            Usage(
                sum(u.prompt_tokens for u in first),
                sum(u.completion_tokens for u in self._usages.values()),
                sum(u.cached_tokens for u in first),
            )
        )

    async def whole(self, parts: AsyncIterator[tuple[int, Piece]]) -> dict[str, Any]:
        """The whole response."""
        n = self._body.n * len(self._work.prompts)
        whole = [Piece("") for _ in range(n)]
        async for index, piece in parts:
            self._count(index, piece)
            before = whole[index]
            whole[index] = replace(
                piece, text=before.text + piece.text, logprobs=before.logprobs + piece.logprobs
            )
        choices = [_choice(i, piece) for i, piece in enumerate(whole)]
        return self._head | {"choices": choices, "usage": self._usage()}

    async def stream(self, parts: AsyncIterator[tuple[int, Piece]]) -> AsyncIterator[str]:
        """The data of each event."""
        try:
            async for index, piece in parts:
                self._count(index, piece)
                yield json.dumps(
                    self._head | {"choices": [_choice(index, piece)]}, ensure_ascii=False
                )
            if self._body.wants_usage:
                yield json.dumps(self._head | {"choices": [], "usage": self._usage()})
            yield "[DONE]"
        finally:
            await parts.aclose()  # type: ignore[attr-defined]


def _choice(index: int, piece: Piece) -> dict[str, Any]:
    logprobs = _logprobs(piece.logprobs) if piece.logprobs else None
    return {"index": index, "text": piece.text, "logprobs": logprobs,
            "finish_reason": piece.finish_reason}  # fmt: skip


def _logprobs(tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
    """In the form of completions, which is not that of chats."""
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token.token)
    return {
        "tokens": [t.token for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [{o.token: o.logprob for o in t.top} for t in tokens],
        "text_offset": offsets,
    }


@router.post("/v1/embeddings", response_model=None)
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Vectors of texts, by the embedder of the documents."""
    service: Service = request.app.state.service
    texts = [body.input] if isinstance(body.input, str) else body.input
    if any(not text.strip() or len(text) > _LONGEST_INPUT for text in texts):
        raise RefusedError(
            f"input takes texts of 1 to {_LONGEST_INPUT:,} characters", param="input"
        )
    embedder = await asyncio.to_thread(lambda: service.embedder)

    def work(cancel: Cancellation) -> Iterator[tuple[Any, int]]:
        rows = []
        for start in range(0, len(texts), _EMBEDDED):
            if cancel.cancelled:
                return
            part = texts[start : start + _EMBEDDED]
            is_query = body.input_type == "query"
            rows += [embedder.query(t) for t in part] if is_query else [embedder.passages(part)]
        yield np.concatenate(rows), sum(map(embedder.count, texts))

    client = client_of(request)
    vectors, n_tokens = await one_in_turn(request, service.embed_gate, client, 600.0, work)
    if body.dimensions not in (None, vectors.shape[1]):
        raise RefusedError(
            f"this embedder makes vectors of {vectors.shape[1]} dimensions", param="dimensions"
        )
    data = [
        {"object": "embedding", "index": i, "embedding": _vector(row, body.encoding_format)}
        for i, row in enumerate(vectors)
    ]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    name = body.model or embedder.fingerprint
    return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})


def _vector(row: Any, form: str) -> Any:
    if form == "float":
        return row.tolist()
    return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")
