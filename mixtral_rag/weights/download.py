"""Fetch files over HTTP in ranges: several connections, resumable at any byte, checked.

A file is written as `.NAME.partial`, with a journal of the ranges that are on disk beside it; it
gets its name only when its checksum is right. huggingface_hub's own downloader removes what it has
of a file when it is interrupted (2.4, `_download_to_tmp_and_move`), which for 26 GB over a slow
line means never arriving; so the hub's client lists, and this module transfers.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from mixtral_rag.errors import ChecksumError, LockedError, ModelFileError
from mixtral_rag.weights.disk import check_room, disk_error
from mixtral_rag.weights.hubs import RemoteFile
from mixtral_rag.weights.relayout import Layout
from mixtral_rag.weights.transfer import Crew, has_ranges, open_client

_SEGMENT = 32 << 20  # what a kill can lose of each connection

Progress = Callable[[str, int, int], None]
"""Gets what is being done, bytes done and bytes to do; called from the calling thread only."""


def download(
    files: Sequence[tuple[RemoteFile, Path]],
    *,
    headers: Mapping[str, str],
    layouts: Mapping[str, Layout] = MappingProxyType({}),
    n_connections: int = 8,
    on_progress: Progress = lambda what, done, total: None,
) -> None:
    """Fetch each remote file to its path; those that are there already are only checked.

    A file with an entry in `layouts`, by its remote path, is written in that layout. Interrupted
    or failed, what has arrived stays beside its place, and the next call goes on.

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
        targets = [
            _Target(remote, path, layouts.get(remote.path))
            for remote, path in files
            if not path.exists()
        ]
        check_room(folders[0] / "the model", sum(t.lacks for t in targets), option="--models")
        try:
            for target in targets:
                target.open()
            _transfer(targets, headers, n_connections, on_progress)
        except OSError as error:
            raise ModelFileError(
                f"{disk_error(folders[0], error)}; what has arrived stays"
            ) from error
        _check(files, layouts, on_progress)


def _beside(path: Path) -> tuple[Path, Path]:
    """What has arrived of a file, and the journal of it."""
    return path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.ranges")


