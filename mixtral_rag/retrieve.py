"""Question to ranked passages, and whether they have to do with the question at all."""

from collections.abc import Sequence

from mixtral_rag.language import terms
from mixtral_rag.store.documents import DocumentStore
from mixtral_rag.types import Passage

# What sharing all its words with the passages adds to a question's cosine. Fitted on CMRC 2018
# and Debian documents with multilingual-e5-small: the best of 0 to 0.3.
_SHARED_WORDS = 0.05
_COMPARED = 4


class Retriever:
    """Search over a store.

    Args:
        store: the documents.
        top_k: how many passages to return.
    """

    def __init__(self, store: DocumentStore, *, top_k: int = 8) -> None:
        self.store, self.top_k = store, top_k

    def search(self, question: str, *, previous: str | None = None) -> list[Passage]:
        """The best passages, best first, with cosines as scores.

        `previous` is the question before this one in a conversation. A follow-up often names its
        subject only there, so passages near both together count too.

        Raises:
            EmptyStoreError: nothing has been ingested.
        """
        hits = self.store.search(question, self.top_k)
        if previous:
            hits += self.store.search(f"{previous} {question}", self.top_k)
        best: dict[str, Passage] = {}
        for hit in hits:
            if hit.id not in best or _score(hit) > _score(best[hit.id]):
                best[hit.id] = hit
        return sorted(best.values(), key=_score, reverse=True)[: self.top_k]

    def is_relevant(self, question: str, hits: Sequence[Passage]) -> bool:
        """Whether the best passages have to do with the question.

        The best cosine, plus a little for the share of the question's words that the first few
        passages hold, must reach what the embedder gives as its mark.
        """
        if not hits:
            return False
        wanted = terms(question)
        held = set().union(*(terms(_all_text(h)) for h in hits[:_COMPARED]))
        shared = len(wanted & held) / len(wanted) if wanted else 0.0
        return _score(hits[0]) + _SHARED_WORDS * shared >= self.store.embedder.relevant


def _score(passage: Passage) -> float:
    return passage.score if passage.score is not None else 0.0


def _all_text(passage: Passage) -> str:
    return " ".join((passage.title, *passage.section, passage.text))
