"""HTTP to a model server: retries, server-sent events, and errors in our own words."""

import asyncio
import ipaddress
import json
import os
import random
import re
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mixtral_rag.engines.remote_errors import (
    Failure,
    broken_off,
    failed,
    refused,
    shown,
    unreachable,
)
from mixtral_rag.errors import (
    ContextError,
    GenerationError,
    MixtralRagError,
    ServerError,
    SettingsError,
)

if TYPE_CHECKING:
    import httpx

_EXAMPLE = "such as http://127.0.0.1:8000/v1"
_CONNECT, _LONGEST_PAUSE, _LONGEST_ASKED = 10.0, 8.0, 60.0  # seconds
_GLANCE = 5.0  # seconds for a question that need not be answered
_LONGEST_LINE, _LONGEST_ERROR = 16 << 20, 64 << 10  # bytes
_KEY = re.compile(r"[\x21-\x7e]+")

Read = Callable[["httpx.Response"], AsyncGenerator[dict[str, Any], None]]


class Connection:
    """One server and the connections to it, for coroutines of one event loop.

    Args:
        base_url: address of the server, with or without `/v1`.
        api_key: sent as a bearer token, to this server only.
        timeout: most seconds to wait for the next bytes, None to wait on.
        max_retries: how often to try again before anything was answered.

    Raises:
        SettingsError: an argument is missing or wrong.
    """

    def __init__(
        self, base_url: str | None, api_key: str | None, timeout: float | None, max_retries: int
    ) -> None:
        self.root = _root(base_url)
        if api_key and not _KEY.fullmatch(api_key):  # httpx would show it in its error
            raise SettingsError("api_key has white space or other characters that no key has")
        if timeout is not None and not timeout > 0:
            raise SettingsError(f"timeout is {timeout}; it must be above 0, or None")
        if max_retries < 0:
            raise SettingsError(f"max_retries is {max_retries}; it must be 0 or more")
        self._key, self._timeout, self._max_retries = api_key, timeout, max_retries
        self._process = 0
        self._httpx: httpx.AsyncClient | None = None

    async def look(self, path: str) -> Any:
        """The JSON at `path` below the server's root; None when there is none, or no answer."""
        try:
            async with asyncio.timeout(_GLANCE), self._sent("GET", path, None) as response:
                return json.loads(await response.aread())
        except (Failure, TimeoutError, ValueError):
            return None

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON object that is answered.

        Raises:
            Failure: the server cannot be reached or refuses.
        """
        async with aclosing(self._answers(method, path, body, self._whole)) as answers:
            async for answer in answers:
                return answer
        return {}

    async def events(self, path: str, body: Any) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects that are streamed in answer to `body`.

        Raises:
            Failure: the server cannot be reached or refuses, the stream broke off, or it holds an
                error.
        """
        async with aclosing(self._answers("POST", path, body, self._streamed)) as answers:
            async for answer in answers:
                yield answer

    async def _answers(
        self, method: str, path: str, body: Any, read: Read
    ) -> AsyncGenerator[dict[str, Any], None]:
        attempt, begun = 0, False
        while True:
            try:
                async with (
                    self._sent(method, path, body) as response,
                    aclosing(read(response)) as answers,
                ):
                    async for answer in answers:
                        begun = True
                        yield answer
                return
            except Failure as failure:
                if begun:
                    failure.error = broken_off(failure.error)
                failure.error = self._without_key(failure.error)
                if begun or not failure.again or attempt >= self._max_retries:
                    raise
                pause = min(0.5 * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.75, 1)  # noqa: S311
                asked = failure.pause or 0.0
            attempt += 1
            await asyncio.sleep(max(pause, min(asked, _LONGEST_ASKED)))

    @asynccontextmanager
    async def _sent(self, method: str, path: str, body: Any) -> "AsyncIterator[httpx.Response]":
        """The response to a request, once its status is good.

        Raises:
            Failure: it is not, or the connection fails before the block ends.
        """
        import httpx

        content = None if body is None else json.dumps(body).encode()
        url = self.root + path
        try:
            async with self._client().stream(method, url, content=content) as response:
                if response.status_code != 200:
                    raise refused(response, await _beginning(response), url)
                if "text/html" in response.headers.get("content-type", ""):
                    raise Failure(
                        ServerError(
                            f"{url} answers with a web page; give the address of the API as "
                            f"base_url, {_EXAMPLE}"
                        )
                    )
                yield response
        except httpx.HTTPError as error:
            raise unreachable(error, self.root, self._timeout) from error

    def _client(self) -> "httpx.AsyncClient":
        import httpx

        if self._httpx is None or self._process != os.getpid():
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            connect = _CONNECT if self._timeout is None else min(_CONNECT, self._timeout)
            client = self._httpx = httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(self._timeout, connect=connect, pool=None),
                limits=httpx.Limits(max_keepalive_connections=32, keepalive_expiry=30),
                follow_redirects=False,  # another host must not get key or documents
                mounts={f"all://{host}": None for host in _no_proxy(self.root)},
            )
            self._process = os.getpid()
            loop = asyncio.get_running_loop()
            weakref.finalize(self, _close, client, loop, os.getpid()).atexit = False
        return self._httpx

    async def _whole(self, response: "httpx.Response") -> AsyncGenerator[dict[str, Any], None]:
        yield _object(await response.aread(), self.root)

    async def _streamed(self, response: "httpx.Response") -> AsyncGenerator[dict[str, Any], None]:
        """Server-sent events; lines end only where the format says, unlike Python's."""
        if "application/json" in response.headers.get("content-type", ""):
            yield _object(await response.aread(), self.root)  # a server that does not stream
            return
        held, n = b"", 0
        async for data in response.aiter_bytes():
            *lines, held = (held + data).split(b"\n")
            if len(held) > _LONGEST_LINE:
                raise Failure(GenerationError(f"{self.root} sends a line without end"))
            for line in lines:
                kind, _, value = line.strip().partition(b":")
                if kind == b"data" and value.strip() == b"[DONE]":
                    return
                if kind in (b"data", b"error") and value.strip():
                    n += 1
                    yield _event(value, self.root, is_error=kind == b"error")
        if n == 0:
            raise Failure(GenerationError(f"{self.root} gave no answer"), is_silent=True)

    def _without_key(self, error: MixtralRagError) -> MixtralRagError:
        """Servers may repeat the key in their messages."""
        if self._key and self._key in str(error) and not isinstance(error, ContextError):
            return type(error)(str(error).replace(self._key, "***"))
        return error


