"""The LangChain retriever over a store of documents."""

from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from mixtral_rag.embeddings import open_embedder
from mixtral_rag.retrieve import Reranker, Retriever
from mixtral_rag.store.documents import DocumentStore, collection_folder, embedder_of
from mixtral_rag.store.filter import Filter
from mixtral_rag.types import Passage


class DocumentRetriever(BaseRetriever):
    """Passages of ingested documents, by meaning and by words at once.

    Set up:
        Ingest first: `mixtral-rag ingest ./docs`, or `open_qa(store=...).ingest([...])`.

    Key arguments:
        store: the documents; `DocumentRetriever.open(folder)` opens them.
        k: passages to return, 8. mode: `hybrid`, `dense` or `keyword`.
        diversity: 0 to below 1, maximal marginal relevance. min_score: least cosine.
        filter: which documents to search. reranker: orders the candidates anew.

    Usage:
        ```python
        retriever = DocumentRetriever.open("~/.local/share/mixtral_rag/store", k=4)
        retriever.invoke("年假有几天？")
        retriever.invoke("年假有几天？", k=2)
        ```

    In a chain:
        ```python
        chain = {"context": retriever, "question": RunnablePassthrough()} | prompt | chat
        ```

    Each document has as metadata: source, title, page and section where there are, position, score
    (cosine), keyword_score (BM25), rerank_score, and what a program gave along with it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    store: DocumentStore
    k: int = 8
    mode: str = "hybrid"
    diversity: float = 0.0
    min_score: float | None = None
    filter: Filter | None = None
    reranker: Reranker | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        collection: str | None = None,
        embedder: str | None = None,
        **options: Any,
    ) -> "DocumentRetriever":
        """A retriever over the store in `folder`; `options` are the fields above.

        Raises:
            EmbedderMismatchError: the store was made with another embedder.
        """
        place = collection_folder(Path(folder).expanduser(), collection)
        store = DocumentStore(place, open_embedder(embedder or embedder_of(place)))
        return cls(store=store, **options)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Filter | None = None,
    ) -> list[Document]:
        search = Retriever(
            self.store, top_k=k or self.k, mode=self.mode, diversity=self.diversity,
            min_score=self.min_score, reranker=self.reranker,
        )  # fmt: skip
        return [to_document(p) for p in search.search(query, filter=filter or self.filter)]


def to_document(passage: Passage) -> Document:
    """A passage as LangChain's `Document`."""
    metadata = dict(passage.metadata or {})
    metadata |= {"source": passage.path, "title": passage.title, "position": passage.position}
    if passage.pages:
        metadata |= {"page": passage.pages[0] - 1, "last_page": passage.pages[1] - 1}
    if passage.section:
        metadata["section"] = list(passage.section)
    for name in ("score", "keyword_score", "rerank_score"):
        if (value := getattr(passage, name)) is not None:
            metadata[name] = value
    return Document(id=passage.id, page_content=passage.text, metadata=metadata)
