"""Answers of llama.cpp that are computed together, with real models."""

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter

import pytest
from kv_faults import settle

from mixtral_rag.engines import Cancellation, PassagePrompt, llama_cells, llama_place, llama_seat
from mixtral_rag.engines.llama_together import Together
from mixtral_rag.engines.llamacpp import LlamaCppEngine
from mixtral_rag.errors import GenerationError, SettingsError
from mixtral_rag.machine import Memory
from mixtral_rag.types import SamplingOptions

GREEDY = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=24)


def prompt(n, length=60):
    return [1] + [40 + (n * 31 + i * 7) % 400 for i in range(length - 1)]


def read(engine, ids, options=GREEDY, **more):
    pieces = list(engine.generate(list(ids), options, **more))
    return "".join(p.text for p in pieces), pieces[-1]


def at_once(*works):
    """What each work gives, all of them started in the same moment."""
    got, start = [None] * len(works), threading.Barrier(len(works))

    def run(i):
        start.wait()
        try:
            got[i] = works[i]()
        except BaseException as error:  # noqa: BLE001 - is what the test looks at
            got[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not any(t.is_alive() for t in threads)
    return got


def wait(until):
    end = time.monotonic() + 20
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(params=["f16", "f32"])
def engine(tiny_mixtral, request):
    """A random Mixtral in f32, whose every number tells.

    With an f32 cache answers share the cells of the prompts, with f16 they have their own.
    """
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=2048, kv_type=request.param)
    read(engine, [1, 2, 3])
    return engine


@pytest.fixture
def one_window(monkeypatch):
    """Memory for the cells of one window only, though answers have their own."""
    monkeypatch.setattr(llama_cells, "_SHARE", 1 << 60)


@pytest.fixture
def steps(monkeypatch):
    """How many steps there were of each number of seats."""
    sizes, step = Counter(), Together._step

    def counted(self, batch):
        sizes[len(batch)] += 1
        step(self, batch)

    monkeypatch.setattr(Together, "_step", counted)
    return sizes


def test_answers_at_the_same_time_are_computed_together_and_say_what_each_says_alone(
    engine, steps, request
):
    prompts = [prompt(n, 40 + 20 * n) for n in range(8)]
    alone = [read(engine, ids)[0] for ids in prompts]
    assert not steps
    got = at_once(*(lambda ids=ids: read(engine, ids) for ids in prompts))
    assert [text for text, _ in got] == alone
    assert all(last.usage.completion_tokens <= 24 for _, last in got)
    assert max(steps) >= 6
    assert sum(steps.values()) < 3 * 24  # where one by one would be 8 * 24
    is_f16 = request.node.callspec.params["engine"] == "f16"
    assert engine._loaded.together.cells.are_own == is_f16


def test_with_parallel_1_each_is_computed_alone(tiny_mixtral, steps):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=512, parallel=1)
    assert engine.concurrency == 1
    at_once(*(lambda n=n: read(engine, prompt(n)) for n in range(4)))
    assert not steps
    assert not engine._loaded.together.cells.are_own


class Panic(BaseException):
    """As a library in another language may raise."""


@pytest.mark.parametrize("kind", [GenerationError, Panic])
def test_one_that_leaves_or_fails_does_not_touch_the_others(engine, monkeypatch, kind):
    expected = read(engine, prompt(1))[0]
    cancel = Cancellation()

    def leave():
        pieces = engine.generate(prompt(2), GREEDY)
        for _ in range(3):
            next(pieces)
        pieces.close()

    def stop():
        for piece in engine.generate(prompt(3), GREEDY, cancel=cancel):
            if piece.text:
                cancel.cancel()
        return piece

    sample = llama_seat.Row.sample

    def failing(self, chain, look=None):
        if threading.current_thread().name == "together" and self._number == 1:
            raise kind("no choice")
        return sample(self, chain, look)

    got = at_once(leave, stop, lambda: read(engine, prompt(1)), lambda: read(engine, prompt(1)))
    assert got[0] is None
    assert got[1].finish_reason == "cancelled"
    assert got[2][0] == got[3][0] == expected

    monkeypatch.setattr(llama_seat.Row, "sample", failing)
    got = at_once(*(lambda n=n: read(engine, prompt(n)) for n in (4, 1, 5)))
    errors = [g for g in got if isinstance(g, kind)]
    assert errors
    assert len(errors) < 3
    monkeypatch.undo()
    wait(lambda: not engine._loaded.together._seats)
    assert read(engine, prompt(1))[0] == expected
    assert engine._loaded.together.is_empty


