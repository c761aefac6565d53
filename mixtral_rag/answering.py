"""One answer, as it is made: search, plan, ask the model, cite and check."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mixtral_rag.asking import Asking, NextTurn, best_last, window_shares
from mixtral_rag.chat import ChatChineseMixtral
from mixtral_rag.citations import cite
from mixtral_rag.claims import (
    checked,
    marks_pattern,
    renumbered,
    supported_only,
    whole_marks,
)
from mixtral_rag.context import Plan, plan_context
from mixtral_rag.errors import ContextError, ModelError, SettingsError
from mixtral_rag.history import condensed, full_question, recent_turns, to_langchain
from mixtral_rag.language import language_of
from mixtral_rag.prompts import MOST_LASTING, QA_NOT_FOUND, QA_UNSUPPORTED
from mixtral_rag.recent import Asked, holds, scored
from mixtral_rag.types import Account, Answer, Message, Passage, Usage

if TYPE_CHECKING:
    from mixtral_rag.qa import DocumentQA

# Room for earlier turns, as a share of what the prompt may take.
_HISTORY_SHARE = 0.25


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
        self._before: Asked | None = None  # this conversation as the model was sent it
        self._answer: Answer | None = None
        self._scope = ""
        self._raw = ""  # what the model said, with the numbers of its prompt
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
        self._scope = self._qa.scope  # what is read from here on may be newer, never older
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
        self._remember(asking, plan)

    def _said(self, asking: Asking | NextTurn, plan: Plan) -> Iterator[str]:
        """What the model says, its marks whole; without unsupported sentences if so wished."""
        pieces = whole_marks(self._generated(asking, plan))
        if asking.apart(plan.passages):
            named = {n: i for i, n in enumerate(asking.numbers(plan.passages), start=1)}
            pieces = (renumbered(piece, named) for piece in pieces)
        if not self._qa.drop_unsupported:
            yield from pieces
            return
        is_any = False
        for piece in supported_only(pieces, plan.passages):
            is_any = True
            yield piece
        if not is_any:
            yield QA_UNSUPPORTED[language_of(self._question)]

    def _generated(self, asking: Asking | NextTurn, plan: Plan) -> Iterator[str]:
        """What the model says; it cannot name a passage there is not, where the engine allows."""
        chat, passages = self._chat, plan.passages
        held: dict[str, Any] = {}
        if chat.takes_pattern and chat.json_schema is None and chat.pattern is None:
            held["pattern"] = marks_pattern(asking.numbers(passages))
        if apart := asking.apart(passages):
            held["apart"] = apart
        for chunk in chat.stream(to_langchain(asking.messages(passages)), **held):
            self._last = chunk if chunk.usage_metadata else self._last
            self._raw += str(chunk.content)
            yield str(chunk.content)

    def _hits(self) -> list[Passage]:
        """Passages for the question, and for the full question that a follow-up stands for."""
        qa, question = self._qa, self._question
        qa.check_filter()
        asked = [m.content for m in self._history if m.role == "user"]
        if asked:
            self._before = qa.recent.conversation(self._history, self._scope)
        if asked and qa.rewrite_followups:
            before = self._before
            question = full_question(
                self._chat, question, self._history,
                before.messages if before else (), before.apart if before else (),
            )  # fmt: skip
        return qa.retriever.search(
            question, previous=asked[-1] if asked else None, filter=qa.filter,
            k=qa.retriever.candidates if qa.top_k is None else qa.top_k,
        )  # fmt: skip

    def _planned(self, hits: Sequence[Passage]) -> tuple[Asking | NextTurn, Plan, Account]:
        """Which passages fit, the conversation that asks about them, and the account of it."""
        qa, chat = self._qa, self._chat
        reserve, budget = window_shares(chat, qa.context_tokens)
        if self._before is not None:
            turn = NextTurn(chat, self._question, self._before)
            if (plan := self._going_on(turn, self._before, hits, reserve)) is not None:
                return turn, plan, turn.account(plan, reserve)
        fitted = condensed if qa.condense == "model" else recent_turns
        turns = fitted(chat, self._history, int(budget * _HISTORY_SHARE))
        is_apart = qa.is_apart and not turns
        asking = Asking(chat, self._question, turns, is_apart)
        ledger = qa.store.ledger
        plan = self._known_set(asking, hits, budget) or plan_context(
            hits,
            asking,
            budget=budget,
            top_k=qa.retriever.top_k,
            around=lambda hit, distance: ledger.near(hit.path, hit.position, distance),
            everything=qa.everything(budget),
            is_merged=not is_apart,
        )
        if not plan.passages:
            self._refuse(asking.prompt(hits[:1]), budget, reserve)
        if is_apart:
            plan = replace(plan, passages=best_last(plan.passages, hits))
        return asking, plan, asking.account(plan, reserve)

    def _going_on(
        self, turn: NextTurn, before: Asked, hits: Sequence[Passage], reserve: int
    ) -> Plan | None:
        """The next turn with what the conversation lacks; None where that does not fit.

        It may grow to the whole window: what was read stays read, and only new passages count
        towards `context_tokens`.
        """
        qa, chat = self._qa, self._chat
        new = [h for h in hits[: qa.retriever.top_k] if not holds(before.passages, h)]
        if before.apart and len(before.passages) + len(new) > MOST_LASTING:
            return None
        room = min(chat.n_ctx_used - reserve, turn.prompt([]) + qa.context_tokens)
        plan = plan_context(
            new, turn, budget=room, top_k=max(1, len(new)), is_merged=not before.apart
        )
        if plan.left_out or plan.tokens > room:
            return None
        known = scored(before.passages, hits)
        return replace(plan, passages=(*known, *plan.passages), is_whole=before.is_whole)

    def _known_set(self, asking: Asking, hits: Sequence[Passage], budget: int) -> Plan | None:
        """The passages of an earlier prompt, where all of the best ones are among them."""
        qa, best = self._qa, hits[: self._qa.retriever.top_k]
        if self._history or asking.is_apart:
            return None
        for passages in qa.recent.sets(language_of(self._question), self._scope):
            if all(holds(passages, hit) for hit in best):
                tokens = asking.prompt(passages)
                if tokens <= budget:
                    return Plan(scored(passages, hits), (), tokens, budget)
        return None

    def _remember(self, asking: Asking | NextTurn, plan: Plan) -> None:
        assert self._answer is not None
        before, text = self._before if isinstance(asking, NextTurn) else None, self._answer.text
        raw = self._raw.strip() if asking.apart(plan.passages) else text
        self._qa.recent.remember(
            Asked(
                messages=[*asking.messages(plan.passages), Message("assistant", raw)],
                passages=plan.passages,
                said=(*(m.content for m in self._history), self._question, text),
                language=before.language if before else language_of(self._question),
                scope=self._scope,
                is_whole=plan.is_whole,
                apart=asking.apart(plan.passages),
            )
        )

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
