"""The store as LangChain's vector store and retriever: its own suites in full, and what is ours."""

import datetime as dt
import os

import pytest
from documents import BagEmbedder
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_tests.integration_tests import (
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)

from mixtral_rag import DocumentQA, DocumentRetriever, DocumentVectorStore, Filter
from mixtral_rag.errors import EmbedderMismatchError, SettingsError
from mixtral_rag.store.documents import DocumentStore


class TestVectorStore(VectorStoreIntegrationTests):
    """LangChain's suite."""

    @pytest.fixture
    def vectorstore(self, tmp_path):
        store = DocumentVectorStore(tmp_path / "store", self.get_embeddings())
        yield store
        store.documents.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "cats.md").write_text("# Cats\nCats sleep most of the day.\n")
    (folder / "dogs.txt").write_text("Dogs bark at strangers and sleep at night.\n")
    (folder / "deep").mkdir()
    (folder / "deep" / "birds.txt").write_text("Birds sleep on branches.\n")
    os.utime(folder / "dogs.txt", (0, dt.datetime(2020, 5, 17, 12).timestamp()))
    store = DocumentStore(tmp_path_factory.mktemp("store"), BagEmbedder())
    qa = DocumentQA(None, store)
    qa.ingest([folder])
    qa.ingest_documents(
        [Document(page_content="Fish sleep, too.", metadata={"source": "fish", "year": 2024})]
    )
    yield folder, store
    store.close()


class TestRetriever(RetrieversIntegrationTests):
    """LangChain's suite."""

    @pytest.fixture(autouse=True)
    def _filled(self, filled):
        type(self).store = filled[1]

    @property
    def retriever_constructor(self):
        return DocumentRetriever

    @property
    def retriever_constructor_params(self):
        return {"store": self.store}

    @property
    def retriever_query_example(self):
        return "Who sleeps?"


def found(filled, **options):
    retriever = DocumentRetriever(store=filled[1], filter=Filter(**options))
    return {os.path.basename(d.metadata["source"]) for d in retriever.invoke("Who sleeps?")}


def test_filters_choose_documents(filled):
    folder = filled[0]
    everything = {"cats.md", "dogs.txt", "birds.txt", "fish"}
    assert found(filled) == everything
    assert found(filled, paths=[folder / "deep"]) == {"birds.txt"}
    assert found(filled, paths=["cats.md", "fish"]) == {"cats.md", "fish"}
    assert found(filled, paths=["*.txt"]) == {"dogs.txt", "birds.txt"}
    assert found(filled, paths=[f"{folder}/d*"]) == {"dogs.txt", "birds.txt"}
    assert found(filled, types=[".MD"]) == {"cats.md"}
    assert found(filled, until=dt.date(2020, 5, 17)) == {"dogs.txt"}
    assert found(filled, since=dt.date(2020, 5, 18)) == everything - {"dogs.txt"}
    assert found(filled, metadata={"year": 2024}) == {"fish"}
    assert found(filled, metadata={"year": "2024"}) == {"fish"}
    assert found(filled, metadata={"year": 2024}, types=["md"]) == set()


def test_filters_that_can_never_hold_are_refused():
    with pytest.raises(SettingsError, match="must be a list"):
        Filter(paths="docs")
    with pytest.raises(SettingsError, match="nothing is since"):
        Filter(since=dt.date(2024, 2, 1), until=dt.date(2024, 1, 1))


def test_a_retrieved_document_tells_where_it_stands(filled):
    (document,) = DocumentRetriever(store=filled[1], k=1).invoke("What do cats do all day?")
    assert document.page_content == "# Cats\nCats sleep most of the day."
    metadata = document.metadata
    assert metadata["source"] == str(filled[0] / "cats.md")
    assert (metadata["section"], metadata["position"]) == (["Cats"], 0)
    assert 0 < metadata["score"] <= 1
    assert metadata["keyword_score"] > 0
    (document,) = DocumentRetriever(store=filled[1], k=1).invoke("Do fish sleep?")
    assert document.metadata["year"] == 2024


def test_a_threshold_leaves_out_what_is_far(filled):
    near = DocumentRetriever(store=filled[1], min_score=0.4).invoke("Dogs bark at strangers")
    assert [os.path.basename(d.metadata["source"]) for d in near] == ["dogs.txt"]


def test_odd_ids_come_back_as_they_were(tmp_path):
    store = DocumentVectorStore(tmp_path / "store", DeterministicFakeEmbedding(size=6))
    odd = ["a/b", "../x", ".", "中文 id", "a\nb", "%2F"]
    assert store.add_texts([f"text {i}" for i in range(6)], ids=odd) == odd
    assert [d.id for d in store.get_by_ids(odd)] == odd
    store.delete(odd[:5])
    assert [d.id for d in store.similarity_search("x", k=9)] == ["%2F"]
    with pytest.raises(SettingsError, match="empty"):
        store.add_texts(["x"], ids=[""])
    with pytest.raises(SettingsError, match="2 ids"):
        store.add_texts(["x"], ids=["1", "2"])
    with pytest.raises(SettingsError, match="needs ids"):
        store.delete()


def test_metadata_filters_scores_and_diversity(tmp_path):
    store = DocumentVectorStore.from_texts(
        ["cats sleep", "cats sleep a lot", "dogs bark"], BagEmbedder(),
        [{"n": 1}, {"n": 2}, {"n": 3}], folder=tmp_path / "store",
    )  # fmt: skip
    assert [d.metadata["n"] for d in store.similarity_search("cats", filter={"n": 2})] == [2]
    (first, score), *_ = store.similarity_search_with_relevance_scores("cats sleep", k=1)
    assert (first.metadata, round(score, 2)) == ({"n": 1}, 1.0)
    unlike = store.max_marginal_relevance_search("cats sleep", k=2, lambda_mult=0.3)
    assert [d.metadata["n"] for d in unlike] == [1, 3]
    by_vector = store.similarity_search_by_vector(BagEmbedder().query("dogs bark")[0].tolist(), k=1)
    assert by_vector[0].metadata == {"n": 3}
    assert [d.metadata["n"] for d in store.as_retriever(search_kwargs={"k": 1}).invoke("bark")] == [
        3
    ]


def test_it_stays_and_knows_its_embedder(tmp_path):
    store = DocumentVectorStore(tmp_path / "store", DeterministicFakeEmbedding(size=6))
    store.add_texts(["kept"], ids=["1"])
    store.documents.close()
    store = DocumentVectorStore(tmp_path / "store", DeterministicFakeEmbedding(size=6))
    assert store.similarity_search("x")[0].page_content == "kept"
    assert isinstance(store.embeddings, DeterministicFakeEmbedding)
    store.documents.close()
    with pytest.raises(EmbedderMismatchError):
        DocumentVectorStore(tmp_path / "store")
    with pytest.raises(SettingsError, match="folder="):
        DocumentVectorStore.from_texts(["x"], DeterministicFakeEmbedding(size=6))


def test_a_text_that_is_empty_can_be_stored(tmp_path):
    store = DocumentVectorStore(tmp_path / "store", DeterministicFakeEmbedding(size=6))
    store.add_texts(["", "x"], ids=["1", "2"])
    assert [d.page_content for d in store.get_by_ids(["1", "2"])] == ["", "x"]
