"""One thread for all of llama.cpp's computing."""

import os
import queue
import threading
from collections.abc import Callable


class _Work:
    """Something to compute, once, and how it ended."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work
        self.ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(self) -> None:
        work, self._work = self._work, None
        if work is None:
            return
        failure: BaseException | None = None
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
            failure = error
        del work  # before anybody is told: it may hold the last reference to a model
        self.ended.put(failure)


class ComputeThread:
    """Computes for all threads of the process, one piece of work after another.

    OpenMP keeps a team of threads for every thread that computes. GCC's runtime lets them wait
    actively only while all teams together are no more than the cores; beyond that a decode of many
    short steps ran at a third of its speed on 2 cores, for every thread but the first. With one
    computing thread there is one team. It also leaves the main thread free for Ctrl-C.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[_Work] | None = None
        self._process = 0

    def run(self, work: Callable[[], None], stop: Callable[[], None]) -> None:
        """Compute `work` and raise what it raises.

        Ctrl-C on the main thread calls `stop`, which may make `work` end early, and is raised when
        it has ended.
        """
        waiting, asked = self._started(), _Work(work)
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                waiting.put(asked)  # again after Ctrl-C, which may have come before or after
                failure = asked.ended.get()
                break
            except KeyboardInterrupt as error:
                interrupt = error
                stop()
        if interrupt is not None:
            raise interrupt
        if failure is not None:
            raise failure

    def _started(self) -> "queue.SimpleQueue[_Work]":
        with self._lock:
            if self._waiting is None or self._process != os.getpid():  # a fork has no threads
                self._waiting, self._process = queue.SimpleQueue(), os.getpid()
                threading.Thread(
                    target=_serve, args=(self._waiting,), name="llama.cpp", daemon=True
                ).start()
            return self._waiting


def _serve(waiting: "queue.SimpleQueue[_Work]") -> None:
    while True:
        waiting.get().run()


COMPUTE = ComputeThread()
