"""One process that reads documents, from the side of the program that wants them read.

A file that hangs, crashes or bombs its reader costs only itself: the process is ended with all it
started and a new one takes its place. It is never forked from this program, and what it says is
JSON, so that nothing of a document is ever run here.
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import CancelledError
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixtral_rag import errors
from mixtral_rag.ingest.readers import Parsed, ReadOptions

_START = 60.0  # seconds
_FILES = 200  # that one process reads: libraries leak
_ANSWER = 1 << 20  # bytes an answer may take beyond 4 for each character of text

# Readers compute on one thread: the pool has one process a core, and idle threads cost memory.
_THREADS = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Worker:
    """Starts the process when needed, and replaces it when it fails.

    It belongs to one thread at a time; only `stop` may be called by another.

    Args:
        timeout: seconds one document may take, or a page of it where pages are read by OCR.
        memory: bytes of address space the reader may use.
        max_characters: of text one document may hold.
    """

    def __init__(
        self, *, timeout: float = 60.0, memory: int = 1 << 30, max_characters: int = 20_000_000
    ) -> None:
        self.timeout, self.memory, self.max_characters = timeout, memory, max_characters
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # between the process as it starts or ends, and `stop`
        self._stopped = False
        self._folder = ""
        self._n_read = 0
        self._received = b""

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: Path, options: ReadOptions = ReadOptions()) -> Parsed:  # noqa: B008
        """Read one document.

        Raises:
            DocumentError: what the reader raised, or what became of it.
            StoreError: the process cannot be started.
            CancelledError: `stop` was called.
        """
        used = self._n_read > 0
        answer = self._ask(path, options)
        if used and "again" in answer:  # what an earlier file left behind may be to blame
            answer = self._ask(path, options)
        if "error" in answer:
            kind: type[errors.DocumentError] = getattr(errors, answer["error"])
            raise kind(answer["message"])
        return Parsed.from_dict(answer["parsed"])

    def stop(self) -> None:
        """End the process at once, whatever it is at, and start no other."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                _kill(self._process)

    def close(self) -> None:
        """End the process and everything it started."""
        self._end()

    def _ask(self, path: Path, options: ReadOptions) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None
        request = {"path": os.path.abspath(path), "options": asdict(options)}
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = {"alive": True}
            while "alive" in answer:
                answer = json.loads(self._line(process, self.timeout))
        except TimeoutError:
            self._end()
            return _failure(f"{path} took its reader more than {self.timeout:g} seconds")
        except OverflowError:
            self._end()
            return _failure(f"{path} grows to more text than can be taken; split it")
        except (BrokenPipeError, EOFError):
            return self._crash(path, self._end())
        except BaseException:
            self._end()  # whatever is still under way must not answer the next request
            raise
        self._n_read += 1
        if answer["worn"] or self._n_read >= _FILES:
            self._end()
        return answer

    def _crash(self, path: Path, code: int) -> dict[str, Any]:
        if self._stopped:
            raise CancelledError
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        if name == "SIGXCPU":
            took = f"{self.timeout:g} seconds of processor time"
            return _failure(f"{path} took its reader more than {took}")
        if name == "SIGALRM":
            return _failure(f"{path} took its reader more than {self.timeout:g} seconds")
        limit = f"{self.memory >> 20:,} MiB"
        return _failure(
            f"{path} crashed its reader ({name}); it may be damaged or need more than {limit} "
            "of memory"
        ) | {"again": True}

    def _start(self) -> subprocess.Popen[bytes]:
        limits = {n: getattr(self, n) for n in ("timeout", "memory", "max_characters")}
        # Isolated from the environment and the current folder, but with the parent's own path.
        code = (
            f"import sys; sys.path[:] = {[os.path.abspath(p) for p in sys.path]!r}; "
            f"from mixtral_rag.ingest.reader_process import main; main(**{limits!r})"
        )
        flags = ["-I", "-X", f"utf8={sys.flags.utf8_mode}", *["-B"] * sys.dont_write_bytecode]
        with self._lock:
            if self._stopped:
                raise CancelledError
            self._folder = tempfile.mkdtemp(prefix="mixtral-rag-reader-")
            self._n_read, self._received = 0, b""
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
                    [sys.executable, *flags, "-c", code],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    bufsize=0, cwd=self._folder, env=self._environment(), start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                os.rmdir(self._folder)
                raise _no_start(str(error)) from error
        self._await_ready(self._process)
        return self._process

    def _environment(self) -> dict[str, str]:
        folders = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self._folder)
        return os.environ | folders | dict.fromkeys(_THREADS, "1")

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        try:
            self._line(process, _START)
        except (TimeoutError, EOFError):
            _kill(process)
            lines = process.stderr.read().decode("utf-8", "replace").strip().split("\n")
            code = self._end()
            if self._stopped:
                raise CancelledError from None
            raise _no_start(lines[-1] or f"it ended with code {code}") from None
        except BaseException:
            self._end()
            raise

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """The next line the process sends, whose parts come within `seconds` of one another.

        Raises:
            TimeoutError: they do not.
            EOFError: it sends no more.
            OverflowError: the line is too long.
        """
        assert process.stdout is not None
        parts = [self._received]
        size = 0
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in parts[-1]:
                # Looks again in case this program was itself stopped for the whole time.
                if not selector.select(seconds) and not selector.select(0):
                    raise TimeoutError
                parts.append(os.read(process.stdout.fileno(), 1 << 20))
                size += len(parts[-1])
                if not parts[-1]:
                    raise EOFError
                if size > 4 * self.max_characters + _ANSWER:
                    raise OverflowError
        line, _, self._received = b"".join(parts).partition(b"\n")
        return line

    def _end(self) -> int:
        """End the process, and tell how it ended if it had before."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return 0
            _kill(process)
            # Only now: until it is waited for, its number cannot belong to another process.
            code = process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        return code


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and the group it leads."""
    if not hasattr(os, "killpg"):
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS forbids it for a zombie
        os.killpg(process.pid, signal.SIGKILL)


def _failure(message: str) -> dict[str, Any]:
    return {"error": "UnreadableError", "message": message}


def _no_start(reason: str) -> errors.StoreError:
    return errors.StoreError(f"cannot start the process that reads documents: {reason}")
