"""One llama.cpp context: which tokens its KV cache holds, and how to compute more."""

import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixtral_rag.engines import Cancellation, Interrupted
from mixtral_rag.engines.llama_library import Model, ctrl_c_afterwards, load
from mixtral_rag.engines.llama_states import LEAST_BATCH, PromptStates
from mixtral_rag.errors import GenerationError, ModelFileError
from mixtral_rag.weights.gguf import GGML_TYPES

_ABORTED, _NO_SLOT = 2, 1  # what llama_decode returns
_TYPE_NUMBERS = {name: number for number, (name, _, _) in GGML_TYPES.items()}


class _Handle:
    """The C context and what stops it, freed once and never while it is in use.

    At exit a daemon thread may still be computing; freeing waits for it, after telling it to stop.
    """

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer
        self.in_use = threading.Lock()
        self.abort = ctypes.create_string_buffer(2)
        self.is_free = False

    def stop(self) -> None:
        self.abort.value = b"1"

    def free(self) -> None:
        self.stop()
        with self.in_use:
            self.is_free = True
            load().llama_free(self.pointer)

    @contextmanager
    def using(self) -> Iterator[Any]:
        with self.in_use:
            if self.is_free:
                raise Interrupted
            yield self.pointer


class LlamaContext:
    """A context over `model`; not safe for concurrent use, its engine gives out turns.

    Args:
        states: prompts on the disk to go on from; None computes all.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_batch: int,
        n_threads: int,
        kv_type: str,
        states: PromptStates | None = None,
    ) -> None:
        lib = load()
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_ctx, 1
        params.n_batch = params.n_ubatch = min(n_batch, n_ctx)
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = _TYPE_NUMBERS[kv_type.upper()]
        params.no_perf = True
        if kv_type not in ("f16", "f32", "bf16"):  # llama.cpp quantises V only with it
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        elif kv_type == "f32":  # asked for to be exact; flash attention rounds to f16 on the CPU
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._model = model  # freed after the context
        with ctrl_c_afterwards():
            pointer = lib.llama_init_from_model(model.pointer, params)
        if not pointer:
            raise ModelFileError(
                f"llama.cpp cannot make a context of {n_ctx:,} tokens with a {kv_type} cache; "
                + (
                    "choose a smaller n_ctx, or kv_type q8_0"
                    if kv_type == "f16"
                    else "choose a smaller n_ctx, or kv_type f16"
                )
            )
        self._handle = _Handle(pointer)
        self._free = weakref.finalize(self, self._handle.free)
        self._memory = lib.llama_get_memory(pointer)
        self._n_batch, self.n_ctx = int(params.n_batch), n_ctx
        self._held: list[int] = []  # the tokens whose keys and values are in the cache
        self._states = states
        self._current: Sequence[int] | None = None  # the list `advance` was last given
        # llama.cpp asks this between graph nodes whether to stop. strlen of a buffer that is empty
        # until cancelled answers without taking Python's lock: with another thread busy in Python,
        # a prefill with a Python callback took 2.5 times as long.
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, lib.llama_cpp.ggml_abort_callback)
        lib.llama_set_abort_callback(pointer, strlen, ctypes.addressof(self._handle.abort))

    def advance(self, ids: Sequence[int], cancel: Cancellation) -> int:
        """Make the cache hold exactly `ids`, with logits for the last; return how many it held.

        A caller that adds one token at a time to the same list pays nothing for the comparison.

        Raises:
            Interrupted: `cancel` was thrown meanwhile.
            GenerationError: llama.cpp failed.
        """
        if ids is not self._current or len(ids) != len(self._held) + 1:
            with self._handle.using():
                self._truncate(min(_common_prefix(self._held, ids), len(ids) - 1))
            if self._states is not None:
                self._states.restore(self, ids)
            self._current = ids
        kept = len(self._held)  # less than asked for where a model cannot forget a part
        fresh = ids[kept:]
        if len(fresh) == 1:
            self._decode(fresh)
        else:
            self._prefill(fresh, cancel)
        return kept

    @property
    def held(self) -> list[int]:
        """The tokens whose keys and values are in the cache."""
        return self._held

    def keep(self) -> None:
        """Leave on the disk what is worth it of what the cache holds."""
        if self._states is not None:
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
            self._current, self._held = None, []
            lib.llama_memory_clear(self._memory, False)
            done = lib.llama_state_seq_load_file(
                pointer, os.fsencode(path), 0, tokens, room, ctypes.byref(count)
            )
            read = tokens[: count.value] if done else []
            if list(read[: len(ids)]) != list(ids) or not done:
                lib.llama_memory_clear(self._memory, False)
                raise ValueError("llama.cpp cannot read it")
            self._held = list(read)
            self._truncate(len(ids))

    def _prefill(self, ids: Sequence[int], cancel: Cancellation) -> None:
        def run() -> None:
            start = 0
            for size in batch_sizes(len(ids), self._n_batch):
                self._decode(ids[start : start + size])
                start += size

        self._run(run, cancel)

    def _run(self, work: Callable[[], None], cancel: Cancellation) -> None:
        try:
            with cancel.calling(self._handle.stop):
                _interruptible(work, self._handle.stop)
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
        self._current = None
        with self._handle.using():
            self._truncate(0)
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
        self._free()

    def sample(self, chain: Any, look: Callable[[Any], None] | None = None) -> int:
        """Choose from the logits of the last token with a sampler chain.

        Args:
            chain: of llama.cpp.
            look: is given the logits first, a float32 array of shape (vocabulary,), to read or
                change.
        """
        lib = load()
        with self._handle.using() as pointer:
            if look is not None:
                import numpy as np

                n_vocab = lib.llama_vocab_n_tokens(self._model.vocab)
                look(np.ctypeslib.as_array(lib.llama_get_logits_ith(pointer, -1), (n_vocab,)))
            return int(lib.llama_sampler_sample(chain, pointer, -1))

    def _decode(self, ids: Sequence[int], n_logits: int = 1) -> None:
        """Compute `ids` after what is in the cache, with logits for the last `n_logits`."""
        lib, n = load(), len(ids)
        tokens = (lib.llama_token * n)(*ids)
        batch = lib.llama_batch_get_one(tokens, n)
        if n_logits != 1:  # one is what llama.cpp does by itself
            batch.logits = (ctypes.c_int8 * n)(*([0] * (n - n_logits) + [1] * n_logits))
        with self._handle.using() as pointer:
            status = lib.llama_decode(pointer, batch)
            if status == 0:
                self._held += ids
                return
            self._truncate(len(self._held))
        if status == _ABORTED:
            raise Interrupted
        raise GenerationError(
            f"llama.cpp found no room in its cache for {len(ids)} more tokens"
            if status == _NO_SLOT
            else f"llama.cpp failed to compute {len(ids)} tokens (status {status})"
        )

    def _truncate(self, size: int) -> None:
        lib = load()
        if not lib.llama_memory_seq_rm(self._memory, 0, size, -1):
            lib.llama_memory_clear(self._memory, False)
            self._held = []
            return
        del self._held[size:]


def batch_sizes(n: int, most: int) -> list[int]:
    """How to cut `n` tokens into batches of at most `most`, the last one no sliver.

    On a CPU, flash attention over an f16 cache computes batches of `LEAST_BATCH` tokens and more in
    another way than smaller ones, with logits that differ by up to 0.8; among the larger ones every
    cut gives the same, bit for bit. So what follows a restored prefix is what it is without one.
    """
    sizes = [most] * (n // most) + ([n % most] if n % most else [])
    if len(sizes) > 1 and sizes[-1] < LEAST_BATCH < most // 2:
        missing = LEAST_BATCH - sizes[-1]
        sizes[-2:] = [sizes[-2] - missing, LEAST_BATCH]
    return sizes


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _interruptible(work: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run `work`; on the main thread, let Ctrl-C stop it although it is deep inside C code."""
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    failure: list[BaseException] = []
    done = threading.Event()  # an interrupted Thread.join() may take the thread for ended

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again on the main thread
            failure.append(error)
        finally:
            done.set()

    interrupt: KeyboardInterrupt | None = None
    worker = threading.Thread(target=run, name="prefill", daemon=True)
    started = False
    while not done.is_set():
        try:
            if not started:
                started = True
                worker.start()
            done.wait()
        except KeyboardInterrupt as error:  # and any more of them, until the worker has stopped
            interrupt = error
            stop()
            if worker.ident is None:
                break
    if interrupt is not None:
        raise interrupt
    if failure:
        raise failure[0]
