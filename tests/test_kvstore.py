"""Files of computed prompts: found by their tokens, never believed when anything is wrong."""

import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtral_rag import kvstore
from mixtral_rag.kvstore import BLOCK, KVStore, chain

IDS = list(range(1000, 1000 + 20 * BLOCK))


def writer(content):
    return lambda path: path.write_bytes(content)


def loaded(store, found):
    read = []
    assert store.load(found[0], lambda path: read.append(path.read_bytes()))
    return read[0]


@pytest.fixture
def store(tmp_path):
    return KVStore(tmp_path / "kv", max_bytes=1000)


def test_the_longest_prefix_is_found_to_the_block(store):
    assert store.find("m", IDS) is None
    store.save("m", IDS[: 5 * BLOCK], writer(b"five"))
    other = [*IDS[: 8 * BLOCK], *(7 for _ in range(30))]
    store.save("m", other, writer(b"eight"))
    state, shared = store.find("m", IDS)
    assert (shared, loaded(store, (state, shared))) == (8 * BLOCK, b"eight")
    assert store.find("m", IDS[: 8 * BLOCK - 1])[1] == 7 * BLOCK
    assert store.find("m", IDS, more_than=8 * BLOCK) is None
    assert store.find("another model", IDS) is None
    assert store.find("m", [1, *IDS]) is None
    assert not store.save("m", IDS[: BLOCK - 1], writer(b"too short"))


def test_another_process_sees_what_was_saved(store):
    reader = KVStore(store.folder)
    assert reader.find("m", IDS) is None
    store.save("m", IDS, writer(b"x"))
    assert loaded(reader, reader.find("m", IDS)) == b"x"
    store.clear()
    assert reader.find("m", IDS) is None
    assert list(store.folder.iterdir()) == []


def test_a_longer_state_takes_the_place_of_those_it_holds(store):
    store.save("m", IDS[: 4 * BLOCK], writer(b"short"))
    store.save("m", IDS, writer(b"long"))
    assert [s.n_tokens for s in store.states()] == [len(IDS)]


def test_the_longest_unused_go_when_there_is_no_room(store):
    for n in range(5):
        store.save("m", [n, *IDS], writer(bytes(300)))
        for state in store.states():  # each a minute older
            os.utime(state.path, (state.used - 60,) * 2)
        if found := store.find("m", [0, *IDS]):
            loaded(store, found)  # used again and again
    assert {s.size for s in store.states()} == {300}
    assert len(store.states()) == 3
    assert store.n_bytes() <= 1000
    assert store.find("m", [0, *IDS])
    assert store.find("m", [4, *IDS])
    assert not store.save("m", IDS, writer(bytes(2000)))
    assert len(store.states()) == 3


