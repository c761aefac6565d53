"""Ledger, index and ingest: twice is once, the newest version counts, kills lose nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from documents import BagEmbedder, write_pdf

from mixtral_rag.errors import (
    EmbedderMismatchError,
    EmptyStoreError,
    LockedError,
    NoDocumentsError,
    StoreError,
)
from mixtral_rag.ingest.discover import discover
from mixtral_rag.ingest.pipeline import ingest
from mixtral_rag.store.documents import DocumentStore, embedder_of


@pytest.fixture
def store(tmp_path):
    store = DocumentStore(tmp_path / "store", BagEmbedder())
    yield store
    store.close()


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "cats.txt").write_text("Cats sleep most of the day.\n")
    (folder / "dogs.md").write_text("# Dogs\nDogs bark at strangers.\n\n# Food\nDogs eat meat.\n")
    (folder / "鸟.txt").write_text("鸟类会飞翔，也会唱歌。\n")
    return folder


def best(store, question):
    return store.search(question, 1)[0]


def all_agree(store):
    return set(store.verify().values()) == {None}


def test_documents_are_found_with_their_place(store, docs):
    report = ingest([docs], store)
    assert len(report.added) == 3
    hit = best(store, "What do dogs eat?")
    assert (hit.name, hit.section, hit.text) == ("dogs.md", ("Food",), "# Food\nDogs eat meat.")
    assert best(store, "鸟会唱歌吗").name == "鸟.txt"
    assert 0 < hit.score <= 1


def test_ingesting_twice_changes_nothing(store, docs):
    ingest([docs], store)
    before = store.ledger.documents()
    report = ingest([docs, docs / "cats.txt"], store)
    assert (len(report.unchanged), report.added, report.updated) == (3, [], [])
    assert store.ledger.documents() == before
    assert all_agree(store)


def test_a_touched_file_is_not_embedded_again(store, docs, monkeypatch):
    ingest([docs], store)
    os.utime(docs / "cats.txt")
    monkeypatch.setattr(BagEmbedder, "passages", None)
    assert len(ingest([docs], store).unchanged) == 3


def test_an_edited_file_replaces_its_old_passages(store, docs):
    ingest([docs], store)
    (docs / "cats.txt").write_text("Lions roar at night.\n")
    report = ingest([docs], store)
    assert [p.name for p in report.updated] == ["cats.txt"]
    assert best(store, "lions roar").text == "Lions roar at night."
    assert all("Cats" not in p.text for p in store.search("cats sleep", 10))
    assert all_agree(store)


def test_removed_documents_leave_nothing_behind(store, docs):
    ingest([docs], store)
    with store.writing(), store.step() as step:
        step.remove([docs / "dogs.md"])
        step.sweep()
    assert all(p.name != "dogs.md" for p in store.search("dogs bark", 10))
    assert all_agree(store)


def test_bad_files_are_reported_and_good_ones_kept(store, docs):
    (docs / "empty.txt").touch()
    write_pdf(docs / "secret.pdf", ["x"], password="p")
    (docs / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    report = ingest([docs], store)
    assert len(report.added) == 3
    assert {p.name for p in report.failed} == {"empty.txt", "secret.pdf", "broken.pdf"}
    errors = {d.path.name: d.failure.reason for d in store.ledger.documents() if d.failure}
    assert "password" in errors["secret.pdf"]


def test_a_version_that_cannot_be_read_leaves_the_old_one(store, docs):
    ingest([docs], store)
    (docs / "cats.txt").write_bytes(b"")
    assert len(ingest([docs], store).failed) == 1
    assert best(store, "cats sleep").text == "Cats sleep most of the day."
    (docs / "cats.txt").write_text("Cats are awake.\n")
    assert len(ingest([docs], store).updated) == 1
    assert all(d.failure is None for d in store.ledger.documents())


def test_a_file_outside_the_formats_is_named_and_folders_pass_it_over(store, docs, tmp_path):
    (docs / "a.xyz").write_text("x")
    (docs / ".hidden.txt").write_text("x")
    assert ingest([docs], store).failed == {}
    report = ingest([docs / "a.xyz"], store)
    assert ".xyz" in next(iter(report.failed.values()))


def test_wrong_paths_change_nothing(store, docs, tmp_path):
    with pytest.raises(NoDocumentsError, match="no such file or folder"):
        ingest([docs, tmp_path / "nope"], store)
    (tmp_path / "void").mkdir()
    with pytest.raises(NoDocumentsError, match="no documents in"):
        ingest([tmp_path / "void"], store)
    assert store.ledger.documents() == []


def test_links_that_circle_are_not_followed(docs):
    (docs / "loop").symlink_to(docs)
    assert len(discover([docs]).files) == 3


def test_an_empty_store_says_what_to_type(store):
    with pytest.raises(EmptyStoreError, match="mixtral-rag ingest"):
        store.search("x", 1)


def test_another_embedder_is_refused(store, docs):
    ingest([docs], store)

    class Other(BagEmbedder):
        fingerprint = "other:1:64"

    with pytest.raises(EmbedderMismatchError, match=r"bag:1:1024.*--embedder bag:1:1024"):
        DocumentStore(store.folder, Other())
    assert embedder_of(store.folder) == "bag:1:1024"


def test_a_second_writer_is_told_who_writes(store, docs):
    with store.writing():
        second = DocumentStore(store.folder, BagEmbedder())
        started = time.monotonic()
        with pytest.raises(LockedError, match=f"by process {os.getpid()}"):
            ingest([docs], second)
        assert time.monotonic() - started < 1.5
        second.close()


def test_questions_are_answered_while_another_process_writes(store, docs):
    ingest([docs], store)
    with store.writing():
        with store.db.transaction():
            store.index.mark_behind()
        reader = DocumentStore(store.folder, BagEmbedder())
        assert best(reader, "dogs eat").section == ("Food",)
        reader.close()


def test_a_lost_or_damaged_index_is_made_anew_without_embedding(store, docs, monkeypatch):
    ingest([docs], store)
    store.close()
    passages = BagEmbedder.passages
    monkeypatch.setattr(
        BagEmbedder,
        "passages",
        lambda self, texts: passages(self, texts) if len(texts) == 1 else 1 / 0,
    )
    index = next(store.folder.glob("index-*"))
    for damage in (
        lambda: shutil.rmtree(index),
        lambda: next(store.folder.glob("index-*/*/chroma.sqlite3")).write_bytes(b"junk" * 999),
    ):
        damage()
        code = (
            "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
            "from documents import BagEmbedder\n"
            "from mixtral_rag.store.documents import DocumentStore\n"
            "store = DocumentStore(Path(sys.argv[1]), BagEmbedder(), exact_bytes=0)\n"
            "print(store.search('dogs eat', 1)[0].text)"
        )
        arguments = [sys.executable, "-c", code, str(store.folder), str(Path(__file__).parent)]
        out = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert "Dogs eat meat" in out.stdout
    assert len(list(store.folder.glob("index-*"))) == 1


def search_elsewhere(store, code):
    """Run `code` on the store `s` in another process."""
    head = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from documents import BagEmbedder\n"
        "from mixtral_rag.store.documents import DocumentStore\n"
        "from mixtral_rag.ingest.pipeline import ingest\n"
        "s = DocumentStore(Path(sys.argv[1]), BagEmbedder())\n"
    )
    arguments = [sys.executable, "-c", head + code, str(store.folder), str(Path(__file__).parent)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("exact_bytes", [0, 1 << 20])
def test_a_running_reader_sees_what_another_process_ingests(store, docs, exact_bytes):
    ingest([docs], store)
    reader = DocumentStore(store.folder, BagEmbedder(), exact_bytes=exact_bytes)
    assert best(reader, "cats sleep").name == "cats.txt"
    (docs / "cows.txt").write_text("Cows give milk.\n")
    (docs / "cats.txt").write_text("Lions roar.\n")
    search_elsewhere(store, f"ingest([Path({str(docs)!r})], s)")
    assert best(reader, "cows milk").name == "cows.txt"
    assert best(reader, "lions roar").text == "Lions roar."
    assert all("Cats" not in p.text for p in reader.search("cats sleep", 10))
    reader.close()


def test_passages_that_are_alike_do_not_hide_others(store, tmp_path):
    folder = tmp_path / "forms"
    folder.mkdir()
    for n in range(300):
        (folder / f"{n:03}.txt").write_text("The same form for everybody.\n")
    (folder / "other.txt").write_text("Zebras have stripes.\n")
    ingest([folder], store)
    assert best(store, "zebra zebras stripes").name == "other.txt"
    assert len(store.search("form", 301)) == 301


def test_the_index_gives_what_comparing_with_all_gives(store, docs):
    ingest([docs], store)
    by_index = DocumentStore(store.folder, BagEmbedder(), exact_bytes=0)
    for question in ("cats sleep", "dogs eat", "鸟会唱歌吗"):
        found, exact = best(by_index, question), best(store, question)
        assert found.id == exact.id
        assert found.score == pytest.approx(exact.score, abs=1e-4)
    by_index.close()


def test_a_rebuild_that_fails_leaves_nothing_behind(store, docs, monkeypatch):
    from mixtral_rag.store.vectors import IndexDamagedError, VectorIndex

    ingest([docs], store)

    def full(self, keys, vectors):
        self.folder.mkdir(parents=True)
        raise IndexDamagedError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(VectorIndex, "upsert", full)
        with store.writing(), pytest.raises(StoreError, match="is the disk full"):
            store.index.rebuild()
    assert len(list(store.folder.glob("index-*"))) == 1
    assert best(store, "dogs eat").section == ("Food",)


def test_a_database_error_is_ours(store, docs):
    ingest([docs], store)
    store.db._db.execute("DROP TABLE passages")
    with pytest.raises(StoreError, match="no such table"):
        store.search("x", 1)
    with (
        pytest.raises(StoreError, match="what was stored before is kept"),
        store.writing(),
        store.step() as step,
    ):
        step.remove([docs / "cats.txt"])


def test_a_renamed_file_and_its_copy_both_keep_their_passages(store, docs):
    ingest([docs], store)
    shutil.copy(docs / "cats.txt", docs / "a copy.txt")
    (docs / "cats.txt").rename(docs / "lions.txt")
    report = ingest([docs], store)
    assert (report.n_embedded, list(report.moved.values())) == (0, [docs / "cats.txt"])
    found = {p.name for p in store.search("cats sleep", 4) if p.text.startswith("Cats")}
    assert found == {"a copy.txt", "lions.txt"}


def test_vectors_that_a_cut_off_ingest_left_are_swept_away(store, docs):
    ingest([docs], store)
    with store.writing(), store.step() as step:
        step.embed([b"of a text that no file has any more"[:16]], store.embedder.query("x"))
    ingest([docs], store)
    assert store.db.select("SELECT count(*) FROM embeddings").fetchone() == (4,)


def test_two_long_lived_processes_write_in_turn(store, docs):
    """Chroma does not see in an open index what others write; each turn opens it anew."""
    ingest([docs], store)
    writer = DocumentStore(store.folder, BagEmbedder(), exact_bytes=0)
    assert best(writer, "cats sleep").name == "cats.txt"
    (docs / "cows.txt").write_text("Cows give milk.\n")
    search_elsewhere(store, f"ingest([Path({str(docs)!r})], s)")
    (docs / "owls.txt").write_text("Owls hunt mice.\n")
    ingest([docs], writer)
    writer.close()
    reader = DocumentStore(store.folder, BagEmbedder(), exact_bytes=0)
    for question, name in (("cows milk", "cows.txt"), ("owls mice", "owls.txt")):
        assert best(reader, question).name == name
    assert all_agree(reader)
    reader.close()


def test_file_names_that_are_not_utf8_are_kept(store, tmp_path):
    name = "合同.txt".encode("gbk")
    with open(os.path.join(os.fsencode(tmp_path), name), "w") as file:
        file.write("The contract ends in May.\n")
    report = ingest([tmp_path], store)
    assert report.failed == {}
    assert os.fsencode(best(store, "contract May").name) == name
    assert len(ingest([tmp_path], store).unchanged) == 1


def test_links_keep_their_own_names(store, tmp_path):
    blob = tmp_path / "blobs" / "abc123"
    blob.parent.mkdir()
    blob.write_text("Linked text.\n")
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "report.txt").symlink_to(blob)
    (folder / "again.txt").symlink_to(blob)
    report = ingest([folder], store)
    assert [p.name for p in report.added] == ["again.txt"]
    assert best(store, "linked").text == "Linked text."


def test_what_is_no_regular_file_is_refused(store, tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    report = ingest([tmp_path / "pipe.txt"], store)
    assert "not a regular file" in next(iter(report.failed.values()))


def test_a_killed_ingest_leaves_a_store_that_finishes(docs, tmp_path):
    """Kill an ingest at many moments; every committed document is found, and a rerun completes."""
    for n in range(40):
        (docs / f"{n}.txt").write_text(f"unique{n} fact number {n}. " * 40)
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[3]); from pathlib import Path\n"
        "from documents import BagEmbedder\n"
        "from mixtral_rag.store.documents import DocumentStore\n"
        "from mixtral_rag.ingest.pipeline import ingest\n"
        "s = DocumentStore(Path(sys.argv[1]), BagEmbedder())\n"
        "print('ready', flush=True)\n"
        "ingest([Path(sys.argv[2])], s)\n"
    )
    folder = tmp_path / "store"
    arguments = [sys.executable, "-c", code, str(folder), str(docs), str(Path(__file__).parent)]
    for delay in (0.05, 0.15, 0.3, 0.45, 0.7):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = DocumentStore(folder, BagEmbedder())
        for document in store.ledger.documents():
            if document.path.stem.isdigit():
                assert (
                    best(
                        store, f"unique{document.path.stem} fact number {document.path.stem}."
                    ).name
                    == document.path.name
                )
        store.close()
    store = DocumentStore(folder, BagEmbedder())
    ingest([docs], store)
    assert len(store.ledger.documents()) == 43
    assert all_agree(store)
    assert len(list(folder.glob("index-*"))) == 1
    store.close()


def test_the_store_is_private(store, docs):
    ingest([docs], store)
    assert store.folder.stat().st_mode & 0o077 == 0


def test_a_file_that_is_no_store_is_named(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"this is not sqlite" * 100)
    with pytest.raises(StoreError, match=r"ledger\.db cannot be used"):
        DocumentStore(tmp_path, BagEmbedder())
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot make the store"):
        DocumentStore(tmp_path / "file" / "x", BagEmbedder())


def test_status_is_json_ready(store, docs):
    from dataclasses import asdict

    ingest([docs], store)
    assert json.dumps([asdict(d) | {"path": str(d.path)} for d in store.ledger.documents()])


def test_a_large_index_is_in_parts_and_changes_in_each(tmp_path, monkeypatch):
    from mixtral_rag.store import shards

    draw = np.random.default_rng(0)
    rows = draw.standard_normal((40, 8), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    keys = [f"k{n}" for n in range(40)]
    index = shards.Shards(tmp_path / "index", size=15)
    index.add(keys[:25], rows[:25])
    index.add(keys[25:35], rows[25:35])
    assert sorted(p.name for p in index.folder.iterdir()) == ["0000", "0001", "0002"]
    index.put([keys[3], keys[36], keys[20]], rows[[37, 36, 38]])  # one new, two with other vectors
    index.delete([keys[0], keys[16], "unknown"])
    index.close()
    assert index.count() == 34
    expected = dict(zip(keys[:35], rows[:35], strict=True))
    expected |= {keys[3]: rows[37], keys[36]: rows[36], keys[20]: rows[38]}
    del expected[keys[0]], expected[keys[16]]
    held = index.vectors(list(expected))
    for key, row in expected.items():
        assert held[key] == pytest.approx(row, abs=1e-6)
        exact = sorted(expected, key=lambda k: -float(expected[k] @ row))[:3]
        assert [k for k, _ in index.query(row[None], 3)] == exact
    index.close()
