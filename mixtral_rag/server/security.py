"""What every request passes before our code sees it; plain ASGI, so that streams stay whole."""

import hashlib
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixtral_rag.server.failures import body
from mixtral_rag.server.keys import Key, Keys
from mixtral_rag.server.options import ServerOptions

OPEN = frozenset({"/healthz", "/readyz"})
LOGIN, COOKIE = "/login", "mixtral_rag_session"
_SESSION_SECONDS = 12 * 3600
_MOST_SESSIONS = 1000
_POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' blob:",
        "connect-src 'self'", "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'",
    )
)  # fmt: skip
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class TooLargeError(HTTPException):
    """The body is larger than is taken; raised while it is read."""


class Sessions:
    """Browsers that gave a key; held in memory, by the hash of a random cookie.

    Each goes with its key: one that is removed opens nothing any more.
    """

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, Key]] = {}

    def begin(self, key: Key) -> str:
        """A cookie for a browser that showed a key."""
        now = time.monotonic()
        self._until = {k: v for k, v in self._until.items() if v[0] > now}
        while len(self._until) >= _MOST_SESSIONS:
            del self._until[next(iter(self._until))]
        cookie = secrets.token_urlsafe(32)
        self._until[_hash(cookie)] = (now + _SESSION_SECONDS, key)
        return cookie

    def key_of(self, cookie: str) -> Key | None:
        """The key a cookie stands for."""
        until, key = self._until.get(_hash(cookie), (0.0, None))
        return key if until > time.monotonic() else None

    def end(self, cookie: str) -> None:
        """Forget a cookie."""
        self._until.pop(_hash(cookie), None)


class Guard:
    """Checks host, origin, key and size of each request, and sets headers on each response.

    Args:
        app: what is guarded.
        options: what is allowed.
        keys: those that are right.
        sessions: browsers that showed one.
        limit: most bytes a request to this path may have.
    """

    def __init__(
        self,
        app: ASGIApp,
        options: ServerOptions,
        keys: Keys,
        sessions: Sessions,
        limit: Callable[[str, str], int],
    ) -> None:
        self._app, self._options, self._keys = app, options, keys
        self._sessions, self._limit = sessions, limit
        # A server that had a key never opens because its last one is removed.
        self._needs_key = bool(keys.all()) or not (options.is_local or options.without_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    own.setdefault(name, value)
                own["server"] = "mixtral-rag"
            await send(message)

        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, sealed)
            return
        limit = self._limit(scope["method"], scope["path"])
        if _length(headers) > limit:
            await _no(413, f"the body is larger than {limit:,} bytes")(scope, receive, sealed)
            return
        await self._app(scope, _counted(receive, limit), sealed)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._options.serves(_name(hosts[0])):
            return _no(
                421, "this name is not one of this server's; if it should be: --allowed-host NAME"
            )
        if (refused := self._foreign(scope, headers, hosts[0])) is not None:
            return refused
        return self._unknown(scope, headers)

    def _foreign(self, scope: Scope, headers: Headers, host: str) -> Response | None:
        """Whether a page of another host is behind it."""
        origin = headers.get("origin")
        if origin is None:
            strange = headers.get("sec-fetch-site") == "cross-site" and scope["path"] != "/"
            return _no(403, "pages of other hosts may not call this server") if strange else None
        own = {f"http://{host}".lower(), f"https://{host}".lower()}
        if origin.lower() in own or origin in self._options.cors_origins:
            return None
        return _no(403, "pages of other hosts may not call this server; see --cors-origin")

    def _unknown(self, scope: Scope, headers: Headers) -> Response | None:
        """Whether it lacks the key; notes the name of the one it has."""
        scope["key_name"] = ""
        keys = self._keys.all()
        if not (keys or self._needs_key) or scope["path"] in OPEN:
            return None
        if scope["path"] == LOGIN and scope["method"] == "POST":
            return None  # which checks the key itself
        if scope["method"] == "OPTIONS" and headers.get("origin") in self._options.cors_origins:
            return None  # a browser asks without the key whether it may ask
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        found = self._keys.find(given) if given else self._sessions.key_of(cookie_of(headers))
        if found is not None and found in keys:
            scope["key_name"] = found.name
            return None
        if scope["path"] == "/" and not given:
            return None if scope["method"] not in ("GET", "HEAD") else LoginPage()
        wrong = "this API key is not right" if given else "an API key is needed"
        return _no(401, wrong, {"www-authenticate": "Bearer"}, code="invalid_api_key")


class LoginPage(Response):
    """The form that asks for a key; its words follow the browser's language."""

    def __init__(self) -> None:
        from mixtral_rag.server.pages import web_file

        super().__init__(web_file("login.html"), 401, media_type="text/html")


def cookie_of(headers: Headers) -> str:
    """The session's cookie; empty without one."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")


def _no(
    status: int, text: str, headers: dict[str, str] | None = None, code: str | None = None
) -> Response:
    return JSONResponse(body(text, status, code=code), status, headers=headers)


def _name(host: str) -> str:
    """A `Host` header without its port."""
    if host.startswith("["):
        return host.partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _length(headers: Headers) -> int:
    given = headers.get("content-length", "0")
    return int(given) if given.isascii() and given.isdigit() else 0


def _counted(receive: Receive, limit: int) -> Receive:
    """`receive`, ending a body that goes beyond the limit, whatever its header said."""
    got = 0

    async def counting() -> Message:
        nonlocal got
        message = await receive()
        if message["type"] == "http.request":
            got += len(message.get("body", b""))
            if got > limit:
                raise TooLargeError(413, f"the body is larger than {limit:,} bytes")
        return message

    return counting


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()
