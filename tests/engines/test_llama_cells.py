"""The second cache of llama.cpp, that of answers computed together, with real models."""

import ctypes
import threading

import numpy as np
import pytest

from mixtral_rag.engines import Cancellation, PassagePrompt, llama_cells
from mixtral_rag.engines.llama_cells import copy_state, own_cells, turn_values
from mixtral_rag.engines.llama_library import load
from mixtral_rag.engines.llama_seat import Batch, Seat, closest
from mixtral_rag.engines.llamacpp import LlamaCppEngine
from mixtral_rag.machine import Memory
from mixtral_rag.types import SamplingOptions

N_CTX, FIRST = 512, 2


def prompt(n, length=60):
    return [1] + [40 + (n * 31 + i * 7) % 400 for i in range(length - 1)]


def holding(model, ids, **options):
    context = LlamaCppEngine(str(model), n_ctx=N_CTX, **options)._context()
    context.advance(list(ids), Cancellation())
    return context


def cells_of(context, most=4, kv_type="f16"):
    return own_cells(
        context._handle, context._model, len(context.held),
        n_ctx=N_CTX, most=most, n_threads=2, kv_type=kv_type,
    )  # fmt: skip


def values(state, n):
    """What a state holds after the table of its cells, which names the sequence."""
    return bytes(state)[16 + 12 * n :]


@pytest.mark.parametrize("kv_type", ["f16", "bf16"])
def test_a_sequence_takes_in_just_what_the_turn_holds(tiny_mixtral, kv_type):
    ids = prompt(1, 200)
    context = holding(tiny_mixtral, ids, kv_type=kv_type)
    cells = cells_of(context, kv_type=kv_type)
    expected = values(copy_state(context._handle, 0), 200)
    assert cells.take_in(FIRST, 0, 0)
    assert values(cells.copy_state(FIRST, None), 200) == expected
    assert cells.n_held(FIRST) == 200
    for n_common in (64, 199, 200):
        assert cells.take_in(FIRST + 1, FIRST, n_common)
        assert cells.n_held(FIRST + 1) == 200
        assert values(cells.copy_state(FIRST + 1, None), 200) == expected
        cells.forget(FIRST + 1)
    assert values(copy_state(context._handle, 0), 200) == expected
    assert cells.copy_state(FIRST, 1000) is None


def test_what_a_ctrl_c_left_behind_is_not_taken_in(tiny_mixtral):
    context = holding(tiny_mixtral, prompt(1, 200))
    cells = cells_of(context)
    lib = load()
    with context._handle.using() as pointer:
        lib.llama_memory_seq_cp(lib.llama_get_memory(pointer), 0, 1, 100, -1)
    context.forget(10)
    context.advance([*prompt(1, 10), *prompt(2, 50)], Cancellation())
    assert cells.take_in(FIRST, 0, 0)
    assert cells.n_held(FIRST) == 60
    assert values(cells.copy_state(FIRST, None), 60) == values(copy_state(context._handle, 0), 60)


def test_equal_beginnings_take_cells_once(tiny_mixtral):
    context = holding(tiny_mixtral, prompt(1, 300))
    cells = cells_of(context)
    small = llama_cells.OwnCells(
        context._handle, context._model, n_cells=512, n_seq=6, n_threads=2, kv_type="f16"
    )
    assert small.take_in(FIRST, 0, 0)
    assert not small.take_in(FIRST + 1, 0, 0)
    assert small.n_held(FIRST + 1) == 0
    assert small.take_in(FIRST + 2, FIRST, 280)
    assert all(cells.take_in(FIRST + n, 0, 0) for n in range(4))
    small.free()


def test_placed_passages_are_taken_in_with_their_positions(tiny_mixtral):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=N_CTX)
    parts, ids, spans = [prompt(k, 60)[1:] for k in (1, 2)], prompt(0, 30), []
    for part in parts:
        spans.append((len(ids), len(ids) + len(part)))
        ids = [*ids, *part]
    ids += prompt(9, 12)[1:]
    options = SamplingOptions(temperature=0, max_tokens=1)
    list(engine.generate(PassagePrompt(ids, spans), options))
    context = engine._loaded
    assert context.n_plain is not None
    cells, n = cells_of(context), len(context.held)
    assert cells.take_in(FIRST, 0, 0)
    taken = cells.copy_state(FIRST, None)
    mine = copy_state(context._handle, 0)
    assert values(taken, n) == values(mine, n)
    positions = [np.frombuffer(bytes(s)[16 : 16 + 12 * n], np.int32)[::3] for s in (taken, mine)]
    assert (positions[0] == positions[1]).all()


