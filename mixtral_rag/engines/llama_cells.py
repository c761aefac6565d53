"""The cells of answers that are computed together: those of the turn's context, or their own.

Ordinary attention computes with the cells of every sequence and then masks those of others. Beside
eight answers a prompt was read at a quarter of its speed. Flash attention on the CPU leaves masked
cells out, but takes twice as long for the question after a long text, which nobody else waits for.
So prompts are read in a context with ordinary attention, and where memory allows answers get a
second one with flash attention, which costs a copy of each prompt. It has a window for each answer
or as many as fit into an eighth of the free memory and into 4 GiB, but one at least.
"""

import ctypes
import logging
import struct
import weakref
from typing import Any

from mixtral_rag.engines.llama_handle import Handle
from mixtral_rag.engines.llama_library import Model, load, new_context
from mixtral_rag.errors import ModelFileError
from mixtral_rag.machine import memory

_log = logging.getLogger("mixtral_rag.llamacpp")
_SCRATCH = 1  # the sequence that takes in passages in the one context, and copies in the other
GUESTS = _SCRATCH + 1  # the first seat's sequence, after that one and that of the turn, 0
_SHARE = 8  # of the free memory one part is for them
_MOST = 4 << 30  # bytes of more than one window: llama.cpp writes all of them at the beginning
_FORM = 4  # tokens that show the form of states
_TWO_BYTES = 1, 30  # f16 and bf16, of ggml_type
_ROWS = struct.Struct("<iQ")  # ahead of values in rows: their type, and bytes of a row
_COLUMNS = struct.Struct("<iII")  # ahead of transposed ones: type, bytes of one, how many a token


class SharedCells:
    """Sequences in the context of the turn, which share the cells of what was read."""

    are_own = False

    def __init__(self, handle: Handle, n_cells: int) -> None:
        self.handle, self.n_cells = handle, n_cells

    def take_in(self, sequence: int, _sibling: int, _n_common: int) -> bool:
        """Let a sequence hold what that of the turn holds; whether there was room."""
        self.forget(sequence)
        lib = load()
        with self.handle.using() as pointer:
            lib.llama_memory_seq_cp(lib.llama_get_memory(pointer), 0, sequence, -1, -1)
        return True

    def copy_state(self, sequence: int, most: int | None) -> Any:
        """A state of a sequence for the turn's context; None if more than `most` bytes."""
        return copy_state(self.handle, sequence, most)

    def forget(self, sequence: int) -> None:
        """Free the cells of a sequence."""
        lib = load()
        with self.handle.using() as pointer:
            lib.llama_memory_seq_rm(lib.llama_get_memory(pointer), sequence, -1, -1)

    def n_held(self, sequence: int) -> int:
        """Tokens that a sequence holds."""
        lib = load()
        with self.handle.using() as pointer:
            return int(lib.llama_memory_seq_pos_max(lib.llama_get_memory(pointer), sequence)) + 1

    def free(self) -> None:
        """Give the memory back; these are the turn's."""


class OwnCells(SharedCells):
    """Sequences of a context with flash attention.

    Args:
        turn: the context with ordinary attention that reads prompts.
        model: of both.
        n_cells: to be shared by all sequences.
        n_seq: sequences.
        n_threads: as in the turn's context.
        kv_type: the same as there.

    Raises:
        ModelFileError: llama.cpp refuses, for want of memory or of flash attention for it.
    """

    are_own = True

    def __init__(
        self, turn: Handle, model: Model, *, n_cells: int, n_seq: int, n_threads: int, kv_type: str
    ) -> None:
        pointer = new_context(
            model, n_ctx=n_cells, n_batch=n_seq, n_threads=n_threads, kv_type=kv_type, flash=True,
            n_seq=n_seq,
        )  # fmt: skip
        super().__init__(Handle(pointer), n_cells)
        self._turn, self._model = turn, model  # which is freed after the context
        self._free = weakref.finalize(self, self.handle.free)

    def take_in(self, sequence: int, sibling: int, n_common: int) -> bool:
        """Let a sequence hold what that of the turn holds; whether there was room.

        Args:
            sequence: its number.
            sibling: a sequence that begins with the same tokens, whose cells are shared.
            n_common: how many of them.
        """
        self.forget(sequence)
        try:
            lib, state = load(), _of_turn(self._turn, n_common)
        except MemoryError:
            return False
        with self.handle.using() as pointer:
            cells = lib.llama_get_memory(pointer)
            if n_common:
                lib.llama_memory_seq_cp(cells, sibling, sequence, -1, n_common)
            if state is None:
                return True
            done = lib.llama_state_seq_set_data(pointer, state, len(state), _SCRATCH)
            lib.llama_memory_seq_cp(cells, _SCRATCH, sequence, -1, -1)
            lib.llama_memory_seq_rm(cells, _SCRATCH, -1, -1)
            if not done:
                lib.llama_memory_seq_rm(cells, sequence, -1, -1)
        return bool(done)

    def copy_state(self, sequence: int, most: int | None) -> Any:
        """See `SharedCells.copy_state`."""
        state = copy_state(self.handle, sequence, most)
        if state is not None:
            turn_values(state)
        return state

    def free(self) -> None:
        """Give the memory back."""
        self._free()


