"""Byte ranges over HTTP: several connections, each going on where it broke off."""

import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from mixtral_rag.errors import ChecksumError, HubError
from mixtral_rag.weights.hubs import RemoteFile, refused, unreachable

_TRIES = 6  # in a row that bring next to nothing
_PROGRESS = 64 << 10  # bytes that count as something
_LONGEST_WAIT = 300.0  # seconds; Hugging Face counts requests in windows of five minutes
_RESET = re.compile(r"\bt=(\d+)")


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

    try:
        return httpx.Client(
            headers={**headers, "Accept-Encoding": "identity"},
            follow_redirects=True,
            timeout=httpx.Timeout(15, pool=None),
            limits=httpx.Limits(max_connections=n_connections),
        )
    except (ImportError, OSError, ValueError) as error:  # of HTTPS_PROXY, SSL_CERT_FILE and such
        raise HubError(f"the network settings of this machine cannot be used: {error}") from error


def has_ranges(client: Any, remote: RemoteFile) -> bool:
    """Whether the server knows ranges, by asking for one byte."""
    import httpx

    retry = _Retry(remote)
    while True:
        try:
            with client.stream("GET", remote.url, headers={"Range": "bytes=0-0"}) as reply:
                _check_status(reply, remote, 0)
                return bool(reply.status_code == 206)
        except (httpx.RequestError, _TryAgainError) as error:
            time.sleep(retry.after(error, 0))


def peek(remote: RemoteFile, n: int, *, headers: Mapping[str, str], have: bytes = b"") -> bytes:
    """The first `n` bytes of a remote file, of which the first are had already.

    Raises:
        HubError: the server cannot be reached or refuses.
    """
    import httpx

    data, n, retry = bytearray(have), min(n, remote.size), _Retry(remote)
    with open_client(headers, 1) as client:
        while len(data) < n:
            before, error = len(data), None
            try:
                for more in _stream(client, remote, before, n):
                    data += more
            except (httpx.RequestError, _TryAgainError) as caught:
                error = caught
            if len(data) < n:
                time.sleep(retry.after(error, len(data) - before))
    return bytes(data)


class _Retry:
    """How long to wait before the next try, and when to give up."""

    def __init__(self, remote: RemoteFile) -> None:
        self._remote, self._tries = remote, 0

    def after(self, error: Exception | None, n_bytes: int) -> float:
        """Seconds to wait after a try that brought `n_bytes` and ended early or with `error`.

        Raises:
            HubError: enough was tried.
        """
        self._tries = 0 if n_bytes >= _PROGRESS else self._tries + 1
        if self._tries >= _TRIES:
            url = self._remote.url.split("?")[0]
            if isinstance(error, _TryAgainError) and error.status:
                raise refused(error.status, self._remote.path, url)
            raise unreachable(url, error or HubError("the connection ended early"))
        backoff = 2.0**self._tries / 4
        return max(backoff, getattr(error, "seconds", None) or 0.0)


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
        self._active: dict[int, Segment] = {}  # by thread: what it wrote since it last recorded
        for started in range(n):
            try:
                threading.Thread(target=self._work, daemon=True).start()
            except RuntimeError as error:  # no more threads allowed
                with self._lock:
                    self._left -= n - started
                    if not started:
                        raise HubError(f"no thread can be started: {error}") from error
                    if not self._left:
                        self.idle.set()
                break

    def finish(self, seconds: float) -> None:
        """Stop, wait for the threads, and record for those that hang in a silent connection."""
        self.stop.set()
        if not self.idle.wait(seconds):
            for sink, start, end in list(self._active.values()):
                sink.record(start, end)

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

        at, retry, me = start, _Retry(sink.remote), threading.get_ident()
        try:
            while at < end and not self.stop.is_set():
                before, error = at, None
                try:
                    for data in _stream(self.client, sink.remote, at, end):
                        sink.write(at, data)
                        at += len(data)
                        self._active[me] = (sink, start, at)
                        with self._lock:
                            self.arrived += len(data)
                        if self.stop.is_set():
                            return
                except (httpx.RequestError, _TryAgainError) as caught:
                    error = caught
                if at < end:
                    self.stop.wait(retry.after(error, at - before))
        finally:
            if at > start:
                sink.record(start, at)
            self._active.pop(me, None)


class _TryAgainError(Exception):
    """The server is busy or confused; `seconds` is how long it wants us to wait, when it says."""

    def __init__(self, what: str, *, status: int = 0, seconds: float | None = None) -> None:
        super().__init__(what)
        self.status, self.seconds = status, seconds


def _stream(client: Any, remote: RemoteFile, start: int, end: int) -> Iterator[bytes]:
    """The bytes from `start` to `end`; a server that knows no ranges sends all, and we skip."""
    headers = {"Range": f"bytes={start}-{end - 1}"}
    with client.stream("GET", remote.url, headers=headers) as response:
        _check_status(response, remote, start)
        skip, left = (start if response.status_code == 200 else 0), end - start
        for data in response.iter_raw():  # as it comes: what is held back is lost with the line
            if skip >= len(data):
                skip -= len(data)
                continue
            data = data[skip : skip + left]
            skip, left = 0, left - len(data)
            yield data
            if not left:
                return


def _check_status(response: Any, remote: RemoteFile, start: int) -> None:
    status, headers = response.status_code, response.headers
    # A link that a redirect led to may have run out; the next try gets a fresh one.
    is_stale = status in (401, 403) and bool(response.history)
    if status >= 500 or status in (408, 425, 429) or is_stale:
        said = headers.get("Retry-After", "")
        if not said.isdecimal() and (match := _RESET.search(headers.get("RateLimit", ""))):
            said = match[1]
        seconds = min(float(said), _LONGEST_WAIT) if said.isdecimal() else None
        raise _TryAgainError(f"HTTP {status}", status=status, seconds=seconds)
    if status not in (200, 206):
        origin = f"{response.url.scheme}://{response.url.host}"
        raise refused(status, remote.path, origin)
    if "html" in headers.get("Content-Type", "") and not remote.path.endswith(".html"):
        raise HubError(f"{response.url.host} answers with a web page; is there a login before it?")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise _TryAgainError(f"an answer in {headers['Content-Encoding']}")
    span, _, total = headers.get("Content-Range", "").rpartition("/")
    if status == 206 and span.removeprefix("bytes ").partition("-")[0] != str(start):
        raise _TryAgainError(f"another range than asked for: {span!r}")
    if status == 200:
        total = headers.get("Content-Length", "")
    if total.isdecimal() and int(total) != remote.size:
        raise ChecksumError(
            f"{remote.url.split('?')[0]} has {int(total):,} bytes and the hub announced "
            f"{remote.size:,}; try again later, or another mirror"
        )