def _root(base_url: str | None) -> str:
    """The address without `/v1` and without anything secret."""
    if not base_url:
        raise SettingsError(f"the engine remote needs base_url, a server's address, {_EXAMPLE}")
    try:
        parts = urlsplit(base_url.strip())
        named = parts.hostname is not None and parts.port != 0
    except ValueError:
        parts, named = urlsplit(""), False
    if parts.scheme not in ("http", "https") or not named:
        raise SettingsError(f"base_url is no http or https address; give one {_EXAMPLE}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise SettingsError(
            "base_url holds a user, a query or a fragment; give the address alone, and the key as "
            "api_key"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def _no_proxy(root: str) -> list[str]:
    """The host, if it is this machine: no proxy knows the way to it."""
    host = urlsplit(root).hostname or ""
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    return [f"[{host}]" if ":" in host else host] if is_here else []


def _close(client: "httpx.AsyncClient", loop: asyncio.AbstractEventLoop, process: int) -> None:
    if process == os.getpid() and loop.is_running():
        asyncio.run_coroutine_threadsafe(client.aclose(), loop)


async def _beginning(response: "httpx.Response") -> str:
    """Enough of the body to find an error message in it."""
    data = b""
    async for part in response.aiter_bytes():
        data += part
        if len(data) > _LONGEST_ERROR:
            break
    return data.decode("utf-8", "replace")


def _object(data: bytes, root: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Failure(GenerationError(f"{root} answers with what is no JSON object: {shown(data)}"))
    return value


def _event(data: bytes, root: str, *, is_error: bool) -> dict[str, Any]:
    """One event; an error in the place of an answer is raised."""
    event = _object(data, root)
    if is_error or event.get("error") or event.get("object") == "error":
        raise failed(event)
    return event
