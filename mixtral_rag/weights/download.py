"""Fetch files over HTTP in ranges: several connections, resumable at any byte, checked.

A file is written as `.NAME.partial`, with a journal of the ranges that are on disk beside it; it
gets its name only when its checksum is right. huggingface_hub's own downloader removes what it has
of a file when it is interrupted (2.4, `_download_to_tmp_and_move`), which for 26 GB over a slow
line means never arriving; so the hub's client lists, and this module transfers.
"""

import errno
import hashlib
import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixtral_rag.errors import ChecksumError, HubError, LockedError, ModelFileError
from mixtral_rag.weights.hubs import RemoteFile, refused, unreachable

_SEGMENT = 32 << 20  # what a kill can lose of each connection
_CHUNK = 256 << 10
_TRIES = 6  # in a row without a byte
_RETRIED = (408, 429, 500, 502, 503, 504)

Progress = Callable[[str, int, int], None]
"""Gets what is being done, bytes done and bytes to do; called from the calling thread only."""


def download(
    files: Sequence[tuple[RemoteFile, Path]],
    *,
    headers: Mapping[str, str],
    n_connections: int = 8,
    on_progress: Progress = lambda what, done, total: None,
) -> None:
    """Fetch each remote file to its path; those that are there already are only checked.

    Interrupted or failed, what has arrived stays beside its place and the next call goes on.

    Raises:
        LockedError: another process is fetching to the same folder.
        HubError: the server cannot be reached or refuses; `HubAccessError` when it wants a token.
        ChecksumError: a file is not what the hub announced; it was removed.
        ModelFileError: the disk is full or cannot be written.
    """
    folders = sorted({path.parent for _, path in files})
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folders[0]):
        targets = [_Target(remote, path) for remote, path in files if not path.exists()]
        check_room(folders[0], sum(t.left for t in targets))
        try:
            _transfer(targets, headers, n_connections, on_progress)
        except OSError as error:
            raise _disk_error(folders[0], error) from error
        _check([(remote, path) for remote, path in files], on_progress)


