"""The C side of a context: freed once, never while in use, and stopped from outside."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mixtral_rag.engines import Interrupted
from mixtral_rag.engines.llama_library import load


class Handle:
    """The C context and what stops it, freed once and never while it is in use.

    At exit a daemon thread may still be computing; freeing waits for it, after telling it to stop.
    """

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer
        self.in_use = threading.Lock()
        self.abort = ctypes.create_string_buffer(2)
        self.is_free = False
        # llama.cpp asks this whether to stop. strlen of a buffer that is empty until cancelled
        # answers without Python's lock: with a callback and a busy thread a prefill took 2.5 times.
        lib = load()
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, lib.llama_cpp.ggml_abort_callback)
        lib.llama_set_abort_callback(pointer, strlen, ctypes.addressof(self.abort))

    def stop(self) -> None:
        """End what it computes at the next possible point."""
        self.abort.value = b"1"

    def free(self) -> None:
        """Give the memory back, once nothing uses it."""
        self.stop()
        with self.in_use:
            self.is_free = True
            load().llama_free(self.pointer)

    @contextmanager
    def using(self) -> Iterator[Any]:
        """The pointer, for one call; raises `Interrupted` where it is freed."""
        with self.in_use:
            if self.is_free:
                raise Interrupted
            yield self.pointer


def interruptible(work: Callable[[], None], stop: Callable[[], None]) -> None:
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
