"""Byte ranges over HTTP: several connections, each going on where it broke off."""

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from mixtral_rag.errors import ChecksumError, HubError
from mixtral_rag.weights.hubs import RemoteFile, refused, unreachable

_CHUNK = 256 << 10
_TRIES = 6  # in a row without a byte
_RETRIED = (408, 429, 500, 502, 503, 504)


class Sink(Protocol):
    """Where the bytes of a remote file go; used from several threads at once."""

    remote: RemoteFile

    def write(self, at: int, data: bytes) -> None:
        """Take what stands at `at` in the remote file."""
        ...

    def record(self, start: int, end: int) -> None:
        """Note that this range was written."""
        ...


Segment = tuple[Sink, int, int]
"""A sink and the range, start and end, that it lacks."""


def open_client(headers: Mapping[str, str], n_connections: int) -> Any:
    """An `httpx.Client` that follows redirects; a token goes to the first host only."""
    import httpx

    return httpx.Client(
        headers={**headers, "Accept-Encoding": "identity"},
        follow_redirects=True,
        timeout=httpx.Timeout(15, pool=None),
        limits=httpx.Limits(max_connections=n_connections),
    )


def has_ranges(client: Any, remote: RemoteFile) -> bool:
    """Whether the server knows ranges, by asking for one byte."""
    import httpx

    for tries in range(_TRIES):
        try:
            with client.stream("GET", remote.url, headers={"Range": "bytes=0-0"}) as reply:
                _check_status(reply, remote)
                return bool(reply.status_code == 206)
        except (httpx.RequestError, _TryAgainError):
            time.sleep(2.0**tries / 4)
    return True  # the segments will say what is wrong


def peek(remote: RemoteFile, n: int, *, headers: Mapping[str, str], have: bytes = b"") -> bytes:
    """The first `n` bytes of a remote file, of which the first are had already.

    Raises:
        HubError: the server cannot be reached or refuses.
    """
    import httpx

    data, tries, n = have, 0, min(n, remote.size)
    with open_client(headers, 1) as client:
        while len(data) < n:
            before, reason = len(data), "the connection ended early"
            try:
                for more in _stream(client, remote, before, n):
                    data += more
            except (httpx.RequestError, _TryAgainError) as error:
                reason = str(error) or type(error).__name__
                time.sleep(2.0**tries / 4)
            tries = 0 if len(data) > before else tries + 1
            if tries >= _TRIES:
                raise unreachable(remote.url.split("?")[0], HubError(reason))
    return data


class Crew:
    """Threads that fetch segments until none is left, one fails, or they are told to stop."""

    def __init__(self, client: Any, segments: Sequence[Segment], n: int) -> None:
        self.client = client
        self.stop = threading.Event()
        self.failure: BaseException | None = None
        self.arrived = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Segment] = queue.SimpleQueue()
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

    def _fetch(self, sink: Sink, start: int, end: int) -> None:
        """One segment, trying again from where it broke off."""
        import httpx

        at, tries = start, 0
        try:
            while at < end and not self.stop.is_set():
                before, reason = at, "the connection ended early"
                try:
                    for data in _stream(self.client, sink.remote, at, end):
                        sink.write(at, data)
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
                    raise unreachable(sink.remote.url.split("?")[0], HubError(reason))
        finally:
            if at > start:
                sink.record(start, at)


class _TryAgainError(Exception):
    """The server is busy; `seconds` is how long it wants us to wait, when it says so."""

    def __init__(self, status: int, seconds: float | None) -> None:
        super().__init__(f"HTTP {status}")
        self.seconds = seconds


def _stream(client: Any, remote: RemoteFile, start: int, end: int) -> Iterator[bytes]:
    """The bytes from `start` to `end`; a server that knows no ranges sends all, and we skip."""
    headers = {"Range": f"bytes={start}-{end - 1}"}
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