def damages():
    def of(suffix, change):
        def damage(folder):
            (path,) = folder.glob(f"*{suffix}")
            path.write_bytes(change(path.read_bytes()))

        return damage

    def flipped(data, place):
        place = int(place * len(data))
        return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]

    for suffix in (".state", ".json"):
        yield from (of(suffix, lambda d, p=p: flipped(d, p)) for p in (0, 0.3, 0.6, 0.99))
        yield of(suffix, lambda d: d[: len(d) // 2])
        yield of(suffix, lambda d: b"")
        yield of(suffix, lambda d: d + b"x")
        yield lambda folder, suffix=suffix: next(folder.glob(f"*{suffix}")).unlink()


@pytest.mark.parametrize("damage", list(damages()))
def test_what_is_damaged_is_not_used(damage, store):
    store.save("m", IDS, writer(bytes(range(200))))
    damage(store.folder)
    for each in (store, KVStore(store.folder)):
        found = each.find("m", IDS)
        assert found is None or not each.load(found[0], lambda path: pytest.fail("it was read"))
    assert store.save("m", IDS, writer(b"anew"))
    assert loaded(store, store.find("m", IDS)) == b"anew"


def test_swapped_files_are_not_used(store):
    store.save("m", IDS, writer(b"a" * 50))
    store.save("m", IDS[::-1], writer(b"b" * 50))
    one, two = (s.path for s in store.states())
    shutil.move(one, store.folder / "x")
    shutil.move(two, one)
    shutil.move(store.folder / "x", two)
    for ids in (IDS, IDS[::-1]):
        assert not store.load(store.find("m", ids)[0], lambda path: pytest.fail("it was read"))
    assert store.states() == []


def test_an_engine_that_cannot_read_a_state_computes(store):
    store.save("m", IDS, writer(b"x"))

    def refuse(path):
        raise ValueError("another version")

    assert not store.load(store.find("m", IDS)[0], refuse)
    assert store.find("m", IDS) is None


def test_a_write_that_fails_leaves_nothing(store, caplog):
    def full(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    assert not store.save("m", IDS, full)
    assert list(store.folder.iterdir()) == []
    assert "No space left" in caplog.text


def test_what_a_killed_process_left_is_removed_later(store):
    store.save("m", IDS, writer(b"x"))
    left = [store.folder / f"{'a' * 32}.part", store.folder / f"{'b' * 32}.state"]
    others = [store.folder / "film.part", store.folder / "notes.json"]
    for path in left + others:
        path.write_bytes(b"left")
    store.save("m", [5, *IDS], writer(b"y"))
    assert left[0].exists()  # it may still be written
    for path in left + others:
        os.utime(path, (time.time() - 10_000,) * 2)
    KVStore(store.folder, max_bytes=1000).save("m", [6, *IDS], writer(b"z"))  # of another process
    assert not any(path.exists() for path in left)
    assert len(store.states()) == 3
    store.clear()
    assert sorted(store.folder.iterdir()) == others


@pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")
def test_files_are_their_owners_alone(store):
    store.save("m", IDS, writer(b"x"))
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in store.folder.iterdir()} == {0o600}


@given(st.lists(st.integers(0, 3), max_size=100), st.lists(st.integers(0, 3), max_size=100))
@settings(max_examples=200)
def test_chains_are_equal_as_far_as_the_tokens_are(a, b):
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    shared = sum(x == y for x, y in zip(chain(a), chain(b), strict=False))
    assert shared == same // BLOCK
    assert len(chain(a)) == len(a) // BLOCK


def test_lone_states_are_found_only_as_they_are(store):
    store.save("m", IDS, writer(b"alone"), is_lone=True)
    assert store.find("m", IDS) is None
    assert loaded(store, (store.exact("m", IDS), 0)) == b"alone"
    assert store.exact("m", IDS[:-1]) is store.exact("m", [*IDS, 1]) is None
    assert store.exact("n", IDS) is None
    store.save("m", [*IDS, *IDS], writer(b"longer"))
    assert store.exact("m", IDS), "it is not one that a longer state takes the place of"
    assert store.exact("m", [*IDS, *IDS]) is None
    assert len(store.states()) == 2
    store.clear()
    assert list(store.folder.iterdir()) == []


def test_lone_states_keep_to_the_budget_nearly(tmp_path):
    store = KVStore(tmp_path / "kv", max_bytes=64_000)
    for n in range(400):
        store.save("m", [n, *IDS], writer(bytes(300)), is_lone=True)
        assert store.exact("m", [n, *IDS])
    assert 60_000 < store.n_bytes() <= 64_000 + 64_000 // 64 + 300


def test_a_prompt_that_is_being_saved_is_not_saved_again(store, monkeypatch):
    monkeypatch.setattr(kvstore, "PATIENCE", 0.5)
    assert store.save("m", IDS, writer(b"x"), in_background=True)
    assert store.find("m", IDS) is None, "the next question goes first"
    assert store.covered("m", [*IDS, 1, 2]) == len(IDS) // BLOCK * BLOCK
    assert store.covered("m", [0, *IDS]) == store.covered("other", IDS) == 0
    for thread in threading.enumerate():
        if thread.name == "kv-save":
            thread.join()
    assert store.find("m", IDS)
    assert store.covered("m", [*IDS, 1, 2]) == len(IDS) // BLOCK * BLOCK


def test_a_process_that_ends_finishes_what_it_saves_at_once(tmp_path):
    script = (
        "import sys, pathlib; from mixtral_rag import kvstore; kvstore.PATIENCE = 600\n"
        "store = kvstore.KVStore(pathlib.Path(sys.argv[1]))\n"
        "assert store.save('m', list(range(64)), lambda p: p.write_bytes(b'x'), in_background=True)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)
    assert len(KVStore(tmp_path).states()) == 1


def test_a_save_in_the_background_needs_no_right_to_be_idle(store, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse, raising=False)
    assert store.save("m", IDS, writer(b"x"), in_background=True)
    for thread in threading.enumerate():
        if thread.name == "kv-save":
            thread.join()
    assert loaded(store, store.find("m", IDS)) == b"x"
