"""Reading documents ahead, so that the first question about them need not wait for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixtral_rag.asking import Asking, window_shares
from mixtral_rag.chat import ChatChineseMixtral
from mixtral_rag.context import arrange
from mixtral_rag.errors import SettingsError
from mixtral_rag.history import to_langchain
from mixtral_rag.language import language_of
from mixtral_rag.types import Language, Passage

if TYPE_CHECKING:
    from mixtral_rag.qa import DocumentQA

_SAMPLE, _SAMPLED = 400, 200  # characters of each passage that tell the language; passages
_QUESTION: dict[Language, str] = {"zh": "问", "en": "ask"}  # which tells the instructions' language


@dataclass(frozen=True, slots=True)
class Warmed:
    """What was read ahead.

    Args:
        n_documents, n_passages: how many of each.
        n_tokens: tokens of all prompts that were read.
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


def warm(
    qa: "DocumentQA",
    chat: ChatChineseMixtral,
    language: Language | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Warmed:
    """Let the model read all documents that pass the filter of `qa`.

    What it computes stays in memory and, with a `kv_folder`, on the disk. A question about the same
    documents then costs its own tokens. Documents that are read together must fit one prompt;
    passages that are read apart are computed one by one, however many they are.

    Args:
        qa: the documents.
        chat: the model.
        language: of the questions to come, which the instructions are written in; None takes that
            of the documents.
        on_progress: gets how many prompts have been read, and of how many.

    Raises:
        SettingsError: the documents do not fit one prompt, or only the best passages are asked for.
        EmptyStoreError: nothing has been ingested.
        NoDocumentsError: no document passes the filter.
    """
    qa.check_filter()
    started = time.monotonic()
    _, budget = window_shares(chat, qa.context_tokens)
    is_apart = qa.is_apart
    if is_apart:
        passages = qa.filtered()
    elif qa.top_k is not None:
        raise SettingsError("documents are read ahead only as a whole; leave out top_k")
    else:
        passages = arrange(qa.everything(budget) or [])
    language = language or language_of(" ".join(p.text[:_SAMPLE] for p in passages[:_SAMPLED]))
    asking = Asking(chat, _QUESTION[language], (), is_apart)
    groups = [[p] for p in passages] if is_apart else [passages]
    if not is_apart:
        _check_fits(asking, passages, budget)
    read = cached = 0
    for done, group in enumerate(groups):
        on_progress(done, len(groups))
        for chunk in chat.stream(
            to_langchain(asking.messages(group)), max_tokens=1, apart=asking.apart(group)
        ):
            if (counted := chunk.usage_metadata) is not None:
                read += counted["input_tokens"]
                cached += counted["input_token_details"]["cache_read"]
    n_documents = len({p.path for p in passages})
    taken = time.monotonic() - started
    return Warmed(n_documents, len(passages), read, cached, language, taken)


def _check_fits(asking: Asking, passages: list[Passage], budget: int) -> None:
    needed = asking.prompt(passages) if passages else None
    if needed is None or needed > budget:
        size = "more" if needed is None else f"{needed:,} tokens, more"
        raise SettingsError(
            f"the documents take {size} than the {budget:,} tokens that a prompt may; raise "
            "context_tokens (and n_ctx), choose fewer documents, or let passages be read apart"
        )