def check_room(folder: Path, needed: int) -> None:
    """Raise `ModelFileError` unless `needed` bytes are free where `folder` is or will be."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ModelFileError(
            f"the disk of {folder} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are "
            "needed; free some, or choose another place with --models"
        )


class _Target:
    """A file on its way: the partial file, and the journal of the ranges that are in it."""

    def __init__(self, remote: RemoteFile, path: Path) -> None:
        self.remote, self.path = remote, path
        self.partial = path.with_name(f".{path.name}.partial")
        self.journal = path.with_name(f".{path.name}.ranges")
        self._lock = threading.Lock()
        self.have = self._resume()
        self.file = os.fdopen(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        self.file.truncate(remote.size)

    def _identity(self) -> str:
        return json.dumps([self.remote.size, self.remote.sha256 or self.remote.git_sha1])

    def _resume(self) -> list[tuple[int, int]]:
        """Ranges on disk of this very file; of another one nothing is kept."""
        try:
            identity, *lines = self.journal.read_text("ascii").splitlines()
            ranges = [(int(a), int(b)) for a, b in (line.split() for line in lines)]
            same = self.partial.stat().st_size == self.remote.size
        except (OSError, ValueError):  # ValueError: a line torn by a power loss
            identity, ranges, same = "", [], False
        if identity != self._identity() or not same:
            self.partial.unlink(missing_ok=True)
            self.journal.write_text(self._identity() + "\n", "ascii")
            return []
        return _merged(ranges)

    @property
    def left(self) -> int:
        return self.remote.size - sum(end - start for start, end in self.have)

    def missing(self, longest: int) -> Iterator[tuple[int, int]]:
        at = 0
        for start, end in [*self.have, (self.remote.size, self.remote.size)]:
            while at < start:
                stop = min(start, at + longest)
                yield at, stop
                at = stop
            at = max(at, end)

    def write(self, at: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            n = os.pwrite(self.file.fileno(), view, at)
            view, at = view[n:], at + n

    def record(self, start: int, end: int) -> None:
        """Note a range in the journal, once the disk has it."""
        os.fsync(self.file.fileno())
        with self._lock, self.journal.open("a", encoding="ascii") as journal:
            journal.write(f"{start} {end}\n")


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


class _Crew:
    """Threads that fetch segments until none is left, one fails, or they are told to stop."""

    def __init__(self, client: Any, segments: list[tuple[_Target, int, int]], n: int) -> None:
        self.client = client
        self.stop = threading.Event()
        self.failure: BaseException | None = None
        self.arrived = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[_Target, int, int]] = queue.SimpleQueue()
        for segment in segments:
            self._queue.put(segment)
        self._left = n = min(n, len(segments))
        self.idle = threading.Event()
        if not n:
            self.idle.set()
        for _ in range(n):
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        try:
            while not self.stop.is_set():
                self._fetch(*self._queue.get_nowait())
        except queue.Empty:
            pass
        except BaseException as error:  # noqa: BLE001  raised again in the thread that waits
            self.failure = self.failure or error
            self.stop.set()
        finally:
            with self._lock:
                self._left -= 1
                if not self._left:
                    self.idle.set()

    def _fetch(self, target: _Target, start: int, end: int) -> None:
        """One segment, trying again from where it broke off."""
        import httpx

        at, tries = start, 0
        try:
            while at < end and not self.stop.is_set():
                before, reason = at, "the connection ended early"
                try:
                    for data in _stream(self.client, target.remote, at, end):
                        target.write(at, data)
                        at += len(data)
                        with self._lock:
                            self.arrived += len(data)
                        if self.stop.is_set():
                            return
                except (httpx.RequestError, _TryAgainError) as error:
                    reason = str(error) or type(error).__name__
                    wait = getattr(error, "seconds", None)
                    self.stop.wait(min(2.0**tries, 30) / 2 if wait is None else wait)
                tries = 0 if at > before else tries + 1
                if tries >= _TRIES:
                    raise unreachable(target.remote.url.split("?")[0], HubError(reason))
        finally:
            if at > start:
                target.record(start, at)


class _TryAgainError(Exception):
    """The server is busy; `seconds` is how long it wants us to wait, when it says so."""

    def __init__(self, status: int, seconds: float | None) -> None:
        super().__init__(f"HTTP {status}")
        self.seconds = seconds


def _stream(client: Any, remote: RemoteFile, start: int, end: int) -> Iterator[bytes]:
    """The bytes from `start` to `end`; a server that knows no ranges sends all, and we skip."""
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    with client.stream("GET", remote.url, headers=headers) as response:
        _check_status(response, remote)
        skip, left = (start if response.status_code == 200 else 0), end - start
        for data in response.iter_raw(_CHUNK):
            if skip >= len(data):
                skip -= len(data)
                continue
            data = data[skip : skip + left]
            skip, left = 0, left - len(data)
            yield data
            if not left:
                return


def _check_status(response: Any, remote: RemoteFile) -> None:
    status = response.status_code
    if status in _RETRIED:
        wait = response.headers.get("Retry-After", "")
        raise _TryAgainError(status, min(float(wait), 60.0) if wait.isdigit() else None)
    if status not in (200, 206):
        origin = f"{response.url.scheme}://{response.url.host}"
        raise refused(status, remote.path, origin)
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if status == 200:
        total = response.headers.get("Content-Length", "")
    if total.isdigit() and int(total) != remote.size:
        raise ChecksumError(
            f"{remote.url.split('?')[0]} has {int(total):,} bytes and the hub announced "
            f"{remote.size:,}; try again later, or another mirror"
        )


def _transfer(
    targets: list[_Target], headers: Mapping[str, str], n_connections: int, on_progress: Progress
) -> None:
    import httpx

    total = sum(t.remote.size for t in targets)
    limits = httpx.Limits(max_connections=n_connections)
    timeout = httpx.Timeout(15, pool=None)
    with httpx.Client(
        headers=dict(headers), follow_redirects=True, timeout=timeout, limits=limits
    ) as client:
        segments = [
            (target, *span)
            for target in targets
            for span in target.missing(_SEGMENT if _has_ranges(client, target) else 1 << 62)
        ]
        had = total - sum(t.left for t in targets)
        crew = _Crew(client, segments, n_connections)
        try:
            while not crew.idle.wait(0.1):
                on_progress("downloading", had + crew.arrived, total)
        finally:  # Ctrl-C too: each thread notes what it has and ends
            crew.stop.set()
            crew.idle.wait(3)
        if crew.failure is not None:
            raise crew.failure
        for target in targets:
            target.file.close()
        on_progress("downloading", total, total)


def _has_ranges(client: Any, target: _Target) -> bool:
    """Ask for one byte of a large file: cut in segments, it must not be sent whole each time."""
    import httpx

    if target.left <= _SEGMENT:
        return True
    for _ in range(_TRIES):
        try:
            with client.stream("GET", target.remote.url, headers={"Range": "bytes=0-0"}) as reply:
                _check_status(reply, target.remote)
                return bool(reply.status_code == 206)
        except (httpx.RequestError, _TryAgainError):
            continue
    return True  # the segments will say what is wrong


def _check(files: list[tuple[RemoteFile, Path]], on_progress: Progress) -> None:
    """Compare every file with its checksum, and give the good ones their names."""
    total, done = sum(remote.size for remote, _ in files), 0
    for remote, path in files:
        partial = path.with_name(f".{path.name}.partial")
        journal = path.with_name(f".{path.name}.ranges")
        fresh = not path.exists()
        on_progress("checking", done, total)
        if not is_intact(partial if fresh else path, remote):
            if not fresh:
                raise ChecksumError(f"{path} is not what the hub holds; move it away and try again")
            partial.unlink()
            journal.unlink(missing_ok=True)
            raise ChecksumError(
                f"{remote.path} arrived with a wrong checksum and was removed; run it again, and "
                "if that does not help, try another mirror"
            )
        if fresh:
            os.replace(partial, path)
        journal.unlink(missing_ok=True)
        done += remote.size
    on_progress("checking", total, total)


def is_intact(path: Path, remote: RemoteFile) -> bool:
    """Whether the file at `path` has the size and the checksum that the hub gave."""
    if path.stat().st_size != remote.size:
        return False
    with path.open("rb") as file:
        if remote.sha256:
            return hashlib.file_digest(file, "sha256").hexdigest() == remote.sha256
        if remote.git_sha1:
            blob = hashlib.sha1(f"blob {remote.size}\0".encode(), usedforsecurity=False)
            blob.update(file.read())
            return blob.hexdigest() == remote.git_sha1
    return True


def _disk_error(folder: Path, error: OSError) -> ModelFileError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelFileError(
            f"the disk of {folder} is full; what has arrived is kept: free some space and run "
            "it again"
        )
    return ModelFileError(f"cannot write to {folder}: {error.strerror or error}")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LockedError(f"another process is downloading to {folder}; let it finish") from None
    try:
        yield
    finally:
        lock.release()