def own_cells(
    turn: Handle, model: Model, n_held: int, *, n_ctx: int, most: int, n_threads: int, kv_type: str
) -> OwnCells | None:
    """Cells with flash attention; None where there is no memory, or llama.cpp has no such.

    Args:
        turn: see `OwnCells`, as the others.
        n_held: tokens that its first sequence holds, one or more.
        n_ctx: its window.
        most: answers.
    """
    lib = load()
    try:
        _of_turn(turn, 0, _FORM)  # whether their form is known
        with turn.using() as pointer:
            size = lib.llama_state_seq_get_size(pointer, 0)
        fit = max(0, memory().available - model.n_mapped) * n_held // max(size, 1)
        if fit < 2 * n_ctx:  # a copy on its way may take as much again
            raise MemoryError("it would not fit beside the weights")
        windows = 1 if model.is_tied_to_window else most
        n_cells = min(windows * n_ctx, fit // _SHARE, _MOST * n_held // max(size, 1))
        return OwnCells(
            turn, model, n_cells=max(n_ctx, n_cells), n_seq=GUESTS + most,
            n_threads=n_threads, kv_type=kv_type,
        )  # fmt: skip
    except (MemoryError, ModelFileError, ValueError) as error:
        _log.info("answers have no cache of their own: %s", error)
        return None


def _of_turn(turn: Handle, start: int, end: int = -1) -> Any:
    """What the turn holds of these tokens, for flash attention; None if nothing."""
    lib = load()
    with turn.using() as pointer:
        cells = lib.llama_get_memory(pointer)
        try:
            lib.llama_memory_seq_rm(cells, _SCRATCH, -1, -1)  # if a Ctrl-C has left some
            lib.llama_memory_seq_cp(cells, 0, _SCRATCH, start, end)
            if lib.llama_memory_seq_pos_max(cells, _SCRATCH) < start:
                return None
            state = _copy_state(pointer, _SCRATCH)
        finally:
            lib.llama_memory_seq_rm(cells, _SCRATCH, -1, -1)
    turn_values(state)
    return state


def copy_state(handle: Handle, sequence: int, most: int | None = None) -> Any:
    """What a context holds of a sequence, as bytes in memory; None if more than `most`.

    Raises:
        MemoryError: there is none for it.
    """
    with handle.using() as pointer:
        if most is not None and load().llama_state_seq_get_size(pointer, sequence) > most:
            return None
        return _copy_state(pointer, sequence)


def _copy_state(pointer: Any, sequence: int) -> Any:
    lib = load()
    state = (ctypes.c_uint8 * lib.llama_state_seq_get_size(pointer, sequence))()
    if not lib.llama_state_seq_get_data(pointer, state, len(state), sequence):
        raise MemoryError("llama.cpp could not copy a sequence")
    return state


def turn_values(state: Any) -> None:
    """Change a state from ordinary to flash attention or back: its values are stored transposed.

    The form is that of llama.cpp's llama-kv-cache.cpp, `state_write`: two words of 4 bytes, the
    number of streams and of cells; of each cell its position, 1 and the sequence; whether values
    are transposed and the number of layers; for each layer the keys, a row for each cell; then for
    each layer the values, in rows too or transposed.

    Raises:
        ValueError: it has another form.
    """
    try:
        _turn_values(memoryview(state).cast("B"))
    except struct.error as error:
        raise ValueError("a state of another form") from error


def _turn_values(view: memoryview) -> None:
    n_streams, n_cells = struct.unpack_from("<II", view, 8)
    at = 16 + 12 * n_cells
    is_transposed, n_layers = struct.unpack_from("<II", view, at)
    if n_streams != 1 or is_transposed not in (0, 1):
        raise ValueError("a state of another form")
    struct.pack_into("<I", view, at, 1 - is_transposed)
    at += 8
    for _ in range(n_layers):
        _, row = _ROWS.unpack_from(view, at)
        at += _ROWS.size + row * n_cells
    while at < len(view):
        at = _turn_layer(view, at, n_cells, is_transposed=bool(is_transposed))


def _turn_layer(view: memoryview, at: int, n_cells: int, *, is_transposed: bool) -> int:
    import numpy as np

    if is_transposed:
        kind, _, n = _COLUMNS.unpack_from(view, at)
        _ROWS.pack_into(view, at, kind, 2 * n)
    else:
        kind, row = _ROWS.unpack_from(view, at)
        n = row // 2
        _COLUMNS.pack_into(view, at, kind, 2, n)
    start = at + _ROWS.size
    end: int = start + 2 * n * n_cells
    if kind not in _TWO_BYTES or end > len(view):
        raise ValueError("a state of another form")
    values = np.frombuffer(view[start:end], np.uint16)
    shape = (n, n_cells) if is_transposed else (n_cells, n)
    values[:] = values.reshape(shape).T.ravel()  # a copy, made before
    return end