def test_answers_left_half_read_give_their_cells_to_others_and_go_on_later(tiny_mixtral):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=512, parallel=3)
    whole = [read(engine, prompt(n))[0] for n in range(6)]
    halves, begun = [], []
    wait = threading.Thread(target=lambda: [read(engine, prompt(9)) for _ in range(40)])
    wait.start()  # so that the others take seats
    for n in range(5):
        halves.append(engine.generate(prompt(n), GREEDY))
        begun.append(next(halves[-1]).text + next(halves[-1]).text)
    wait.join(60)
    assert not wait.is_alive()
    assert read(engine, prompt(5))[0] == whole[5]
    for n in (3, 0, 4, 1, 2):
        assert begun[n] + "".join(p.text for p in halves[n]) == whole[n]


@pytest.mark.parametrize("ahead", [256, 0])
@pytest.mark.parametrize("kv_type", ["f16", "f32"])
def test_more_than_the_window_holds_is_answered_in_the_end(
    smollm, steps, monkeypatch, one_window, ahead, kv_type
):
    """With nothing kept for what is to come, seats are lost midway and their tokens come again."""
    monkeypatch.setattr(llama_seat, "AHEAD", ahead)
    monkeypatch.setattr(llama_place, "AHEAD", ahead)
    engine = LlamaCppEngine(str(smollm), n_ctx=512, kv_memory=0, kv_type=kv_type)
    longer = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=80)
    verse = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, {}, "
    colours = ("red", "blue", "green", "brown")
    prompts = [
        engine.tokenizer.encode(verse.format(colour) * 9 + "Monday, Tuesday,") for colour in colours
    ]
    alone = [read(engine, ids, longer)[0] for ids in prompts]
    assert all(colour in text for colour, text in zip(colours, alone, strict=True))
    got = at_once(*(lambda ids=ids: read(engine, ids, longer) for ids in prompts))
    assert [g if isinstance(g, Exception) else g[0] for g in got] == alone
    assert max(steps) >= 2
    assert engine._loaded.together.cells.are_own == (kv_type == "f16")


def test_who_waits_for_cells_of_others_may_leave(tiny_mixtral, one_window):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=2048)
    read(engine, [1, 2, 3])
    cancel, ended = Cancellation(), []

    def ask(n, cancel=None):
        options = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=900)
        time.sleep(0.1 * n)
        last = read(engine, prompt(n, 900), options, cancel=cancel)[1]
        ended.append(n)
        return last.usage.completion_tokens, last.finish_reason

    def leave():
        wait(lambda: engine._loaded.together.is_full)
        cancel.cancel()

    got = at_once(lambda: ask(0), lambda: ask(1, cancel), lambda: ask(2), leave)
    assert got[1] == (1, "cancelled")  # the prompt had been read
    assert got[0] == got[2] == (900, "length")
    assert ended[0] == 1


def test_who_needs_few_cells_does_not_wait_because_another_needed_many(tiny_mixtral, one_window):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=2048)
    read(engine, [1, 2, 3])
    cancel, ended = Cancellation(), []

    def ask(n, length, most, cancel=None):
        options = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=most)
        last = read(engine, prompt(n, length), options, cancel=cancel)[1]
        ended.append((n, last.finish_reason))

    def many():
        wait(lambda: engine._turns._holder is not None)
        ask(1, 1200, 100, cancel)

    def few():
        wait(lambda: engine._loaded.together.is_full)
        cancel.cancel()
        ask(2, 60, 20)

    at_once(lambda: ask(0, 900, 900), many, few)
    assert ended == [(1, "cancelled"), (2, "length"), (0, "length")]