class _Target:
    """A file on its way: the partial file, and the journal of the ranges that are in it."""

    def __init__(self, remote: RemoteFile, path: Path, layout: Layout | None) -> None:
        self.remote, self.layout = remote, layout
        self.size = remote.size if layout is None else layout.size
        self.partial, self.journal = _beside(path)
        self._lock = threading.Lock()
        self._is_sound = True
        self.have = self._resume()

    def open(self) -> None:
        """Make the partial file, at its full length, and the journal of what is in it."""
        self.file = os.fdopen(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        self.file.truncate(self.size)
        if self.layout is not None:
            self._put(0, memoryview(self.layout.head))
        lines = [self._identity(), *(f"{start} {end}" for start, end in self.have)]
        fresh = self.journal.with_name(f"{self.journal.name}.new")
        with fresh.open("w", encoding="ascii") as journal:
            journal.write("\n".join(lines) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        os.replace(fresh, self.journal)

    def _identity(self) -> str:
        digest = self.remote.sha256 or self.remote.git_sha1
        return json.dumps([self.remote.size, digest, self.layout is not None])

    def _resume(self) -> list[tuple[int, int]]:
        """Ranges on disk of this very file; of another one nothing is kept."""
        try:
            identity, *lines = self.journal.read_text("ascii", errors="replace").splitlines()
            same = self.partial.stat().st_size == self.size and identity == self._identity()
        except (OSError, ValueError):  # ValueError: an empty journal
            lines, same = [], False
        if not same:
            self.partial.unlink(missing_ok=True)
            return []
        ranges = []
        for line in lines:  # a power loss may tear the last
            numbers = [int(n) for n in line.split() if n.isdecimal()]
            if len(numbers) == 2 and 0 <= numbers[0] < numbers[1] <= self.remote.size:
                ranges.append((numbers[0], numbers[1]))
        return _merged(ranges)

    @property
    def lacks(self) -> int:
        """Bytes of disk it will take beyond what it has taken."""
        taken = self.partial.stat().st_blocks * 512 if self.partial.exists() else 0
        return max(0, self.size - taken)

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
        for place, piece in [(at, view)] if self.layout is None else self.layout.place(at, view):
            self._put(place, piece)

    def _put(self, at: int, view: memoryview) -> None:
        while view:
            n = os.pwrite(self.file.fileno(), view, at)
            view, at = view[n:], at + n

    def record(self, start: int, end: int) -> None:
        """Note a range in the journal, once the disk has it."""
        with self._lock:
            if not self._is_sound:  # a failed fsync may have dropped what others wrote
                return
            self._is_sound = False
            os.fsync(self.file.fileno())
            self._is_sound = True
            with self.journal.open("a", encoding="ascii") as journal:
                journal.write(f"{start} {end}\n")


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _transfer(
    targets: list[_Target], headers: Mapping[str, str], n_connections: int, on_progress: Progress
) -> None:
    total = sum(t.remote.size for t in targets)
    with open_client(headers, n_connections) as client:
        longest = _longest(client, targets)
        segments = [(target, *span) for target in targets for span in target.missing(longest)]
        had = total - sum(t.left for t in targets)
        crew = Crew(client, segments, n_connections)
        try:
            while not crew.idle.wait(0.1):
                on_progress("downloading", had + crew.arrived, total)
        finally:  # Ctrl-C too: each thread notes what it has and ends
            crew.finish(3)
        if crew.failure is not None:
            raise crew.failure
        for target in targets:
            target.file.close()
        on_progress("downloading", total, total)


def _longest(client: Any, targets: list[_Target]) -> int:
    """Bytes of one request; a server without ranges must not be asked for a file in pieces."""
    large = next((t.remote for t in targets if t.left > _SEGMENT), None)
    return _SEGMENT if large is None or has_ranges(client, large) else 1 << 62


def _check(
    files: Sequence[tuple[RemoteFile, Path]],
    layouts: Mapping[str, Layout],
    on_progress: Progress,
) -> None:
    """Compare every file with its checksum, and give the good ones their names."""
    total, done = sum(remote.size for remote, _ in files), 0
    for remote, path in files:
        partial, journal = _beside(path)
        fresh = not path.exists()

        def show(n: int, before: int = done) -> None:
            on_progress("checking", before + n, total)

        if not is_intact(partial if fresh else path, remote, layouts.get(remote.path), show):
            if not fresh:
                raise ChecksumError(f"{path} is not what the hub holds; move it away and try again")
            partial.unlink()
            journal.unlink(missing_ok=True)
            raise ChecksumError(
                f"{remote.path} arrived with a wrong checksum and was removed; run it again, and "
                "if that does not help, try another mirror"
            )
        if fresh:
            layout = layouts.get(remote.path)
            if layout is not None and not layout.is_headed(partial):
                raise ModelFileError(f"{partial} was not written as planned; is the disk sound?")
            os.replace(partial, path)
        journal.unlink(missing_ok=True)
        done += remote.size


def is_intact(
    path: Path,
    remote: RemoteFile,
    layout: Layout | None = None,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> bool:
    """Whether the file at `path` holds the bytes that the hub announced."""
    if path.stat().st_size != (remote.size if layout is None else layout.size):
        return False
    digest, wanted = hashlib.sha256(), remote.sha256
    if not wanted and remote.git_sha1:
        digest, wanted = hashlib.sha1(usedforsecurity=False), remote.git_sha1
        digest.update(f"blob {remote.size}\0".encode())
    done = 0
    with path.open("rb") as file:
        for data in _chunks(file) if layout is None else layout.original(file):
            digest.update(data)
            done += len(data)
            on_bytes(done)
    return not wanted or digest.hexdigest() == wanted


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(4 << 20):
        yield data


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
