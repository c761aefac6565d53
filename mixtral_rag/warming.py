"""Reading documents ahead, so that the first question about them need not wait for it."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixtral_rag.asking import Asking, shares
from mixtral_rag.chat import ChatChineseMixtral
from mixtral_rag.context import arrange
from mixtral_rag.errors import SettingsError
from mixtral_rag.history import to_langchain
from mixtral_rag.language import language_of
from mixtral_rag.prompts import qa_messages
from mixtral_rag.types import Language, Passage

if TYPE_CHECKING:
    from mixtral_rag.qa import DocumentQA

_SAMPLE = 400  # characters of each passage that tell the language


@dataclass(frozen=True, slots=True)
class Warmed:
    """What was read ahead.

    Args:
        n_documents, n_passages: how many of each.
        n_tokens: tokens of the prompt that asks about them.
        cached_tokens: how many of them were known before.
        language: of the questions it serves.
        seconds: that it took.
    """

    n_documents: int
    n_passages: int
    n_tokens: int
    cached_tokens: int
    language: Language
    seconds: float


def warm(qa: "DocumentQA", chat: ChatChineseMixtral, language: Language | None = None) -> Warmed:
    """Let the model read all documents that pass the filter of `qa`.

    What it computes stays in memory and, with a `kv_folder`, on the disk. A question about the same
    documents then costs its own tokens.

    Args:
        qa: the documents.
        chat: the model.
        language: of the questions to come, which the instructions are written in; None takes that
            of the documents.

    Raises:
        SettingsError: the documents do not fit one prompt, or only the best passages are asked for.
        EmptyStoreError: nothing has been ingested.
        NoDocumentsError: no document passes the filter.
    """
    qa.check_filter()
    if qa.top_k is not None:
        raise SettingsError("documents are read ahead only as a whole; leave out top_k")
    started = time.monotonic()
    _, budget = shares(chat, qa.context_tokens)
    passages = arrange(qa.everything(budget) or [])
    language = language or language_of(" ".join(p.text[:_SAMPLE] for p in passages))
    _check_fits(chat, passages, language, budget)
    messages = qa_messages("", passages, language=language)
    read = cached = 0
    for chunk in chat.stream(to_langchain(messages), max_tokens=1):
        if (counted := chunk.usage_metadata) is not None:
            read, cached = counted["input_tokens"], counted["input_token_details"]["cache_read"]
    n_documents = len({p.path for p in passages})
    taken = time.monotonic() - started
    return Warmed(n_documents, len(passages), read, cached, language, taken)


def _check_fits(
    chat: ChatChineseMixtral, passages: list[Passage], language: Language, budget: int
) -> None:
    question = {"zh": "问", "en": "ask"}[language]  # which tells the instructions' language
    needed = Asking(chat, question, ()).prompt(passages) if passages else None
    if needed is None or needed > budget:
        size = "more" if needed is None else f"{needed:,} tokens, more"
        raise SettingsError(
            f"the documents take {size} than the {budget:,} tokens that a prompt may; raise "
            "context_tokens (and n_ctx), or choose fewer documents"
        )
