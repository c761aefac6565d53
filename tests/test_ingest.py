"""Ingest: any folder, any time: moved, copied, edited, failed, pruned, stopped."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from documents import BagEmbedder, write_pdf
from langchain_core.documents import Document

from mixtral_rag import open_qa
from mixtral_rag.errors import SettingsError
from mixtral_rag.ingest.pipeline import ingest, ingest_documents
from mixtral_rag.store.documents import DocumentStore


class Counting(BagEmbedder):
    """Remembers what it embedded."""

    def __init__(self):
        self.texts = []

    def passages(self, texts):
        self.texts += texts
        return super().passages(texts)


@pytest.fixture
def store(tmp_path):
    store = DocumentStore(tmp_path / "store", Counting())
    yield store
    store.close()


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "cats.txt").write_text("Cats sleep most of the day.\n")
    (folder / "dogs.md").write_text("# Dogs\nDogs bark.\n\n# Food\nDogs eat meat.\n")
    return folder


def best(store, question):
    return store.search(question, 1)[0]


def paths(store):
    return [d.path.name for d in store.ledger.documents()]


def test_a_moved_file_keeps_its_passages_and_is_neither_read_nor_embedded(store, docs):
    ingest([docs], store)
    store.embedder.texts.clear()
    (docs / "sub").mkdir()
    (docs / "cats.txt").rename(docs / "sub" / "katzen.txt")
    report = ingest([docs], store)
    assert {n.name: o.name for n, o in report.moved.items()} == {"katzen.txt": "cats.txt"}
    assert store.embedder.texts == []
    assert paths(store) == ["dogs.md", "katzen.txt"]
    assert best(store, "cats sleep").name == "katzen.txt"
    assert set(store.verify().values()) == {None}


def test_a_copy_is_a_document_of_its_own_and_costs_no_embedding(store, docs):
    ingest([docs], store)
    store.embedder.texts.clear()
    shutil.copy(docs / "dogs.md", docs / "hounds.md")
    report = ingest([docs], store)
    assert [p.name for p in report.added] == ["hounds.md"]
    assert store.embedder.texts == []
    assert {p.name for p in store.search("dogs eat meat", 2)} == {"dogs.md", "hounds.md"}


def test_only_new_text_of_an_edited_file_is_embedded(store, docs):
    ingest([docs], store)
    store.embedder.texts.clear()
    (docs / "dogs.md").write_text("# Dogs\nDogs bark.\n\n# Food\nDogs eat fish.\n")
    assert [p.name for p in ingest([docs], store).updated] == ["dogs.md"]
    assert len(store.embedder.texts) == 1
    assert best(store, "dogs eat").text == "# Food\nDogs eat fish."


def test_the_same_text_is_embedded_once(store, docs):
    for n in range(30):
        (docs / f"{n}.txt").write_text("The same form for everybody.\n")
    ingest([docs], store)
    assert len(store.embedder.texts) == len(set(store.embedder.texts))
    assert len(store.search("form", 100)) == 33


def test_a_failed_file_is_tried_again_only_when_it_changed_or_is_asked_for(store, docs):
    bad = docs / "bad.pdf"
    bad.write_bytes(b"%PDF-1.4 nothing")
    assert list(ingest([docs], store).failed) == [bad]
    report = ingest([docs], store)
    assert (report.failed, list(report.still_failed)) == ({}, [bad])
    assert not report.is_whole
    os.utime(bad)  # another time, the same content
    assert list(ingest([docs], store).still_failed) == [bad]
    assert list(ingest([docs], store, retry_failed=True).failed) == [bad]
    write_pdf(bad, ["Now it is whole."])
    report = ingest([docs], store)
    assert report.is_whole
    assert best(store, "now whole").name == "bad.pdf"


def test_prune_removes_what_is_gone_and_only_that(store, docs, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "birds.txt").write_text("Birds sing.\n")
    ingest([docs, other], store)
    (docs / "cats.txt").unlink()
    (other / "birds.txt").unlink()
    assert ingest([docs], store).removed == []
    report = ingest([docs], store, prune=True)
    assert [p.name for p in report.removed] == ["cats.txt"]
    assert paths(store) == ["dogs.md", "birds.txt"]
    assert set(store.verify().values()) == {None}


def test_what_a_folder_holds_beside_documents_is_told(store, docs, tmp_path):
    (docs / "photo.PNG").write_bytes(b"x")
    (docs / "LICENSE").write_text("x")
    (docs / ".hidden").write_text("x")
    assert ingest([docs], store).passed_over == {".png": 1, "no suffix": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_that_may_not_be_looked_into_is_no_silent_loss(store, docs):
    (docs / "private").mkdir(mode=0)
    report = ingest([docs], store)
    assert "cannot look into" in report.failed[docs / "private"]


def test_removal_leaves_nothing_behind(store, docs):
    ingest([docs], store)
    with store.writing(), store.step() as step:
        step.remove(store_path for store_path in [docs / "cats.txt", docs / "dogs.md"])
        step.sweep()
    for table in ("documents", "passages", "embeddings", "keywords_docsize"):
        assert store.db.select(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    assert store.index._open().count() == 0


def test_pages_are_accounted_for_and_reading_with_ocr_asks_for_tesseract(store, docs, monkeypatch):
    write_pdf(docs / "a.pdf", ["One page of text.", ""])
    ingest([docs], store)
    a = next(d for d in store.ledger.documents() if d.path.name == "a.pdf")
    assert (a.n_pages, a.pages) == (2, {"empty": [2]})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SettingsError, match="tesseract"):
        ingest([docs], store, ocr="chi_sim+eng")


def test_the_encoding_is_in_the_ledger(store, docs):
    text = "员工工作满一年后，每年有十天带薪年假。合同期限为三年，试用期为三个月。\n"
    (docs / "gbk.txt").write_bytes(text.encode("gb18030"))
    ingest([docs], store)
    known = {d.path.name: d.encoding for d in store.ledger.documents()}
    assert known["gbk.txt"] == "gb18030"
    assert "带薪年假" in best(store, "带薪年假").text


def test_parts_of_an_archive_that_fail_are_told(store, docs):
    with zipfile.ZipFile(docs / "box.zip", "w") as archive:
        archive.writestr("in/good.txt", "Owls hunt at night.\n")
        archive.writestr("in/bad.pdf", b"%PDF-1.4 nothing")
    report = ingest([docs], store)
    assert not report.is_whole
    assert "in/bad.pdf" in report.problems[docs / "box.zip"][0]
    assert best(store, "owls hunt").section[0] == "in/good.txt"


def test_langchain_documents_go_in_too(store, docs):
    def given(second):
        return [
            Document("Owls hunt at night.", metadata={"source": "wiki/owls", "page": 0}),
            Document(second, metadata={"source": "wiki/owls", "page": 1}),
            Document("Bees make honey.", metadata={"source": "https://example.org/bees"}),
        ]

    report = ingest_documents(given("Owls see well."), store)
    assert len(report.added) == 2
    assert best(store, "owls see").pages == (1, 2)
    assert len(ingest_documents(given("Owls see well."), store).unchanged) == 2
    report = ingest_documents(given("Owls hear well."), store)
    assert [str(p) for p in report.updated] == ["wiki/owls"]
    assert "hear" in best(store, "owls hear").text
    assert ingest([docs], store, prune=True).removed == []


def test_a_langchain_loader_goes_in(tmp_path, docs):
    from langchain_community.document_loaders import TextLoader

    qa = open_qa(store=tmp_path / "qa")
    qa.ingest_documents(TextLoader(str(docs / "cats.txt")))
    assert qa.search("cats sleep")[0].text == "Cats sleep most of the day."
    qa.close()


def test_collections_keep_documents_apart(tmp_path, docs):
    qa = open_qa(store=tmp_path / "qa", collection="pets")
    qa.ingest([docs / "cats.txt"])
    qa.close()
    other = open_qa(store=tmp_path / "qa", collection="work")
    other.ingest([docs / "dogs.md"])
    assert {p.name for p in other.search("cats sleep")} == {"dogs.md"}
    other.close()
    with pytest.raises(SettingsError, match="cannot name a collection"):
        open_qa(store=tmp_path / "qa", collection="../x")


def test_what_was_embedded_before_a_kill_is_not_embedded_again(tmp_path):
    """One large document, killed half way: the next run embeds the rest only."""
    folder = tmp_path / "docs"
    folder.mkdir()
    text = "\n\n".join(f"# Part {n}\nfact{n} " + f"word{n} " * 150 for n in range(400))
    (folder / "large.md").write_text(text)
    code = (
        "import sys, os, signal; sys.path.insert(0, sys.argv[3]); from pathlib import Path\n"
        "from documents import BagEmbedder\n"
        "from mixtral_rag.store.documents import DocumentStore\n"
        "from mixtral_rag.ingest.pipeline import ingest\n"
        "class Mortal(BagEmbedder):\n"
        "    n = 0\n"
        "    def passages(self, texts):\n"
        "        self.n += len(texts)\n"
        "        if self.n > 200: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().passages(texts)\n"
        "ingest([Path(sys.argv[2])], DocumentStore(Path(sys.argv[1]), Mortal()))\n"
    )
    arguments = [sys.executable, "-c", code, tmp_path / "store", folder, Path(__file__).parent]
    subprocess.run(list(map(str, arguments)), check=False, capture_output=True)
    store = DocumentStore(tmp_path / "store", Counting())
    assert store.ledger.documents() == []  # nothing of it is visible
    report = ingest([folder], store)
    assert report.n_passages >= 400
    assert len(store.embedder.texts) <= report.n_passages - 128
    assert best(store, "fact399 word399").section == ("Part 399",)
    store.close()


def test_progress_ends_at_all_of_it_and_tells_the_rest_when_resumed(store, docs):
    steps = []
    for n in range(20):
        (docs / f"{n}.txt").write_text(f"fact {n} " * 50)
    ingest([docs], store, on_progress=steps.append)
    assert (steps[-1].done, steps[-1].n_files_done, steps[-1].n_files) == (1.0, 22, 22)
    assert all(a.done <= b.done for a, b in itertools.pairwise(steps))
    steps.clear()
    (docs / "cats.txt").write_text("Cats again.")
    ingest([docs], store, on_progress=steps.append)
    assert steps[0].n_files_done >= 21
    assert steps[-1].done == 1.0


@pytest.fixture
def command(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MIXTRAL_RAG_")}
    env = kept | {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "COLUMNS": "200"}
    program = str(Path(sys.executable).with_name("mixtral-rag"))

    def run(*arguments):
        return subprocess.run(
            [program, *map(str, arguments), "--store", str(tmp_path / "s")],
            env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    run.program, run.env = program, env
    return run


def test_the_command_line_tells_what_was_lost_and_why(command, docs):
    (docs / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    out = command("ingest", docs)
    assert (out.returncode, "1 failed" in out.stdout) == (1, True)
    again = command("ingest", docs)
    assert again.returncode == 1
    assert "1 failed before and not changed" in again.stdout
    assert "--retry" in again.stderr
    assert "bad.pdf" in command("status", "--verbose").stdout


def test_verify_finds_damage_and_repairs_it(command, docs, tmp_path):
    assert command("ingest", docs).returncode == 0
    good = command("verify")
    assert (good.returncode, good.stdout.count(": ok")) == (0, 3), good.stdout
    database = next((tmp_path / "s").glob("index-*/*/chroma.sqlite3"))
    database.write_bytes(b"junk" * 1000)
    bad = command("verify")
    assert bad.returncode == 1
    assert "vector index: has a file of 4,000 bytes" in bad.stdout
    assert "verify --repair" in bad.stdout
    mended = command("verify", "--repair", "--json")
    assert mended.returncode == 0
    assert json.loads(mended.stdout)["repaired"] == ["vector index"]
    assert command("verify").returncode == 0


def test_watch_ingests_what_changes(command, docs, tmp_path):
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [command.program, "ingest", str(docs), "--watch", "--prune", "--store", tmp_path / "s"],
        env=command.env | {"PYTHONUNBUFFERED": "1"}, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def wait_for(text):
        for _ in range(400):
            if text in (tmp_path / "log").read_text():
                return
            time.sleep(0.1)
        pytest.fail((tmp_path / "log").read_text())

    try:
        wait_for("Watching for changes")
        time.sleep(1)
        (docs / "owls.txt").write_text("Owls hunt at night.\n")
        wait_for("1 added")
        (docs / "cats.txt").unlink()
        wait_for("1 document removed")
    finally:
        process.send_signal(2)
        process.wait(30)
        log.close()
    found = command("ask", "owls hunt", "--retrieve-only").stdout
    assert "owls.txt" in found
    assert "cats.txt" not in found
