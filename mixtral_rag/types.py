"""Frozen values that pass between the parts of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from mixtral_rag.errors import SettingsError

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled", "tool_calls"]
Language = Literal["zh", "en"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens one generation took; `cached_tokens` of the prompt needed no computing."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How to choose the next token.

    The defaults are those of the Chinese-Mixtral project's own scripts
    (`scripts/inference/inference_hf.py` and `scripts/openai_server_demo` of ymcui/Chinese-Mixtral:
    temperature 0.2, top-k 40, top-p 0.9, repetition penalty 1.1); `repeat_last_n` is llama.cpp's.

    Args:
        temperature: 0 takes the most likely token; higher is more varied, up to 2.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set with at least this probability; 1 keeps all.
        min_p: drop tokens below this share of the best one's probability; 0 drops none.
        repeat_penalty: divide the logits of recent tokens by this; 1 does nothing.
        repeat_last_n: how many recent tokens count as recent, prompt included.
        seed: random seed, None for a fresh one each time.
        max_tokens: most tokens to generate; None fills the context window.
        stop: texts that end the generation and are not part of it.
        json_schema: a JSON schema as text; only JSON that conforms to it can be generated.
        pattern: a regular expression that the whole text will match; without look-around and
            back-references. Not together with a JSON schema.
        logprobs: whether to return the log-probability of every token, as the model gave it,
            before any of these options.
        top_logprobs: how many of the likeliest tokens to return with it, at most 20.
    """

    temperature: float = 0.2
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.1
    repeat_last_n: int = 64
    seed: int | None = None
    max_tokens: int | None = 512
    stop: Sequence[str] = ()
    json_schema: str | None = None
    pattern: str | None = None
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        """Refuse values that would be ignored or misread by an engine."""
        for name in ("top_k", "repeat_last_n", "seed", "max_tokens", "top_logprobs"):
            self._check_type(name, int, optional=name in ("seed", "max_tokens"))
        for name in ("temperature", "top_p", "min_p", "repeat_penalty"):
            self._check_type(name, int | float)
        checks = {
            "temperature": (0 <= self.temperature <= 2, "from 0 to 2"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p < 1, "from 0 to below 1"),
            "repeat_penalty": (self.repeat_penalty > 0, "above 0"),
            "repeat_last_n": (self.repeat_last_n >= 0, "0 or more"),
            "max_tokens": (self.max_tokens is None or self.max_tokens > 0, "above 0, or None"),
            "top_logprobs": (0 <= self.top_logprobs <= 20, "from 0 to 20"),
        }
        for name, (fits, rule) in checks.items():
            if not fits:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be {rule}")
        if isinstance(self.stop, str) or not all(isinstance(s, str) for s in self.stop):
            raise SettingsError("stop must be a list of texts")
        if self.json_schema is not None and self.pattern is not None:
            raise SettingsError("json_schema and pattern cannot be had together")

    def _check_type(self, name: str, kind: Any, *, optional: bool = False) -> None:
        value = getattr(self, name)
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits and not (optional and value is None):
            what = "a whole number" if kind is int else "a number"
            raise SettingsError(f"{name} is {value!r}; it must be {what}")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of a token: its text, its bytes, and the likeliest in its place.

    `token` may be a part of a character and then reads U+FFFD; `data` holds the bytes. `top` is
    empty unless asked for, and is itself made of tokens without a `top`.
    """

    token: str
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of generated text; the last one carries why it ended and what it took.

    `logprobs`, where asked for, are of the tokens that came since the piece before.
    """

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, as search finds it and the model reads it.

    Args:
        id: stable key, the same as long as path, position and text are.
        path: the document's file.
        title: the document's title, its file name when it has none.
        text: the text as extracted.
        position: 0-based place in the document.
        pages: first and last page, 1-based, None where the format has no pages.
        section: headings from outermost to innermost.
        score: cosine similarity to the question, when found by search.
        keyword_score: BM25 of the question's words in it, when they were searched for.
        rerank_score: what a reranker gave it, when there is one.
        metadata: what a program gave along with its document; None for a file.
    """

    id: str
    path: str
    title: str
    text: str
    position: int
    pages: tuple[int, int] | None = None
    section: tuple[str, ...] = ()
    score: float | None = None
    keyword_score: float | None = None
    rerank_score: float | None = None
    metadata: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def name(self) -> str:
        """The document's file name."""
        return PurePath(self.path).name

    @property
    def where(self) -> str:
        """Page and headings for a person: `p. 12, 3 Installing > 3.1 Hardware`."""
        parts = []
        if self.pages:
            first, last = self.pages
            parts.append(f"p. {first}" if first == last else f"pp. {first}-{last}")
        if self.section:
            between = ("…",) if len(self.section) > 3 else ()
            parts.append(" > ".join([self.section[0], *between, *self.section[1:][-2:]]))
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Citation:
    """What an answer rests on: `quote` is verbatim text of the passage numbered `number`."""

    number: int
    passage: Passage
    quote: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of an answer.

    Args:
        text: the sentence, without the numbers of passages.
        numbers: of the passages it names.
        problems: what it says that they do not hold; empty when nothing was found wrong.
    """

    text: str
    numbers: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def is_supported(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A passage that was found and not sent to the model, or not whole, and why."""

    passage: Passage
    reason: str


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the context window.

    Args:
        n_ctx: the window, tokens.
        answer: tokens kept free for the answer.
        budget: most tokens the prompt could take.
        instructions: tokens of the prompt's fixed text.
        history: tokens of earlier turns.
        question: tokens of the question.
        passages: tokens of each passage, in the order of their numbers.
        is_whole: whether everything in the store was read.
        left_out: found passages that were not sent, and why.
        predicted_seconds: to the first token if nothing is cached, from what `doctor` measured;
            None where it was not run.
        is_apart: whether the passages were read each on its own, not having seen the others.
    """

    n_ctx: int
    answer: int
    budget: int
    instructions: int
    history: int
    question: int
    passages: tuple[int, ...]
    is_whole: bool
    left_out: tuple[LeftOut, ...]
    predicted_seconds: float | None = None
    is_apart: bool = False

    @property
    def prompt(self) -> int:
        """Tokens of the whole prompt."""
        return self.instructions + self.history + self.question + sum(self.passages)


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a question.

    Args:
        text: the answer, in the question's language.
        citations: the passages it rests on, in the order of their numbers.
        passages: all passages the model was given, numbered from 1 in this order.
        claims: its sentences, each checked against the passages it names.
        found: False when nothing relevant was found and the model was not asked.
        usage: tokens used, None when the model was not asked.
        finish_reason: why generation ended, None when the model was not asked.
        seconds: taken by `search`, until the `first_token` after it, and in `total`.
        account: what the model was given and what not, None when it was not asked.
    """

    question: str
    text: str
    citations: tuple[Citation, ...] = ()
    passages: tuple[Passage, ...] = ()
    claims: tuple[Claim, ...] = ()
    found: bool = True
    usage: Usage | None = None
    finish_reason: FinishReason | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    account: Account | None = None
