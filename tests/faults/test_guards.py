"""Each guard of a store is needed: what it protects holds with it, and is seen to break without."""

import contextlib
import functools
import os
import shutil

import child
import pytest
from checks import FaultError, check, check_found, content, opened
from corpus import QuickEmbedder
from damages import DATA
from failpoints import arm_kill, kill
from kills import run
from places import Place

from mixtral_rag.errors import LockedError
from mixtral_rag.store import documents
from mixtral_rag.store.database import Database
from mixtral_rag.store.documents import DocumentStore
from mixtral_rag.store.index import Index
from mixtral_rag.store.ledger import Ledger

_VECTOR = 256 * 4
_ELEMENT = 4 + 2 * 32 * 4 + _VECTOR + 8
"""Bytes of a passage in hnswlib's file: twice `max_neighbors`, its vector, its number."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("guards"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Of enough passages for a graph."""
    return Place(tmp_path_factory.mktemp("guards"), n_documents=420)


def mark_late():
    """The index counts as behind only once it begins to follow, not from the commit on."""
    settle = Index.settle

    def late(self):
        with self._db.transaction():
            self._db.set("index_state", "behind")
        settle(self)

    Index.mark_behind, Index.settle = lambda self: None, late


def commit_always():
    """Every statement is a transaction of its own."""

    @contextlib.contextmanager
    def transaction(self):
        self._db.isolation_level = None
        yield

    Database.transaction = transaction


def kill_at_a_commit(guard, nth):
    guard()
    arm_kill("commit", {"nth": nth, "after": True})


def kill_between_old_and_new(guard):
    """Once passages of an edited document are gone, and the new ones not there yet."""
    guard()
    drop = Ledger._drop

    def dropped(self, keys):
        drop(self, keys)
        if keys:
            kill()

    Ledger._drop = dropped


def nothing():
    """With all guards in place."""


def killed(place, folder, prepare, *arguments):
    process = child.start(
        folder, place.corpus.folder, place.acks, prepare=prepare, arguments=arguments
    )
    process.join()
    assert process.exitcode < 0
    check(folder, place.before, place.corpus, child.acknowledged(place.acks), by_index=True)


@contextlib.contextmanager
def seen_to_break(is_guarded):
    with contextlib.nullcontext() if is_guarded else pytest.raises(FaultError):
        yield


@pytest.mark.parametrize("is_guarded", [True, False])
def test_the_index_counts_as_behind_from_the_commit_on(is_guarded, place, tmp_path):
    with seen_to_break(is_guarded):
        for nth in (2, 4):
            guard = nothing if is_guarded else mark_late
            killed(place, place.copy(tmp_path / f"{nth}"), kill_at_a_commit, guard, nth)


@pytest.mark.parametrize("is_guarded", [True, False])
def test_a_new_version_takes_the_place_of_the_old_in_one_step(is_guarded, place, tmp_path):
    guard = nothing if is_guarded else commit_always
    with seen_to_break(is_guarded):
        killed(place, place.copy(tmp_path / "store"), kill_between_old_and_new, guard)


@pytest.mark.parametrize("is_guarded", [True, False])
def test_files_that_are_not_the_noted_ones_are_not_used(is_guarded, large, tmp_path, monkeypatch):
    folder = large.copy(tmp_path / "store")
    (index,) = folder.glob("index-*")
    shutil.copytree(index, tmp_path / "older")
    child.finish(folder, large.corpus.folder, large.acks)
    shutil.rmtree(index)
    shutil.copytree(tmp_path / "older", index)
    if not is_guarded:
        monkeypatch.setattr(Index, "_difference", lambda self, to_the_byte: None)
    with seen_to_break(is_guarded):
        found(folder)


@pytest.mark.parametrize("is_guarded", [True, False])
def test_files_are_compared_to_the_byte_before_more_is_added(
    is_guarded, large, tmp_path, monkeypatch
):
    folder = large.copy(tmp_path / "store")
    data = next(folder.rglob(DATA))
    stat = data.stat()
    content = bytearray(data.read_bytes())
    for start in range(0, len(content), 3 * _ELEMENT):  # other vectors, and the graph as it was
        vector = slice(start + _ELEMENT - 8 - _VECTOR, start + _ELEMENT - 8)
        content[vector] = content[vector][4:] + content[vector][:4]
    data.write_bytes(content)
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if not is_guarded:
        difference = Index._difference
        monkeypatch.setattr(
            Index, "_difference", lambda self, to_the_byte: difference(self, to_the_byte=False)
        )
    store = opened(folder)
    with store.writing(), store.step() as step:
        step.remove([store.ledger.documents()[0].path])
    store.close()
    monkeypatch.undo()
    with seen_to_break(is_guarded):
        found(folder)


@pytest.mark.parametrize("is_guarded", [True, False])
def test_one_process_writes(is_guarded, place, tmp_path, monkeypatch):
    folder = place.copy(tmp_path / "store")
    if not is_guarded:
        monkeypatch.setattr(documents.lock, "writing", lambda _: contextlib.nullcontext())
    first, second = (DocumentStore(folder, QuickEmbedder()) for _ in range(2))
    with seen_to_break(is_guarded), first.writing():
        try:
            with second.writing():
                raise FaultError("two write at once")
        except LockedError:
            pass
    first.close()
    second.close()


def found(folder):
    store = opened(folder, exact_bytes=0)
    try:
        check_found(store, [t for texts in content(store).values() for t in texts][::5])
    finally:
        store.close()


def test_the_kills_find_what_a_missing_guard_lets_through():
    with pytest.raises(FaultError):  # which ends it; on a busy machine kills miss their aim more
        run(150, seed=1, start=functools.partial(child.start, prepare=mark_late))


@pytest.mark.parametrize("is_guarded", [True, False])
def test_an_error_between_old_and_new_leaves_the_old(is_guarded, place, tmp_path, monkeypatch):
    folder = place.copy(tmp_path / "store")
    drop = Ledger._drop

    def dropped(self, keys):
        drop(self, keys)
        if keys:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_drop", dropped)
        patch.setattr(child.pipeline, "ReaderPool", child.DirectPool)
        patch.setattr(Database, "transaction", Database.transaction)  # put back afterwards
        if not is_guarded:
            commit_always()
        store = opened(folder)
        with pytest.raises(MemoryError):
            child.pipeline.ingest([place.corpus.folder], store, prune=True, n_workers=1)
        store.close()
    with seen_to_break(is_guarded):
        check(folder, place.before, place.corpus, [], every=20)
