"""The answer of a model server, from the objects it streams, as pieces of text."""

import math
from collections.abc import Iterator
from typing import Any

from mixtral_rag.engines.logprobs import described
from mixtral_rag.engines.text import TextStream
from mixtral_rag.errors import GenerationError
from mixtral_rag.tokenizer import Tokenizer
from mixtral_rag.types import FinishReason, Piece, SamplingOptions, TokenLogprob, Usage

_REASONS: dict[str, FinishReason] = {
    "stop": "stop", "eos": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length",
    "max_tokens": "length",
}  # fmt: skip
_TOKEN_ID = "token_id:"  # noqa: S105 - how vLLM writes a token's ID in place of its text


class RemoteAnswer:
    """The text of one answer.

    Args:
        options: of the request.
    """

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self.tokenizer: Tokenizer | None = None
        """Of the model, where token IDs were sent; those that come back are then taken in place of
        the text."""
        self._text = TextStream(options.stop)
        self._logprobs: list[TokenLogprob] = []
        self._usage: dict[str, Any] = {}
        self._told: FinishReason | None = None
        self.received = ""
        """All text that has come, for counting."""
        self.n_made = 0
        """Tokens that have come; where the server sends text alone, the pieces of it."""
        self.finish_reason: FinishReason | None = None

    @property
    def ended(self) -> bool:
        """Whether a stop text has come that the server does not know of."""
        return self._text.stopped and self._told is None

    def push(self, event: dict[str, Any]) -> Piece | None:
        """The piece that an event adds, if any.

        Raises:
            GenerationError: the event is not in the form of an answer.
        """
        try:
            if isinstance(event.get("usage"), dict):
                self._usage = event["usage"]
            choices = event.get("choices") or ()
            text = self._choice(choices[0]) if choices and not self._text.stopped else ""
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise GenerationError(f"the server's answer has another form: {error!r}") from error
        return Piece(text, logprobs=self._take()) if text else None

    def _choice(self, choice: dict[str, Any]) -> str:
        inner = choice.get("delta") or choice.get("message") or {}
        text = choice.get("text") or inner.get("content") or ""
        logprobs = list(_logprobs(choice.get("logprobs"), self._options, self.tokenizer))
        if self.tokenizer is not None and choice.get("token_ids") is not None:
            text = self._tokens(choice["token_ids"], logprobs, self.tokenizer)
        else:
            self.received += text
            self.n_made += len(logprobs) or bool(text)
            self._logprobs += logprobs
            text = self._text.push(text.encode("utf-8", "replace"))
        if reason := choice.get("finish_reason"):
            if reason not in _REASONS:
                raise GenerationError(f"the server ended the answer with {reason!r}")
            self._told = self.finish_reason = _REASONS[reason]
        if self._text.stopped:
            self.finish_reason = "stop"
        return text

    def _tokens(self, ids: list[int], logprobs: list[TokenLogprob], tokenizer: Tokenizer) -> str:
        """The text of tokens up to a stop text."""
        shown = ""
        for i, token in enumerate(ids):
            self.n_made += 1
            if token in tokenizer.end_ids:
                break
            self._logprobs += logprobs[i : i + 1]
            shown += self._text.push(tokenizer.piece(token))
            if self._text.stopped:
                break
        return shown

    def _take(self) -> tuple[TokenLogprob, ...]:
        taken, self._logprobs = tuple(self._logprobs), []
        return taken

    def last(self, n_prompt: int, n_made: int) -> Piece:
        """What was held back, with finish reason and usage.

        Args:
            n_prompt: tokens of the prompt, where the server does not tell.
            n_made: tokens of the answer, where the server does not tell.

        Raises:
            GenerationError: the answer has no end.
        """
        if self.finish_reason is None:
            raise GenerationError(
                "the answer broke off: the server closed the stream without an end; it may have "
                "been stopped, or have put another request first"
            )
        told = self._usage
        details = told.get("prompt_tokens_details") or {}
        n_prompt = _count(told.get("prompt_tokens")) or n_prompt
        usage = Usage(
            n_prompt,
            _count(told.get("completion_tokens")) or n_made,
            min(_count(details.get("cached_tokens")), n_prompt),
        )
        return Piece(self._text.finish(), self.finish_reason, usage, self._take())


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _logprobs(
    told: Any, options: SamplingOptions, tokenizer: Tokenizer | None
) -> Iterator[TokenLogprob]:
    """In the form of `/v1/chat/completions` (a list `content`) or of `/v1/completions`."""
    if not told or not options.logprobs:
        return
    n_top = options.top_logprobs
    if "content" in told:
        for entry in told["content"] or ():
            likeliest = (entry.get("top_logprobs") or ())[:n_top]
            yield _chat_token(entry, tuple(_chat_token(t) for t in likeliest))
        return
    ranked = told.get("top_logprobs") or [None] * len(told["tokens"])
    for token, value, others in zip(told["tokens"], told["token_logprobs"], ranked, strict=True):
        ordered = sorted((others or {}).items(), key=lambda item: -item[1])[:n_top]
        top = tuple(_token(text, logprob, tokenizer) for text, logprob in ordered)
        yield _token(token, value, tokenizer, top)


def _chat_token(entry: dict[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    data = entry.get("bytes")
    data = entry["token"].encode("utf-8", "replace") if data is None else bytes(data)
    return TokenLogprob(entry["token"], data, _value(entry["logprob"]), top)


def _token(
    text: str, value: Any, tokenizer: Tokenizer | None, top: tuple[TokenLogprob, ...] = ()
) -> TokenLogprob:
    logprob = _value(value)
    if tokenizer is not None and text.startswith(_TOKEN_ID):
        return described(int(text.removeprefix(_TOKEN_ID)), logprob, tokenizer, top)
    return TokenLogprob(text, text.encode("utf-8", "replace"), logprob, top)


def _value(told: Any) -> float:
    return -math.inf if told is None else float(told)
