"""The page for the browser, health, figures, and showing a key to get in."""

import asyncio
import functools
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response

from mixtral_rag import __version__
from mixtral_rag.server.failures import NotFoundError
from mixtral_rag.server.keys import Keys
from mixtral_rag.server.security import COOKIE, LoginPage, Sessions, cookie_of
from mixtral_rag.server.service import Service

router = APIRouter()
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css",
          "svg": "image/svg+xml"}  # fmt: skip


@functools.cache
def web_file(name: str) -> bytes:
    """A file of the page.

    Raises:
        NotFoundError: there is none of that name.
    """
    known = {f.name: f for f in files("mixtral_rag.server").joinpath("web").iterdir()}
    if name not in known:
        raise NotFoundError("there is no such file")
    return known[name].read_bytes()


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page."""
    return Response(web_file("index.html"), media_type="text/html")


@router.get("/web/{name}", include_in_schema=False)
async def part_of_page(name: str) -> Response:
    """Script, style and picture of the page."""
    kind = _TYPES.get(name.rpartition(".")[2])
    if kind is None:
        raise NotFoundError("there is no such file")
    return Response(web_file(name), media_type=kind, headers={"cache-control": "no-cache"})


@router.post("/login", include_in_schema=False)
async def login(request: Request) -> Response:
    """Take a key from the form and remember the browser by a cookie that scripts cannot read."""
    try:
        form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=8)
    except ValueError:  # more fields than the form has
        form = {}
    keys: Keys = request.app.state.keys
    sessions: Sessions = request.app.state.sessions
    key = keys.find(form.get("key", [""])[0].strip())
    if key is None:
        await asyncio.sleep(0.5)
        return LoginPage()
    done = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    done.set_cookie(COOKIE, sessions.begin(key), httponly=True, samesite="strict", secure=secure)
    return done


@router.post("/logout", include_in_schema=False)
async def logout(request: Request) -> Response:
    """Forget this browser."""
    sessions: Sessions = request.app.state.sessions
    sessions.end(cookie_of(request.headers))
    done = RedirectResponse("/", 303)
    done.delete_cookie(COOKIE)
    return done


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the server runs."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None)
async def readyz(request: Request) -> Response:
    """Whether it takes questions: 503 while the model loads, and once the server is stopping."""
    service: Service = request.app.state.service
    state = "stopping" if service.is_stopping else "ready" if service.is_ready else "loading"
    return PlainTextResponse(state, 200 if state == "ready" else 503)


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/api/info")
async def info(request: Request) -> dict[str, Any]:
    """What the page shows of the server."""
    service: Service = request.app.state.service
    return {
        "version": __version__,
        "model": service.name or None,
        "is_demo": service.is_demo,
        "is_ready": service.is_ready,
        "upload_bytes": service.options.upload_bytes,
        "has_key": bool(request.app.state.keys.all()),
    }
