"""One llama.cpp context: which tokens its KV cache holds, and how to compute more."""

import ctypes
import functools
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mixtral_rag.engines import Cancellation, Interrupted
from mixtral_rag.engines.llama_cells import GUESTS, copy_state, own_cells
from mixtral_rag.engines.llama_handle import Handle, interruptible
from mixtral_rag.engines.llama_library import Model, is_simple, load, new_context
from mixtral_rag.engines.llama_seat import Row
from mixtral_rag.engines.llama_states import (
    LEAST_BATCH,
    LEAST_PLAIN,
    MemoryStates,
    PromptStates,
    batch_sizes,
    common_prefix,
    whole_groups,
)
from mixtral_rag.engines.llama_steps import ABORTED, NO_SLOT
from mixtral_rag.engines.llama_together import Together
from mixtral_rag.errors import GenerationError


class NoRoomError(Exception):
    """The cache has no room for a passage beside what it holds."""


class LlamaContext:
    """A context over `model`; not safe for concurrent use, its engine gives out turns.

    Args:
        flash: whether attention is computed in one pass; None leaves it to llama.cpp. See
            `llama_library.flash_attention`.
        parallel: most answers that are computed together, in sequences of their own.
        states: prompts on the disk to go on from; None computes all.
        others: keeps what the cache holds of one conversation while it works on another.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_batch: int,
        n_threads: int,
        kv_type: str,
        flash: bool | None = None,
        parallel: int = 1,
        states: PromptStates | None = None,
        others: MemoryStates | None = None,
    ) -> None:
        lib = load()
        # A sliding window lets other sequences have the cells outside of it.
        parallel = parallel if is_simple(model) and not lib.llama_model_n_swa(model.pointer) else 1
        n_seq = GUESTS + parallel if parallel > 1 else GUESTS
        pointer = new_context(
            model, n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads, kv_type=kv_type, flash=flash,
            n_seq=n_seq,
        )  # fmt: skip
        self._model = model  # freed after the context
        self._handle = Handle(pointer)
        self._free = weakref.finalize(self, self._handle.free)
        self._memory = lib.llama_get_memory(pointer)
        self._is_plain = flash is False
        on_cpu = not lib.llama_supports_gpu_offload()
        self.least_batch = LEAST_PLAIN if self._is_plain and on_cpu else LEAST_BATCH
        self._n_batch, self.n_ctx = min(n_batch, n_ctx), n_ctx
        self._held: list[int] = []  # the tokens whose keys and values are in the cache
        self._n_first = 0  # of them that were computed as one batch with the first
        self._states, self._others = states, others or MemoryStates(0)
        own = functools.partial(
            own_cells, self._handle, model, n_ctx=n_ctx, most=parallel, n_threads=n_threads,
            kv_type=kv_type,
        )  # fmt: skip
        can_have_own = self._is_plain and on_cpu and kv_type != "f32" and parallel > 1
        self.together = Together(
            self._handle, model.vocab, n_ctx, parallel, self.put_aside,
            own if can_have_own else lambda _: None,
        )  # fmt: skip
        self._current: Sequence[int] | None = None  # the list `advance` was last given
        self.n_plain: int | None = None
        """How many of the first held tokens saw all before them, where passages were placed."""

    def advance(self, ids: Sequence[int], cancel: Cancellation, *, goes_on: bool = False) -> int:
        """Make the cache hold exactly `ids`, with logits for the last; return how many it held.

        A caller that adds one token at a time to the same list pays nothing for the comparison.

        Args:
            ids: all tokens.
            cancel: stops it.
            goes_on: whether all that is held counts, wherever it ends and what was placed too; it
                is not what `ids` would compute.

        Raises:
            Interrupted: `cancel` was thrown meanwhile.
            GenerationError: llama.cpp failed.
        """
        if not self.is_at_end_of(ids):
            if self.n_plain is not None and not goes_on:
                self.forget(self.n_plain)
            self._begin(ids, whole_rows=not goes_on)
            self._current = ids
        kept = len(self._held)  # less than asked for where a model cannot forget a part
        fresh = ids[kept:]
        if len(fresh) == 1:
            self._decode(fresh)
        else:
            self._prefill(fresh, cancel)
        return kept

    def is_at_end_of(self, ids: Sequence[int]) -> bool:
        """Whether this is the list that was last computed, and one token more."""
        return ids is self._current and len(ids) == len(self._held) + 1

    def leave(self) -> None:
        """Hold nothing, and put what was held aside."""
        self._others.switch(self, (), 0)
        self.forget(0)

    def forget(self, size: int) -> None:
        """Hold only the first `size` tokens."""
        with self._handle.using():
            self._truncate(size)
        self._current = None

    def _begin(self, ids: Sequence[int], *, whole_rows: bool) -> None:
        """Hold as much of the beginning of `ids` as is to be had without computing."""
        whole_rows = whole_rows and self._is_plain and self.can_place
        known = ids[: -self.least_batch if whole_rows else -1]  # the last gives the logits
        self._others.switch(self, known, common_prefix(self._held, known))
        shared = common_prefix(self._held, known)
        with self._handle.using():
            self._truncate(whole_groups(shared, self._n_first) if whole_rows else shared)
        if self._states is not None:
            self._states.restore(self, ids)

    @property
    def can_place(self) -> bool:
        """Whether passages can be moved to other positions in this model's cache."""
        return is_simple(self._model) and bool(load().llama_memory_can_shift(self._memory))

    @property
    def held(self) -> list[int]:
        """The tokens whose keys and values are in the cache."""
        return self._held

    def keep(self) -> None:
        """Leave on the disk what is worth it of what the cache holds."""
        if self._states is not None and self.n_plain is None:
            self._states.keep(self)

    def write_state(self, path: Path) -> None:
        """Write what the cache holds, in llama.cpp's own form.

        Raises:
            OSError: it cannot be written.
        """
        lib, n = load(), len(self._held)
        tokens = (lib.llama_token * n)(*self._held)
        with self._handle.using() as pointer:
            if not lib.llama_state_seq_save_file(pointer, os.fsencode(path), 0, tokens, n):
                raise OSError(f"llama.cpp cannot write {path}; is the disk full?")

    def read_state(self, path: Path, ids: Sequence[int]) -> None:
        """Make the cache hold exactly `ids`, with which the prompt of a file begins.

        Raises:
            ValueError: llama.cpp cannot read the file, or it is of another prompt.
        """
        lib, room = load(), self.n_ctx
        tokens, count = (lib.llama_token * room)(), ctypes.c_size_t()
        with self._handle.using() as pointer:
            is_beside = self.together.is_beside
            self._clear()
            done = lib.llama_state_seq_load_file(
                pointer, os.fsencode(path), 0, tokens, room, ctypes.byref(count)
            )
            read = tokens[: count.value] if done else []
            if not done and is_beside:
                raise OSError("there is no room for it beside the other answers")
            self._held = list(read)
            if self._held[: len(ids)] != list(ids) or not done:
                self._clear()
                raise ValueError("llama.cpp cannot read it")
            self._truncate(len(ids))

    def copy_state(self, sequence: int = 0, most: int | None = None) -> Any:
        """What the cache holds of a sequence, as bytes in memory; None if more than `most`."""
        if sequence >= GUESTS:
            return self.together.cells.copy_state(sequence, most)
        return copy_state(self._handle, sequence, most)

    def put_aside(self, ids: Sequence[int], sequence: int) -> None:
        """Keep in memory what another sequence holds, the tokens `ids`."""
        self._others.put_aside(self, ids, 0, sequence)

    def take_state(self, state: Any, ids: Sequence[int], shared: int) -> None:
        """Hold the first `shared` of the tokens `ids`, of which `state` is a copy."""
        lib = load()
        with self._handle.using() as pointer:
            self._clear()
            if lib.llama_state_seq_set_data(pointer, state, len(state), 0):
                self._held = list(ids)
                self._truncate(shared)

    def place(self, state: Path | Any, known: Sequence[int], n_prefix: int) -> None:
        """Put a passage after what is held, from the state of a prompt that ends with it.

        Args:
            state: a file of llama.cpp, or a copy in memory.
            known: the tokens of that prompt.
            n_prefix: how many of them come before the passage; they are held already.

        Raises:
            NoRoomError: the cache has no room for the copy.
            ValueError: the file is of another prompt.
        """
        lib, memory, n = load(), self._memory, len(known)
        with self._handle.using() as pointer:
            try:
                if isinstance(state, Path):
                    tokens, count = (lib.llama_token * n)(), ctypes.c_size_t()
                    done = lib.llama_state_seq_load_file(
                        pointer, os.fsencode(state), 1, tokens, n, ctypes.byref(count)
                    )
                    if done and list(tokens) != list(known):
                        raise ValueError("it is of another prompt")
                else:
                    done = lib.llama_state_seq_set_data(pointer, state, len(state), 1)
                if not done:
                    raise NoRoomError
                lib.llama_memory_seq_rm(memory, 1, -1, n_prefix)
                lib.llama_memory_seq_add(memory, 1, n_prefix, -1, len(self._held) - n_prefix)
                lib.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            finally:
                lib.llama_memory_seq_rm(memory, 1, -1, -1)
        self.n_plain = len(self._held) if self.n_plain is None else self.n_plain
        self._held += known[n_prefix:]
        self._current = None

    def _clear(self) -> None:
        if not self.together.is_beside:
            load().llama_memory_clear(self._memory, False)
        else:
            load().llama_memory_seq_rm(self._memory, 0, -1, -1)
        self._current, self._held, self._n_first, self.n_plain = None, [], 0, None

    def _prefill(self, ids: Sequence[int], cancel: Cancellation) -> None:
        def run() -> None:
            start = 0
            for size in batch_sizes(len(ids), self._n_batch, self.least_batch):
                if start:
                    self.together.let_step()
                self._decode(ids[start : start + size])
                start += size

        self._run(run, cancel)

    def _run(self, work: Callable[[], None], cancel: Cancellation) -> None:
        try:
            with cancel.calling(self._handle.stop):
                interruptible(work, self._handle.stop)
        finally:
            if not self._handle.is_free:
                self._handle.abort.value = b""

    def logits(
        self, ids: Sequence[int], *, first: int, cancel: Cancellation
    ) -> Iterator[tuple[int, Any]]:
        """Compute `ids` from an empty cache; yield logits of the positions from `first` on.

        One pair a batch: the position of the first row, and a float32 array of shape (rows,
        vocabulary), which may have no rows and is good until the next pair is asked for.

        Raises:
            Interrupted: `cancel` was thrown meanwhile.
            GenerationError: llama.cpp failed.
        """
        import numpy as np

        lib = load()
        n_vocab = lib.llama_vocab_n_tokens(self._model.vocab)
        self.forget(0)
        for start in range(0, len(ids), self._n_batch):
            part = ids[start : start + self._n_batch]
            n_rows = min(len(part), max(0, start + len(part) - first))
            self._run(functools.partial(self._decode, part, n_rows), cancel)
            rows = np.empty((0, n_vocab), np.float32)
            if n_rows:
                with self._handle.using() as pointer:
                    rows = np.ctypeslib.as_array(lib.llama_get_logits(pointer), (n_rows, n_vocab))
            yield start + len(part) - n_rows, rows

    def free(self) -> None:
        """Give its memory back now; the context cannot be used again."""
        self.together.cells.free()
        self._free()

    def sample(self, chain: Any, look: Callable[[Any], None] | None = None) -> int:
        """Choose from the logits of the last token with a sampler chain.

        Args:
            chain: of llama.cpp.
            look: is given the logits first, a float32 array of shape (vocabulary,), to read or
                change.
        """
        return Row(self._handle, self._model.vocab).sample(chain, look)

    def _decode(self, ids: Sequence[int], n_logits: int = 1) -> None:
        """Compute `ids` after what is in the cache, with logits for the last `n_logits`."""
        lib, n = load(), len(ids)
        tokens = (lib.llama_token * n)(*ids)
        batch = lib.llama_batch_get_one(tokens, n)
        if n_logits != 1:  # one is what llama.cpp does by itself
            batch.logits = (ctypes.c_int8 * n)(*([0] * (n - n_logits) + [1] * n_logits))
        with self._handle.using() as pointer:
            status = lib.llama_decode(pointer, batch)
        while status == NO_SLOT and self.together.drop_one():
            with self._handle.using() as pointer:
                status = lib.llama_decode(pointer, batch)
        if status == 0:
            self._n_first = self._n_first if self._held else n
            self._held += ids
            return
        with self._handle.using():
            # A stopped step may have turned the keys of placed passages in some layers only.
            self._truncate(len(self._held) if self.n_plain is None else self.n_plain)
        if status == ABORTED:
            raise Interrupted
        raise GenerationError(
            f"llama.cpp found no room in its cache for {len(ids)} more tokens"
            if status == NO_SLOT
            else f"llama.cpp failed to compute {len(ids)} tokens (status {status})"
        )

    def _truncate(self, size: int) -> None:
        if not size or not load().llama_memory_seq_rm(self._memory, 0, size, -1):
            self._clear()
            return
        del self._held[size:]
        self._n_first = min(self._n_first, size)
        if self.n_plain is not None and size <= self.n_plain:
            self.n_plain = None
