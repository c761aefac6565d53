"""BM25 over the keyword index, beside the plain formula."""

import math
import random
from collections import Counter
from pathlib import Path

import pytest
from documents import BagEmbedder

from mixtral_rag.ingest.split import Window
from mixtral_rag.language import keywords
from mixtral_rag.store import bm25
from mixtral_rag.store.bm25 import Bm25
from mixtral_rag.store.documents import DocumentStore
from mixtral_rag.store.embedded import text_hash
from mixtral_rag.store.ledger import Document

WORDS = [
    "北京",
    "上海",
    "天气",
    "晴朗",
    "cats",
    "dogs",
    "sleep",
    "bark",
    "在",
    "的",
    "年假",
    "规定",
]


def put(store, path, texts):
    hashes = [text_hash(t) for t in texts]
    with store.writing(), store.step() as step:
        step.embed(hashes, store.embedder.passages(texts))
        step.put(Document(Path(path), is_file=False), [Window(t, None, ()) for t in texts], hashes)


@pytest.fixture
def store(tmp_path):
    store = DocumentStore(tmp_path / "store", BagEmbedder())
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 30))) for _ in range(200)]
    put(store, "/texts", list(dict.fromkeys(texts)))
    yield store
    store.close()


def plain_bm25(texts, question):
    """The formula, over everything."""
    counts = {key: Counter(keywords(text)) for key, text in texts.items()}
    average = sum(c.total() for c in counts.values()) / len(counts)
    scores = dict.fromkeys(texts, 0.0)
    for term in dict.fromkeys(keywords(question)):
        n = sum(term in c for c in counts.values())
        weight = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
        for key, c in counts.items():
            length = 1.2 * (0.25 + 0.75 * c.total() / average)
            scores[key] += weight * c[term] * 2.2 / (c[term] + length) if c[term] else 0.0
    return scores


@pytest.mark.parametrize("question", ["上海的天气", "do cats sleep?", "北京 dogs 年假规定", "晴"])
def test_scores_are_those_of_the_formula(store, question):
    texts = {p.id: p.text for p in store.ledger.all_passages()}
    expected = plain_bm25(texts, question)
    found = Bm25(store.db).find(question, 20)
    best = sorted(expected.values(), reverse=True)[:20]
    assert [s for _, s in found] == pytest.approx(best)
    assert all(expected[key] == pytest.approx(s) for key, s in found)


def test_common_words_do_not_cost_the_answer(store, monkeypatch):
    """However many passages share the common words, the rare one leads to its passage."""
    put(store, "/rare", ["上海 天气 北京 的 zebra"])
    monkeypatch.setattr(bm25, "_COUNTED", 20)
    monkeypatch.setattr(bm25, "_MATCHED", 30)
    ranking = Bm25(store.db)
    (best, _) = ranking.find("上海 的 天气 zebra", 1)[0]
    assert store.ledger.passages([best])[best].text.endswith("zebra")
    weights = ranking.weights("上海 的 天气 zebra")
    assert next(iter(weights)) == "zebra"
    assert ranking._rare(weights) == ["zebra"]


def test_counts_beyond_the_limit_are_estimated(store, monkeypatch):
    exact = Bm25(store.db).weights("北京 cats")
    monkeypatch.setattr(bm25, "_COUNTED", 40)
    near = Bm25(store.db).weights("北京 cats")
    for term, weight in exact.items():
        assert near[term] == pytest.approx(weight, abs=0.35)


def test_traditional_and_simplified_meet(store):
    put(store, "/臺灣", ["臺灣的首都是臺北，氣候溫暖。", "台湾岛上有很多山。"])
    for question in ("台湾的气候", "臺灣的氣候", "ＴＡＩＷＡＮ 臺灣氣候"):
        key, _ = Bm25(store.db).find(question, 1)[0]
        assert "臺北" in store.ledger.passages([key])[key].text


def test_nothing_in_common_is_nothing_found(store):
    assert Bm25(store.db).find("zebra", 5) == []
    assert Bm25(store.db).find("???", 5) == []
    assert Bm25(store.db).find('"; DROP TABLE passages; --', 5) == []


def test_a_word_that_comes_with_an_edit_of_the_same_length_is_found(store):
    put(store, "/year", ["the fair of 2008"])
    ranks = Bm25(store.db)
    assert ranks.find("2009", 5) == []
    put(store, "/year", ["the fair of 2009"])
    assert len(ranks.find("2009", 5)) == 1
    assert ranks.find("2008", 5) == []
