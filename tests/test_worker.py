"""Documents are read in a process of their own, which may hang or crash."""

import os
import signal
import subprocess
import sys
import time

import pytest
from documents import write_pdf

from mixtral_rag.errors import EncryptedError, StoreError, UnreadableError
from mixtral_rag.ingest.worker import Worker


@pytest.fixture
def worker():
    with Worker(timeout=5) as worker:
        yield worker


def test_what_a_reader_finds_arrives_whole(worker, tmp_path):
    path = tmp_path / "a.md"
    path.write_text("# 标题\n你好 😀 \x0b\n")
    parsed = worker.read(path)
    assert parsed.title == "标题"
    assert parsed.blocks[0].section == ("标题",)
    assert "你好 😀" in parsed.blocks[0].text


def test_our_errors_keep_their_kind(worker, tmp_path):
    with pytest.raises(EncryptedError):
        worker.read(write_pdf(tmp_path / "a.pdf", ["x"], password="p"))
    with pytest.raises(UnreadableError, match="No such file"):
        worker.read(tmp_path / "none.txt")


def test_a_process_that_died_between_files_is_replaced(worker, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("fine")
    worker.read(path)
    process = worker._process
    os.kill(process.pid, signal.SIGSEGV)
    assert worker.read(path).blocks[0].text == "fine"
    assert worker._process is not process


def test_a_hang_is_ended(tmp_path):
    fifo = tmp_path / "hang.txt"
    os.mkfifo(fifo)
    path = tmp_path / "a.txt"
    path.write_text("fine")
    holder = os.open(fifo, os.O_RDWR)  # so that opening succeeds and reading waits for ever
    os.write(holder, b"x")
    with Worker(timeout=0.5) as worker:
        worker.read(path)
        process = worker._process
        os.kill(process.pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(UnreadableError, match=r"took its reader more than 0\.5 seconds"):
            worker.read(path)
        assert time.monotonic() - started < 8
        assert process.poll() is not None
        assert worker.read(path).blocks[0].text == "fine"
    os.close(holder)


def test_no_process_is_left_behind(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("fine")
    with Worker() as worker:
        worker.read(path)
        pid = worker._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_ends_with_its_parent(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("fine")
    code = (
        "import sys, os; from pathlib import Path; from mixtral_rag.ingest.worker import Worker\n"
        f"w = Worker(); w.read(Path({str(path)!r})); print(w._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(out.stdout)
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent")


def test_it_reads_with_the_parents_path_and_says_when_it_cannot_start(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("fine")
    with Worker() as worker:
        monkeypatch.setattr(sys, "path", [])
        with pytest.raises(StoreError, match="cannot start the process that reads documents"):
            worker.read(path)
