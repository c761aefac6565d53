"""One answer, as it is made: search, plan, ask the model, cite and check."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtral_rag.chat import ChatChineseMixtral
from mixtral_rag.citations import cite
from mixtral_rag.claims import checked, marks_pattern, supported_only, whole_marks
from mixtral_rag.context import Plan, plan_context
from mixtral_rag.errors import ContextError, ModelError, SettingsError
from mixtral_rag.history import condensed, full_question, n_tokens, recent_turns, to_langchain
from mixtral_rag.language import language_of
from mixtral_rag.prompts import QA_NOT_FOUND, QA_UNSUPPORTED, qa_messages
from mixtral_rag.types import Account, Answer, Message, Passage, Usage

if TYPE_CHECKING:
    from mixtral_rag.qa import DocumentQA

# Room for earlier turns, as a share of what the prompt may take.
_HISTORY_SHARE = 0.25
# Everything there is cannot fit where it has more passages or characters than this to a token.
_LEAST_PASSAGE, _MOST_CHARACTERS = 16, 8


@dataclass(frozen=True, slots=True)
class Asking:
    """A question with the turns before it, counted by the model that will answer."""

    chat: ChatChineseMixtral
    question: str
    turns: Sequence[Message]

    def messages(self, passages: Sequence[Passage]) -> list[Message]:
        """The conversation that asks about some passages."""
        language = language_of(self.question)
        return qa_messages(self.question, passages, language=language, history=self.turns)

    def prompt(self, passages: Sequence[Passage]) -> int:
        """Tokens of that conversation."""
        return n_tokens(self.chat, self.messages(passages))

    def text(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.chat.count_tokens(text))

    def account(self, plan: Plan, reserve: int) -> Account:
        """What became of the window under `plan`."""
        alone = self.prompt([])
        question = self.text(self.question)
        empty = Message("user", "")
        history = n_tokens(self.chat, [*self.turns, empty]) - n_tokens(self.chat, [empty])
        sizes = [self.text(p.text) for p in plan.passages]
        heads = plan.tokens - alone - sum(sizes)  # numbers, names and places
        shares = [size + heads // len(sizes) for size in sizes]
        if shares:
            shares[0] += plan.tokens - alone - sum(shares)
        return Account(
            n_ctx=self.chat.n_ctx_used,
            answer=reserve,
            budget=plan.budget,
            instructions=alone - question - history,
            history=history,
            question=question,
            passages=tuple(shares),
            is_whole=plan.is_whole,
            left_out=plan.left_out,
            predicted_seconds=_predicted(self.chat, plan.tokens),
        )


def _predicted(chat: ChatChineseMixtral, n_tokens: int) -> float | None:
    """Seconds to the first token from what `doctor` measured; None where it measured nothing."""
    if chat.engine != "llamacpp" or not (model := Path(chat.model)).is_file():
        return None
    from mixtral_rag.engines.llama_measure import known_speed

    names = ("n_threads", "n_gpu_layers", "n_batch", "kv_type")
    options = {name: getattr(chat, name) for name in names if getattr(chat, name) is not None}
    speed = known_speed(model, **options)
    return speed.predicted(n_tokens, 0).first_token_seconds if speed else None


class AnswerStream:
    """The text of an answer as it is made; `answer` is there once it has been read to its end."""

    def __init__(
        self,
        qa: "DocumentQA",
        chat: ChatChineseMixtral,
        question: str,
        history: Sequence[Message],
    ) -> None:
        self._qa, self._chat, self._question = qa, chat, question
        self._history = list(history)
        self._answer: Answer | None = None
        self._last: Any = None  # the chunk that says how it ended
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def answer(self) -> Answer:
        """The whole answer with its citations; reads what is left of the stream."""
        for _ in self._pieces:
            pass
        assert self._answer is not None
        return self._answer

    def _run(self) -> Iterator[str]:
        question, started = self._question, time.monotonic()
        hits = self._hits()
        searched = time.monotonic()
        is_strange = not self._history and not self._qa.retriever.is_relevant(question, hits)
        if is_strange or not hits:
            text = QA_NOT_FOUND[language_of(question)]
            seconds = {"search": searched - started, "total": searched - started}
            self._answer = Answer(question, text, found=False, seconds=seconds)
            yield text
            return
        asking, plan, account = self._planned(hits)
        parts: list[str] = []
        first: float | None = None
        for piece in self._said(asking, plan):
            first = first or time.monotonic()
            parts.append(piece)
            yield piece
        done = time.monotonic()
        seconds = {
            "search": searched - started,
            "first_token": (first or done) - searched,
            "total": done - started,
        }
        self._answer = self._made("".join(parts).strip(), plan, account, seconds)

    def _said(self, asking: Asking, plan: Plan) -> Iterator[str]:
        """What the model says, its marks whole; without unsupported sentences if so wished."""
        pieces = whole_marks(self._generated(asking.messages(plan.passages), len(plan.passages)))
        if not self._qa.drop_unsupported:
            yield from pieces
            return
        is_any = False
        for piece in supported_only(pieces, plan.passages):
            is_any = True
            yield piece
        if not is_any:
            yield QA_UNSUPPORTED[language_of(self._question)]

    def _generated(self, messages: Sequence[Message], n_passages: int) -> Iterator[str]:
        """What the model says; it cannot name a passage there is not, where the engine allows."""
        chat = self._chat
        held: dict[str, Any] = {}
        if chat.takes_pattern and chat.json_schema is None and chat.pattern is None:
            held["pattern"] = marks_pattern(n_passages)
        for chunk in chat.stream(to_langchain(messages), **held):
            self._last = chunk if chunk.usage_metadata else self._last
            yield str(chunk.content)

    def _hits(self) -> list[Passage]:
        """Passages for the question, and for the full question that a follow-up stands for."""
        qa, question = self._qa, self._question
        qa.check_filter()
        asked = [m.content for m in self._history if m.role == "user"]
        if asked and qa.rewrite_followups:
            question = full_question(self._chat, question, self._history)
        return qa.retriever.search(
            question, previous=asked[-1] if asked else None, filter=qa.filter,
            k=qa.retriever.candidates if qa.top_k is None else qa.top_k,
        )  # fmt: skip

    def _planned(self, hits: Sequence[Passage]) -> tuple[Asking, Plan, Account]:
        """Which passages fit, the conversation that asks about them, and the account of it."""
        qa, chat = self._qa, self._chat
        reserve = chat.max_tokens or chat.n_ctx_used // 4
        budget = min(chat.n_ctx_used - reserve, qa.context_tokens)
        fitted = condensed if qa.condense == "model" else recent_turns
        asking = Asking(
            chat, self._question, fitted(chat, self._history, int(budget * _HISTORY_SHARE))
        )
        ledger = qa.store.ledger
        plan = plan_context(
            hits,
            asking,
            budget=budget,
            top_k=qa.retriever.top_k,
            around=lambda hit, distance: ledger.near(hit.path, hit.position, distance),
            everything=self._everything(budget),
        )
        if not plan.passages:
            self._refuse(asking.prompt(hits[:1]), budget, reserve)
        return asking, plan, asking.account(plan, reserve)

    def _everything(self, budget: int) -> list[Passage] | None:
        """All passages, where they may fit and nothing narrows the search."""
        qa, ledger = self._qa, self._qa.store.ledger
        if qa.top_k is not None or qa.filter or ledger.count() * _LEAST_PASSAGE > budget:
            return None
        return None if ledger.n_characters() > budget * _MOST_CHARACTERS else ledger.all_passages()

    def _refuse(self, needed: int, budget: int, reserve: int) -> None:
        n_ctx = self._chat.n_ctx_used
        if budget < n_ctx - reserve:
            raise SettingsError(
                f"the question with one passage takes {needed:,} tokens, more than the "
                f"context_tokens of {budget:,}; raise it or leave it out"
            )
        raise ContextError(prompt_tokens=needed, max_tokens=reserve, n_ctx=n_ctx)

    def _made(self, text: str, plan: Plan, account: Account, seconds: dict[str, float]) -> Answer:
        if (last := self._last) is None:
            raise ModelError("the model ended without saying why")
        counted = last.usage_metadata
        return Answer(
            self._question,
            text,
            citations=cite(text, self._question, plan.passages),
            passages=plan.passages,
            claims=checked(text, plan.passages),
            usage=Usage(
                counted["input_tokens"],
                counted["output_tokens"],
                counted["input_token_details"]["cache_read"],
            ),
            finish_reason=last.response_metadata.get("finish_reason"),
            seconds=seconds,
            account=account,
        )
