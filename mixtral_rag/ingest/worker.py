"""A process that reads documents, so that one which hangs or crashes its reader costs only itself.

It takes a JSON line with a path on standard input and answers a JSON line on standard output, the
first of them to say that it is ready. `Worker` is the parent's side.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixtral_rag import errors
from mixtral_rag.ingest.readers import Parsed, ReadOptions, read

_MEMORY = 2 << 30  # address space, bytes
_LONGEST_ANSWER = 256 << 20  # bytes


class Worker:
    """The parent's side: starts the process when needed and replaces it when it fails.

    Args:
        timeout: seconds one document may take.
    """

    def __init__(self, timeout: float = 60.0) -> None:
        self.timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: Path, options: ReadOptions = ReadOptions()) -> Parsed:  # noqa: B008
        """Read one document.

        Raises:
            DocumentError: what the reader raised, or that it hung or crashed.
        """
        process = self._started()
        assert process.stdin is not None
        try:
            asked = {"path": str(path), "options": asdict(options)}
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.flush()
            answer = json.loads(self._line(process, path, self.timeout))
        except (BrokenPipeError, json.JSONDecodeError):
            self.close()
            raise errors.UnreadableError(f"{path} crashed its reader; it may be damaged") from None
        except BaseException:
            self.close()  # whatever is still under way must not answer the next request
            raise
        if "error" in answer:
            kind = getattr(errors, answer["error"], errors.UnreadableError)
            raise kind(answer["message"])
        return Parsed.from_dict(answer)

    def close(self) -> None:
        """End the process and everything it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        # Isolated from the environment and the current folder, but with the parent's own path.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            "from mixtral_rag.ingest.worker import main; main()"
        )
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-I", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            ready = self._line(self._process, Path("the reader process"), 60.0)
        except errors.UnreadableError:
            ready = b""
        if not ready:
            self._process.kill()
            _, reason = self._process.communicate()
            self.close()
            last = reason.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
            raise errors.StoreError(f"cannot start the process that reads documents: {last}")
        return self._process

    def _line(self, process: subprocess.Popen[bytes], path: Path, timeout: float) -> bytes:
        assert process.stdout is not None
        deadline = time.monotonic() + timeout
        parts: list[bytes] = []
        size = 0
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not parts or not parts[-1].endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise errors.UnreadableError(
                        f"{path} took its reader more than {timeout:g} seconds"
                    )
                part = os.read(process.stdout.fileno(), 1 << 20)
                size += len(part)
                if not part:
                    break
                if size > _LONGEST_ANSWER:
                    raise errors.UnreadableError(f"{path} grows to more text than can be taken")
                parts.append(part)
        return b"".join(parts)


def _answer(path: Path, options: ReadOptions) -> dict[str, Any]:
    try:
        return read(path, options).as_dict()
    except errors.DocumentError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        return {"error": "UnreadableError", "message": f"{path} needs too much memory to read"}
    except RecursionError:
        return {"error": "UnreadableError", "message": f"{path} is nested too deeply to read"}


def main() -> None:
    """Answer requests until standard input ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Libraries may print; only answers may reach the pipe.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    pipe.write(b'{"ready": true}\n')
    pipe.flush()
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        found = _answer(Path(asked["path"]), ReadOptions(**asked["options"]))
        answer = json.dumps(found, ensure_ascii=True)
        pipe.write(answer.encode() + b"\n")
        pipe.flush()
