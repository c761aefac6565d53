"""A question as the model is asked it: about passages, or as the next turn of a conversation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixtral_rag.chat import ChatChineseMixtral
from mixtral_rag.context import Plan
from mixtral_rag.history import n_tokens
from mixtral_rag.language import language_of
from mixtral_rag.prompts import PART_END, lasting_numbers, qa_messages, qa_next_turn, qa_passage
from mixtral_rag.recent import Asked
from mixtral_rag.types import Account, Message, Passage

_COMPUTED = 0.08  # of passages that are read apart, what the best one may be to be computed anew


@dataclass(frozen=True, slots=True)
class Asking:
    """A question with the turns before it, counted by the model that will answer.

    Args:
        chat: the model.
        question: what is asked.
        turns: before it.
        is_apart: whether passages are read each on its own; their numbers then last.
    """

    chat: ChatChineseMixtral
    question: str
    turns: Sequence[Message]
    is_apart: bool = False

    def messages(self, passages: Sequence[Passage]) -> list[Message]:
        """The conversation that asks about some passages."""
        return qa_messages(
            self.question, passages, language=language_of(self.question), history=self.turns,
            numbers=self.numbers(passages),
        )  # fmt: skip

    def numbers(self, passages: Sequence[Passage]) -> Sequence[int]:
        """Those of the passages in the prompt."""
        return lasting_numbers(passages) if self.is_apart else range(1, len(passages) + 1)

    def apart(self, passages: Sequence[Passage]) -> tuple[str, ...]:
        """The texts in the prompt that are read each on its own.

        The last passage, which is the best one (see `best_last`), is not where it is a small part
        of them: computed after all others it makes up for more than is lost where many were read
        apart (tests/benchmarks/apart.py), and the first token still takes about a tenth at most.
        """
        if not self.is_apart:
            return ()
        pairs = zip(self.numbers(passages), passages, strict=True)
        texts = [qa_passage(number, passage) + PART_END for number, passage in pairs]
        sizes = [len(text) for text in texts]
        return tuple(texts[:-1] if sizes and sizes[-1] <= _COMPUTED * sum(sizes) else texts)

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
        return _account(self.chat, plan, reserve, history, question, shares, self.is_apart)


@dataclass(frozen=True, slots=True)
class NextTurn:
    """A question that goes on from what the model was sent, with passages that it lacks."""

    chat: ChatChineseMixtral
    question: str
    before: Asked

    def messages(self, passages: Sequence[Passage]) -> list[Message]:
        """The conversation; `passages` are those it has so far, and then new ones."""
        known = len(self.before.passages)
        turn = qa_next_turn(
            self.question, passages[known:], numbers=self.numbers(passages)[known:],
            language=language_of(self.question),
        )  # fmt: skip
        return [*self.before.messages, turn]

    def numbers(self, passages: Sequence[Passage]) -> Sequence[int]:
        """Those of the passages in the prompt; known ones keep theirs."""
        return lasting_numbers(passages) if self.before.apart else range(1, len(passages) + 1)

    def apart(self, passages: Sequence[Passage]) -> tuple[str, ...]:
        """Those of the conversation's beginning."""
        return self.before.apart

    def prompt(self, passages: Sequence[Passage]) -> int:
        """Tokens of the conversation with these passages as new ones."""
        return n_tokens(self.chat, self.messages([*self.before.passages, *passages]))

    def text(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.chat.count_tokens(text))

    def account(self, plan: Plan, reserve: int) -> Account:
        """What became of the window; names and places of passages count as instructions."""
        question = self.text(self.question)
        shares = [self.text(p.text) for p in plan.passages]
        history = sum(self.text(text) for text in self.before.said)
        is_apart = bool(self.before.apart)
        return _account(self.chat, plan, reserve, history, question, shares, is_apart)


def best_last(passages: Sequence[Passage], hits: Sequence[Passage]) -> tuple[Passage, ...]:
    """Passages in the order of a search from its end, those it did not find before all others.

    Models find best what stands nearest to the question, the more so where passages have not seen
    each other.
    """
    rank = {hit.id: -n for n, hit in enumerate(hits)}
    return tuple(sorted(passages, key=lambda p: rank.get(p.id, -len(hits))))


def window_shares(chat: ChatChineseMixtral, context_tokens: int) -> tuple[int, int]:
    """Tokens of the window that are kept for the answer, and that a prompt may take."""
    reserve = chat.max_tokens or chat.n_ctx_used // 4
    return reserve, min(chat.n_ctx_used - reserve, context_tokens)


def _account(
    chat: ChatChineseMixtral, plan: Plan, reserve: int, history: int, question: int,
    shares: Sequence[int], is_apart: bool,
) -> Account:  # fmt: skip
    return Account(
        n_ctx=chat.n_ctx_used,
        answer=reserve,
        budget=plan.budget,
        instructions=plan.tokens - history - question - sum(shares),
        history=history,
        question=question,
        passages=tuple(shares),
        is_whole=plan.is_whole,
        left_out=plan.left_out,
        predicted_seconds=_predicted(chat, plan.tokens),
        is_apart=is_apart,
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