def test_flash_attention_gives_the_logits_of_the_turn_but_for_rounding(smollm):
    lib = load()
    ids = LlamaCppEngine(str(smollm)).tokenizer.encode("The river runs to the sea. " * 40)
    context = holding(smollm, ids[:-1])
    cells = cells_of(context)
    assert cells.take_in(FIRST, 0, 0)
    context.advance(ids, Cancellation())
    seat = Seat(threading.Lock(), ids, N_CTX, lambda row: 0)
    seat.sequence, seat.token = FIRST, ids[-1]

    def chances(handle):
        with handle.using() as pointer:
            logits = np.ctypeslib.as_array(
                lib.llama_get_logits_ith(pointer, -1),
                (lib.llama_vocab_n_tokens(context._model.vocab),),
            )
            spread = np.exp(logits - logits.max())
        return spread / spread.sum()

    with cells.handle.using() as pointer:
        assert lib.llama_decode(pointer, Batch(1).of([seat])) == 0
    mine, theirs = chances(context._handle), chances(cells.handle)
    assert mine.argmax() == theirs.argmax()
    assert abs(mine - theirs).sum() < 0.2


def test_a_state_turned_twice_is_the_same_and_another_form_is_refused(tiny_mixtral, smollm):
    context = holding(tiny_mixtral, prompt(1, 100))
    state = copy_state(context._handle, 0)
    before = bytes(state)
    turn_values(state)
    assert bytes(state) != before
    turn_values(state)
    assert bytes(state) == before

    def altered(change):
        other = (ctypes.c_uint8 * len(state))(*before)
        change(other)
        return other

    n = 16 + 12 * 100
    for change in (
        lambda s: s.__setitem__(8, 2),  # streams
        lambda s: s.__setitem__(n, 7),  # whether values are transposed
        lambda s: s.__setitem__(n + 4, 200),  # layers
        lambda s: s.__setitem__(slice(12, 14), [255, 255]),  # cells
    ):
        with pytest.raises(ValueError, match="another form"):
            turn_values(altered(change))
    with pytest.raises(ValueError, match="another form"):
        turn_values((ctypes.c_uint8 * 1000)(*before[:1000]))
    quantised = holding(smollm, prompt(1, 100), kv_type="q8_0")
    with pytest.raises(ValueError, match="another form"):
        turn_values(copy_state(quantised._handle, 0))


@pytest.mark.parametrize(
    ("windows", "n_cells"), [(1.9, None), (2.1, 512), (8 * 2, 1024), (8 * 100, 4 * 512)]
)
def test_memory_decides_how_many_cells_there_are(tiny_mixtral, monkeypatch, windows, n_cells):
    ids = prompt(1, 100)
    context = holding(tiny_mixtral, ids)
    window = len(copy_state(context._handle, 0)) / len(ids) * N_CTX
    free = int(windows * window) + load().llama_model_size(context._model.pointer)
    assert load().llama_model_size(context._model.pointer) == context._model.n_mapped
    monkeypatch.setattr(llama_cells, "memory", lambda: Memory(free, free, None, 0))
    cells = cells_of(context)
    if n_cells is None:
        assert cells is None
    else:
        assert cells.n_cells == pytest.approx(n_cells, rel=0.01)


def test_where_the_window_decides_how_positions_are_turned_there_is_one(tiny_mixtral, monkeypatch):
    context = holding(tiny_mixtral, prompt(1, 100))
    assert cells_of(context).n_cells == 4 * N_CTX
    monkeypatch.setattr(context._model, "is_tied_to_window", True)
    assert cells_of(context).n_cells == N_CTX


def test_whose_cells_are_shared():
    def seat(ids, sequence, *, is_plain=True):
        seat = Seat(threading.Lock(), ids, N_CTX, lambda row: 0, is_plain=is_plain)
        seat.sequence = sequence
        return seat

    ids = list(range(200))
    others = [seat(ids[:100] + [7] * 50, 3), seat(ids[:151], 4), seat([*ids[:63], 7, 7], 5)]
    assert closest(seat(ids, 9), others) == (4, 150)  # the last of a seat's tokens is not held
    assert closest(seat(ids[:90], 9), others) == (4, 89)
    assert closest(seat(ids, 9), others[2:]) == (0, 0)  # not worth it
    assert closest(seat(ids, 9), [seat(ids, 4, is_plain=False)]) == (0, 0)
    assert closest(seat(ids, 9, is_plain=False), others) == (0, 0)