def test_where_a_second_cache_takes_nothing_in_answers_share_the_first(
    tiny_mixtral, steps, monkeypatch
):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=2048)
    alone = [read(engine, prompt(n))[0] for n in range(4)]
    monkeypatch.setattr(llama_cells.OwnCells, "take_in", lambda self, *_: False)
    got = at_once(*(lambda n=n: read(engine, prompt(n))[0] for n in range(4)))
    assert got == alone
    assert max(steps) >= 2
    assert not engine._loaded.together.cells.are_own


def test_without_memory_for_a_second_cache_answers_share_the_first(
    tiny_mixtral, steps, monkeypatch
):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=2048)
    alone = [read(engine, prompt(n))[0] for n in range(4)]
    monkeypatch.setattr(llama_cells, "memory", lambda: Memory(1 << 30, 0, None, 0))
    got = at_once(*(lambda n=n: read(engine, prompt(n))[0] for n in range(4)))
    assert got == alone
    assert max(steps) >= 2
    assert not engine._loaded.together.cells.are_own


def test_a_conversation_answered_beside_others_is_not_read_again(smollm):
    engine = LlamaCppEngine(str(smollm), n_ctx=2048)
    sentence = "The river number {} runs through hills and fields to the sea. "
    talks = [engine.tokenizer.encode(sentence.format(n) * 20) for n in range(3)]
    said = at_once(*(lambda ids=ids: read(engine, ids, whole=True) for ids in talks))
    more = []
    for ids, (text, _) in zip(talks, said, strict=True):
        again = [*ids, *engine.tokenizer.encode(text), *prompt(7, 40)[1:]]
        _, last = read(engine, again)
        more.append(last.usage.cached_tokens - len(ids))
    assert min(more) >= -16  # the prompt
    assert max(more) > 8  # and what was answered, where it is made of the same tokens


@pytest.mark.parametrize("kv_type", ["f16", "f32"])
def test_questions_about_one_document_share_its_cells(smollm, steps, one_window, kv_type):
    """Eight times the document and its answers are far more than the window."""
    engine = LlamaCppEngine(str(smollm), n_ctx=2048, kv_type=kv_type)
    document = prompt(1, 1200)
    read(engine, document)
    got = at_once(*(lambda n=n: read(engine, [*document, *prompt(n, 20)]) for n in range(8)))
    assert all(last.usage.cached_tokens >= 1100 for _, last in got)
    assert max(steps) >= 3


def test_a_long_prompt_lets_the_others_have_tokens_meanwhile(smollm):
    engine = LlamaCppEngine(str(smollm), n_ctx=8192, n_batch=128)
    times, begun = [], threading.Event()
    longer = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=80)

    def first():
        for _ in engine.generate(prompt(1), longer):
            times.append(time.monotonic())
            begun.set()

    def second():
        begun.wait()
        started = time.monotonic()
        next(pieces := engine.generate(prompt(2, 3000), GREEDY))
        pieces.close()
        return started, time.monotonic()

    _, (started, ended) = at_once(first, second)
    assert sum(started < t < ended for t in times) >= 10


def test_prompts_of_passages_are_answered_together_too(tiny_mixtral, steps):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=2048, kv_type="f32")

    def of_passages(n):
        parts = [prompt(k, 50)[1:] for k in (n, n + 1, n + 2)]
        ids, spans = prompt(0, 30), []
        for part in parts:
            spans.append((len(ids), len(ids) + len(part)))
            ids = [*ids, *part]
        return PassagePrompt([*ids, *prompt(20 + n, 12)[1:]], spans)

    def ask(n):
        return "".join(p.text for p in engine.generate(of_passages(n), GREEDY))

    alone = [ask(n) for n in range(4)]
    assert at_once(*(lambda n=n: ask(n) for n in range(4))) == alone
    assert max(steps) >= 2


