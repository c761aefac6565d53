"""The application: routes, guard, and what happens at start and stop."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixtral_rag import __version__
from mixtral_rag.engines import Cancellation
from mixtral_rag.errors import MixtralRagError
from mixtral_rag.server import chat, completions, documents, failures, pages, uploads
from mixtral_rag.server.jobs import Jobs, line_for
from mixtral_rag.server.keys import Keys
from mixtral_rag.server.options import ServerOptions
from mixtral_rag.server.security import Guard, Sessions
from mixtral_rag.server.service import MAIN, Service
from mixtral_rag.settings import Settings
from mixtral_rag.threads import in_thread

_log = logging.getLogger("mixtral_rag.server")


def create_app(settings: Settings, options: ServerOptions, keys: Keys) -> FastAPI:
    """The server as an ASGI application.

    Args:
        settings: model, documents and defaults, as of the command line.
        options: what the server allows.
        keys: API keys; without any every request is served.

    Raises:
        SettingsError: an option is wrong, or other machines could connect without a key.
        ModelNotFoundError: the model that is named does not exist.
    """
    options.check_key(has_key=bool(keys.all()))
    # As documents are named in the ledger.
    settings = replace(settings, store=Path(os.path.abspath(settings.store)))
    app = FastAPI(
        title="mixtral_rag", version=__version__, lifespan=_lifespan,
        docs_url=None, redoc_url=None, openapi_url="/openapi.json",
    )  # fmt: skip
    app.state.service = service = Service(settings, options)
    app.state.keys, app.state.sessions = keys, Sessions()
    line = line_for(settings.store, settings.embedder, settings.ocr_languages, MAIN)
    app.state.jobs = Jobs(line, service.tidy)
    for part in (chat, completions, documents, pages):
        app.include_router(part.router)
    failures.install(app)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=options.cors_origins, allow_methods=["*"],
            allow_headers=["*"],
        )  # fmt: skip
    limit = partial(
        documents.limit_of, upload_bytes=options.upload_bytes, body_bytes=options.body_bytes
    )
    app.add_middleware(Guard, options=options, keys=keys, sessions=app.state.sessions, limit=limit)
    app.add_middleware(_Noted, service=service)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    for name in service.collections():
        uploads.sweep(service.folder(name))
    service.is_ready = not (service.options.preload and service.has_model)
    loading = None if service.is_ready else asyncio.create_task(_load(service))
    try:
        yield
    finally:
        service.is_stopping = True
        if loading is not None:
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading
        await app.state.jobs.close()
        await asyncio.to_thread(service.close)


async def _load(service: Service) -> None:
    def work(cancel: Cancellation) -> Iterator[None]:
        service.load(cancel)
        yield

    try:
        # A thread that the process need not wait for: reading the weights cannot be stopped.
        async with aclosing(in_thread(work)) as loading:  # type: ignore[type-var]
            async for _ in loading:
                pass
    except MixtralRagError as error:
        _log.error("the model cannot be loaded: %s", error)
    except Exception as error:  # noqa: BLE001 - logged by place
        failures.unexpected(error)


class _Noted:
    """Counts every request and logs it: method, route and status; never its words."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:  # noqa: BLE001 - logged by place; others would log its text
            answer = failures.unexpected(error)
            if not status:
                await answer(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "-")  # the pattern: names stay out of it
            self._service.metrics.requests.labels(route, str(status or 500)).inc()
            if status in (0, failures.CLIENT_GONE):
                self._service.metrics.left.inc()
            milliseconds = 1000 * (time.perf_counter() - started)
            _log.info("%s %s %s %.0f ms", scope["method"], route, status or "-", milliseconds)
