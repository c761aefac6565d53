"""Damaged indexes are noticed, made anew and never believed; all ways with DAMAGES=all."""

import os
import random
import shutil
import sqlite3

import child
import pytest
from checks import check_found, content, opened
from corpus import Corpus
from damages import DAMAGES, DATABASE, FILES, damage

from mixtral_rag.errors import StoreError

CHOSEN = DAMAGES if os.environ.get("DAMAGES") == "all" else random.Random(3).sample(DAMAGES, 14)


class Damaged:
    """A store of more than 1,000 passages, so that there is a graph, and an older index of it."""

    def __init__(self, folder):
        self.store, self.older = folder / "store", folder / "older"
        corpus, acks = Corpus(folder / "docs", 420, 3), folder / "acks"
        child.finish(self.store, corpus.folder, acks)
        shutil.copytree(self.index, self.older)
        for _ in range(8):
            corpus.change()
        child.finish(self.store, corpus.folder, acks)
        assert all(any(f.rglob(name)) for f in (self.index, self.older) for name in FILES)

    @property
    def index(self):
        (index,) = self.store.glob("index-*")
        return index


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return Damaged(tmp_path_factory.mktemp("damages"))


@pytest.fixture
def folder(damaged, tmp_path):
    return shutil.copytree(damaged.store, tmp_path / "store")


def some_texts(store):
    return [t for texts in content(store).values() for t in texts][::60]


@pytest.mark.parametrize("name", CHOSEN)
def test_a_damaged_index_is_made_anew(name, damaged, folder, caplog):
    if not damage(name, folder, folder / damaged.index.name, damaged.older):
        pytest.skip("this changes nothing in this file")
    store = opened(folder, exact_bytes=0)
    check_found(store, some_texts(store))
    # Chroma's database has bytes that mean nothing; any other change is noticed.
    assert "is made anew" in caplog.text or (name.startswith("flip") and DATABASE in name)
    assert set(store.verify().values()) == {None}
    store.close()
    assert len(list(folder.glob("index-*"))) == 1


def test_a_sound_index_is_not_made_anew(folder, caplog):
    for _ in range(3):
        store = opened(folder, exact_bytes=0)
        texts = some_texts(store)
        check_found(store, texts)
        by_index, exact = (
            [p.id for t in texts for p in s.search(t[: len(t) // 2], 3)]
            for s in (store, opened(folder))
        )
        assert sum(a == b for a, b in zip(by_index, exact, strict=True)) > 0.95 * len(exact)
        store.close()
    assert caplog.text == ""


KEYWORDS = {
    "index gone": "DELETE FROM keywords_data WHERE id > 10",
    "index zeroed": "UPDATE keywords_data SET block = zeroblob(length(block)) WHERE id > 10",
    "structure zeroed": "UPDATE keywords_data SET block = zeroblob(length(block)) WHERE id = 10",
    "all gone": "DELETE FROM keywords_data",
    "pages gone": "DELETE FROM keywords_idx",
    "sizes gone": "DELETE FROM keywords_docsize",
    "a passage gone": "DELETE FROM keywords_docsize WHERE id = (SELECT min(id) FROM passages)",
    "version gone": "DELETE FROM keywords_config",
    "version unknown": "UPDATE keywords_config SET v = 99 WHERE k = 'version'",
    "table gone": "DROP TABLE keywords_data",
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_a_damaged_keyword_index_is_found_and_mended(name, folder):
    with sqlite3.connect(folder / "ledger.db") as db:
        db.execute(KEYWORDS[name])
    db.close()
    store = opened(folder)
    found = store.verify()
    assert found["keyword index"]
    assert (found["ledger"], found["vector index"]) == (None, None)
    store.repair()
    assert set(store.verify().values()) == {None}
    check_found(store, some_texts(store))
    store.close()


@pytest.mark.parametrize("name", ["all gone", "version unknown", "table gone", "a passage gone"])
def test_the_next_ingest_mends_a_keyword_index_that_is_plainly_damaged(name, folder, caplog):
    with sqlite3.connect(folder / "ledger.db") as db:
        db.execute(KEYWORDS[name])
    db.close()
    store = opened(folder)
    with store.writing():
        pass
    assert "the keyword index" in caplog.text
    assert set(store.verify().values()) == {None}
    check_found(store, some_texts(store))
    store.close()


@pytest.mark.parametrize("at", [0.3, 0.6])
def test_a_damaged_ledger_is_named_with_the_way_out(at, folder):
    with (folder / "ledger.db").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(int(size * at) // 4096 * 4096)
        file.write(b"\xff" * (size // 5))
    store = opened(folder)
    found = store.verify()
    assert found["ledger"]
    with pytest.raises(StoreError, match=r"ledger\.db.*damaged.*put back a copy"):
        store.repair()
    with pytest.raises(StoreError, match=r"ledger\.db.*damaged.*put back a copy"):
        some_texts(store)
    store.close()