def test_who_finds_no_seat_does_not_hold_up_those_who_have_one(tiny_mixtral):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=1024, parallel=2)
    read(engine, [1, 2, 3])
    ended, begun = [], threading.Barrier(3)

    def ask(n, most):
        options = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=most)
        begun.wait()
        time.sleep(0.02 * n)
        made = read(engine, prompt(n), options, whole=True)[1].usage.completion_tokens
        ended.append(n)
        return made

    assert at_once(*(lambda n=n: ask(n, (60, 60, 600)[n]) for n in range(3))) == [60, 60, 600]
    assert ended[-1] == 2


def test_a_kept_state_too_long_for_the_room_beside_others_stays_on_the_disk(smollm, tmp_path):
    long, folder = prompt(1, 1500), tmp_path / "kv"
    read(LlamaCppEngine(str(smollm), n_ctx=2048, kv_folder=folder, kv_type="f32"), long)
    settle()
    files = sorted(p.name for p in folder.iterdir())
    engine = LlamaCppEngine(str(smollm), n_ctx=2048, kv_folder=folder, kv_type="f32")
    begun, over = threading.Event(), threading.Event()

    def beside():
        options = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=400)
        for _ in engine.generate(prompt(2, 700), options):
            begun.set()
            if over.is_set():
                return

    def asked():
        begun.wait()
        try:
            return read(engine, [*long[:700], *prompt(3, 60)])[1]
        finally:
            over.set()

    _, last = at_once(beside, asked)
    assert last.finish_reason == "length"
    settle()
    assert set(files) <= {p.name for p in folder.iterdir()}


def test_what_a_seat_held_is_kept_whole_though_another_prompt_begins_before(smollm):
    engine = LlamaCppEngine(str(smollm), n_ctx=2048)
    read(engine, prompt(1, 300))
    context, together = engine._loaded, engine._loaded.together
    ids = [*context.held, 5]
    with together.alone():
        seat = together.seat(ids, 2048, lambda row: 5, is_plain=True)
        assert together.join(seat)
    with together.alone():
        together.leave(seat)
        with together._lock:
            together._sweep()
        context.forget(0)
    with together.alone():
        pass
    kept = {tuple(known): len(state) for known, state in context._others._states}
    assert kept[tuple(ids[:-1])] > 23_040 * (len(ids) - 1)


def test_small_batches_have_room_for_a_token_of_each(tiny_mixtral, engine):
    small = LlamaCppEngine(str(tiny_mixtral), n_ctx=512, n_batch=4)
    expected = [read(engine, prompt(n))[0] for n in range(4)]
    got = at_once(*(lambda n=n: read(small, prompt(n))[0] for n in range(4)))
    assert got == expected


def test_a_context_is_freed_with_its_engine_although_answers_were_computed_together(tiny_mixtral):
    engines = [LlamaCppEngine(str(tiny_mixtral), n_ctx=512)]
    gc.disable()
    try:
        at_once(*(lambda n=n: read(engines[0], prompt(n))[0] for n in range(4)))
        context = weakref.ref(engines[0]._loaded)
        wait(lambda: "together" not in {t.name for t in threading.enumerate()})
        engines.clear()
        assert context() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("face", ["ChineseMixtral", "ChatChineseMixtral"])
def test_ctrl_c_stops_a_batch(tiny_mixtral, face):
    code = """
import os, signal, sys, threading, time
import mixtral_rag
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache

llm = getattr(mixtral_rag, sys.argv[2])(model=sys.argv[1], n_ctx=4096, max_tokens=3500)
llm.invoke("hi", max_tokens=1)
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
set_llm_cache(cache := InMemoryCache())
started = time.monotonic()
try:
    llm.batch(["one", "two", "three"])
except KeyboardInterrupt:
    print("stopped", time.monotonic() - started < 5, len(cache._cache))
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(tiny_mixtral), face],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert out.stdout == "stopped True 0\n", out.stderr


def test_what_parallel_may_be_is_said(tiny_mixtral):
    with pytest.raises(SettingsError, match="parallel is 0; it must be from 1 to 64"):
        LlamaCppEngine(str(tiny_mixtral), parallel=0)
