"""The process that reads documents, which may hang, crash or be ended at any moment.

It takes a JSON line with a path on standard input and answers a JSON line on standard output. The
first line says that it is ready; before an answer may come lines that say the reader is alive.
`mixtral_rag.ingest.worker` is the other end. What it imports is what its start costs.
"""

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from mixtral_rag import errors
from mixtral_rag.ingest import heartbeat
from mixtral_rag.ingest.readers import Parsed, ReadOptions, read

MOST_BLOCKS = 500_000  # each costs the other end some hundred bytes, however short its text
_GRACE = 5.0  # seconds after which this process ends itself, had the other end not done so
_LARGEST_FILE = 1 << 30  # bytes of one temporary file
_NICER = 5
_LONGEST_MESSAGE = 1000


def main(*, timeout: float, memory: int, max_characters: int) -> None:
    """Answer requests until standard input ends.

    Args:
        timeout: seconds of time, and of processor time, until a file's answer or sign of life.
        memory: bytes of address space.
        max_characters: of text that one document may hold.
    """
    requests, answers = _streams()
    _limit(memory)
    stop_with_parent = _stopper(requests.fileno())

    folder = os.getcwd()  # for temporary files
    _on_signs_of_life(answers, timeout)
    _write(answers, b'{"ready": true}\n')
    for line in iter(requests.readline, b""):
        asked = json.loads(line)
        stop_with_parent(True)
        _arm(timeout)
        path, options = Path(asked["path"]), ReadOptions(**asked["options"])
        try:
            answer = _encode(_answer(path, options, max_characters), folder, memory)
        except MemoryError:
            message = f"{path} needs more than {memory >> 20:,} MiB of memory to read"
            answer = _encode(_failure("UnreadableError", message) | {"again": True}, folder, memory)
        _disarm()  # sending waits for as long as the parent is stopped
        stop_with_parent(False)
        _write(answers, answer)
    with contextlib.suppress(OSError):
        os.rmdir(folder)  # if the parent cannot


def _streams() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes, out of reach of whatever libraries and their programs read and print."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    return requests, answers


def _write(answers: IO[bytes], line: bytes) -> None:
    answers.write(line)
    answers.flush()


def _limit(memory: int) -> None:
    if hasattr(os, "nice"):
        os.nice(_NICER)
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        for limit, most in (("AS", memory), ("CORE", 0), ("FSIZE", _LARGEST_FILE)):
            with contextlib.suppress(ValueError, OSError):  # the system may forbid or lack one
                resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (most, most))


def _stopper(requests: int) -> Callable[[bool], None]:
    """A switch: while it is on, the kernel kills this process group when the parent is gone.

    The parent says nothing while a file is read, so a signal for the pipe tells that its other end
    was closed. Only Linux can choose the signal; elsewhere there is the alarm.
    """
    if sys.platform != "linux" or os.getpgrp() != os.getpid():
        return lambda on: None
    import fcntl

    flags = fcntl.fcntl(requests, fcntl.F_GETFL)
    fcntl.fcntl(requests, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(requests, fcntl.F_SETSIG, signal.SIGKILL)

    def switch(on: bool) -> None:
        fcntl.fcntl(requests, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags)

    return switch


def _arm(seconds: float) -> None:
    """Have the kernel end this process if it computes for too long or is forgotten."""
    with contextlib.suppress(AttributeError, ImportError):  # Windows
        import resource

        signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE)
        soft = math.ceil(time.process_time() + seconds) + 1
        with contextlib.suppress(ValueError, OSError):
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _disarm() -> None:
    with contextlib.suppress(AttributeError):
        signal.setitimer(signal.ITIMER_REAL, 0)


def _on_signs_of_life(answers: IO[bytes], timeout: float) -> None:
    last = 0.0

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > min(1.0, timeout / 10):
            last = time.monotonic()
            _arm(timeout)
            _write(answers, b'{"alive": true}\n')

    heartbeat.listen(beat)


def _encode(answer: dict[str, Any], folder: str, memory: int) -> bytes:
    """A line for the parent; `worn` when this process had better not read another file."""
    answer["worn"] = (
        "again" in answer
        or _has_children()
        or bool(os.listdir(folder))
        or _address_space() > memory // 2
    )
    # Lone surrogates, which some files hold, become question marks.
    return json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _answer(path: Path, options: ReadOptions, max_characters: int) -> dict[str, Any]:
    """What the reader found or raised."""
    try:
        parsed = read(path, options)
        return _too_much(path, parsed, max_characters) or {"parsed": parsed.as_dict()}
    except errors.MixtralRagError as error:
        known = isinstance(error, errors.DocumentError)
        return _failure(type(error).__name__ if known else "UnsupportedError", str(error))
    except MemoryError:
        raise
    except RecursionError:
        return _failure("UnreadableError", f"{path} is nested too deeply to read")
    except Exception as error:  # noqa: BLE001 - libraries raise anything over a damaged file
        reason = f"{type(error).__name__}: {error}"
        return _failure("UnreadableError", f"{path} cannot be read, it may be damaged ({reason})")


def _failure(kind: str, message: str) -> dict[str, Any]:
    line = " ".join(message.split())
    return {"error": kind, "message": line[:_LONGEST_MESSAGE]}


def _too_much(path: Path, parsed: Parsed, max_characters: int) -> dict[str, Any] | None:
    parts = [*parsed.problems, parsed.title, *(h for b in parsed.blocks for h in b.section)]
    if sum(map(len, parts)) + sum(len(b.text) for b in parsed.blocks) > max_characters:
        message = f"{path} holds more than {max_characters:,} characters of text; split it"
        return _failure("UnreadableError", message)
    if len(parsed.blocks) > MOST_BLOCKS:
        message = f"{path} falls into more than {MOST_BLOCKS:,} parts; split it"
        return _failure("UnreadableError", message)
    return None


def _has_children() -> bool:
    if not hasattr(os, "WNOHANG"):
        return False
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _address_space() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
