"""The store as a LangChain vector store: texts go in one by one and come back as they were."""

import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from mixtral_rag.embeddings import open_embedder
from mixtral_rag.embeddings.any_langchain import AnyEmbeddings
from mixtral_rag.embeddings.base import Embedder
from mixtral_rag.errors import EmptyStoreError, SettingsError
from mixtral_rag.ingest.split import Window
from mixtral_rag.retrieve import Retriever
from mixtral_rag.retriever import to_document
from mixtral_rag.store.documents import DocumentStore, collection_folder
from mixtral_rag.store.embedded import text_hash
from mixtral_rag.store.filter import Filter
from mixtral_rag.store.ledger import Document as Entry
from mixtral_rag.types import Passage

_BY_ID = "id:"  # before the name in the ledger of what was put in under an id


class DocumentVectorStore(VectorStore):
    """LangChain's vector store over the ledger: transactions, one writer, an index that heals.

    Set up:
        ```python
        store = DocumentVectorStore("./store", embedding)  # any LangChain embeddings, or None
        ```

    Key arguments:
        folder: where it lives; made when missing.
        embedding: LangChain embeddings; None takes the embedded model.
        collection: a part of the store with documents of its own.

    Usage:
        ```python
        ids = store.add_documents([Document(page_content="...", metadata={"year": 2024})])
        store.similarity_search("question", k=4, filter={"year": 2024})
        store.max_marginal_relevance_search("question", k=4, lambda_mult=0.5)
        store.as_retriever(search_kwargs={"k": 4})
        store.delete(ids)
        ```

    A text is one passage, however long; `DocumentQA.ingest_documents` cuts them. Searching by words
    as well is what `DocumentRetriever(store=store.documents)` does.
    """

    def __init__(
        self,
        folder: str | Path,
        embedding: Embeddings | None = None,
        *,
        collection: str | None = None,
    ) -> None:
        embedder: Embedder
        if embedding is None:
            embedder = open_embedder()
        elif isinstance(embedding, Embeddings) and not hasattr(embedding, "fingerprint"):
            embedder = AnyEmbeddings(embedding)
        else:
            embedder = embedding  # type: ignore[assignment]  # one of our own
        place = collection_folder(Path(folder).expanduser(), collection)
        self.documents = DocumentStore(place, embedder)

    @property
    def embeddings(self) -> Embeddings | None:
        """What makes the vectors."""
        embedder: Any = self.documents.embedder
        return embedder.embeddings if isinstance(embedder, AnyEmbeddings) else embedder

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Put texts in, in one step; those under an id that is there take its place.

        Raises:
            SettingsError: there are more or fewer metadatas or ids than texts, or an id is empty.
            LockedError: another process is writing.
        """
        texts = list(texts)
        metadatas = metadatas or [{} for _ in texts]
        named = [i if i is not None else str(uuid.uuid4()) for i in ids or [None] * len(texts)]
        if not len(texts) == len(metadatas) == len(named):
            raise SettingsError(
                f"there are {len(texts)} texts, {len(metadatas)} metadatas and {len(named)} ids"
            )
        if not all(named):
            raise SettingsError("an id must not be empty")
        store, hashes = self.documents, [text_hash(text) for text in texts]
        with store.writing():
            known = store.embedded.known(hashes)
            new = {h: t for h, t in zip(hashes, texts, strict=True) if h not in known}
            vectors = store.embedder.passages(list(new.values())) if new else None
            with store.step() as step:
                if vectors is not None:
                    step.embed(list(new), vectors)
                for row in zip(named, texts, metadatas, hashes, strict=True):
                    name, text, metadata, digest = row
                    entry = Entry(
                        _path(name), sha256=digest.hex(), size=len(text), metadata=metadata,
                        is_file=False,
                    )  # fmt: skip
                    step.put(entry, [Window(text, None, ())], [digest])
                step.sweep()
        return named

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Take texts out by id; ids that are not there are ignored.

        Raises:
            SettingsError: no ids are given.
            LockedError: another process is writing.
        """
        if ids is None:
            raise SettingsError("delete needs ids")
        with self.documents.writing(), self.documents.step() as step:
            step.remove([_path(i) for i in ids])
            step.sweep()
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The texts under some ids, in their order; ids that are not there are left out."""
        ledger = self.documents.ledger
        passages = (p for i in ids for p in ledger.near(str(_path(i)), 0, 0))
        return [_as_given(p) for p in passages]

    def similarity_search(
        self, query: str, k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        """The `k` nearest texts, best first; `filter` is metadata, or a `Filter`."""
        return [d for d, _ in self.similarity_search_with_score(query, k, filter=filter)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The `k` nearest texts with their cosines, best first."""
        found = self._search(query, k, filter)
        return [(_as_given(p), p.score or 0.0) for p in found]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        """The `k` texts nearest to a vector, best first."""
        return [_as_given(p) for p in self._search(embedding, k, filter)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5,
        filter: Any = None, **kwargs: Any,
    ) -> list[Document]:  # fmt: skip
        """Texts near to the query and unlike one another; `lambda_mult` 1 is plain search."""
        try:
            search = Retriever(self.documents, mode="dense", diversity=min(0.999, 1 - lambda_mult))
            return [_as_given(p) for p in search.search(query, k=k, filter=_filter(filter))]
        except EmptyStoreError:
            return []

    def _search(self, query: str | list[float], k: int, filter: Any) -> list[Passage]:
        try:
            return self.documents.searching.nearest(query, k, filter=_filter(filter))
        except EmptyStoreError:
            return []

    def _select_relevance_score_fn(self) -> Any:
        return lambda cosine: max(0.0, min(1.0, cosine))

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        folder: str | Path | None = None,
        **kwargs: Any,
    ) -> "DocumentVectorStore":
        """A store in `folder` with these texts in it.

        Raises:
            SettingsError: no folder is given; what is kept needs a place.
        """
        if folder is None:
            raise SettingsError("from_texts needs folder=, where the store is to live")
        store = cls(folder, embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store


def _path(name: str) -> Path:
    return Path(_BY_ID + quote(name, safe=""))


def _as_given(passage: Passage) -> Document:
    if not passage.path.startswith(_BY_ID):
        return to_document(passage)
    metadata = dict(passage.metadata or {})
    name = unquote(passage.path.removeprefix(_BY_ID))
    return Document(id=name, page_content=passage.text, metadata=metadata)


def _filter(given: Any) -> Filter | None:
    return Filter(metadata=given) if isinstance(given, dict) else given
