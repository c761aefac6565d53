"""What the model was sent of late: beginnings of prompts that it need not read again."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mixtral_rag.types import Language, Message, Passage

_MOST = 64  # conversations


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation with the model.

    Args:
        messages: as they were sent, the answer last.
        passages: all that stand in them, by their numbers.
        said: the plain questions and answers.
        language: of the first question, and so of the instructions.
        scope: which documents, in which state, it is about; see `DocumentQA.scope`.
        is_whole: whether the passages are everything there is.
        apart: the texts in it that were read each on its own.
    """

    messages: Sequence[Message]
    passages: tuple[Passage, ...]
    said: tuple[str, ...]
    language: Language
    scope: str
    is_whole: bool = False
    apart: tuple[str, ...] = ()


class Recent:
    """The latest conversations of a `DocumentQA`, by what was said in them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: OrderedDict[tuple[str, ...], Asked] = OrderedDict()  # the latest last

    def remember(self, asked: Asked) -> None:
        """Keep a conversation, and drop the longest unused."""
        with self._lock:
            key = tuple(text.strip() for text in asked.said)
            self._asked[key] = asked
            self._asked.move_to_end(key)
            while len(self._asked) > _MOST:
                self._asked.popitem(last=False)

    def conversation(self, history: Sequence[Message], scope: str) -> Asked | None:
        """What the model was sent in a conversation that went so."""
        with self._lock:
            asked = self._asked.get(tuple(m.content.strip() for m in history))
        return asked if asked is not None and asked.scope == scope else None

    def sets(self, language: Language, scope: str) -> list[tuple[Passage, ...]]:
        """Passages that stand at the beginning of prompts, the latest first."""
        with self._lock:
            found = [
                asked.passages
                for asked in reversed(self._asked.values())
                if asked.language == language and asked.scope == scope
                and len(asked.said) == 2 and not asked.is_whole and not asked.apart
            ]  # fmt: skip
        return list(dict.fromkeys(found))


def holds(passages: Sequence[Passage], wanted: Passage) -> bool:
    """Whether a passage stands in one of `passages`, which may be several in one."""
    return any(p.path == wanted.path and wanted.text in p.text for p in passages)


def scored(passages: Sequence[Passage], hits: Sequence[Passage]) -> tuple[Passage, ...]:
    """Passages of an earlier question with what a new search found of them."""
    return tuple(
        replace(
            passage,
            score=_best(h.score for h in held),
            keyword_score=_best(h.keyword_score for h in held),
            rerank_score=_best(h.rerank_score for h in held),
        )
        for passage in passages
        for held in ([h for h in hits if holds([passage], h)],)
    )


def _best(scores: Iterable[float | None]) -> float | None:
    return max((s for s in scores if s is not None), default=None)
