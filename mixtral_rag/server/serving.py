"""Running the application until it is told to stop, and then stopping in good order."""

import asyncio
import contextlib
import logging
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mixtral_rag.server.options import ServerOptions
from mixtral_rag.server.service import Service

_log = logging.getLogger("mixtral_rag.server")
_MOST_CONNECTIONS = 1000
_LINGER = 0.5  # seconds in which `/readyz` can be seen to say that it stops


class Server(uvicorn.Server):
    """Uvicorn that lets running answers finish.

    After the first signal `/readyz` answers 503, new questions are refused, and those that run have
    `stop_seconds`; then the server ends with exit code 0. A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; see the class."""
        if self._draining is not None or not self.started:
            self.should_exit = self.force_exit = True
            return
        self._service.is_stopping = self._service.gate.is_closed = True
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        gate, loop = self._service.gate, asyncio.get_running_loop()
        until = loop.time() + self._service.options.stop_seconds
        await asyncio.sleep(_LINGER)
        while gate.running + gate.waiting and loop.time() < until:
            await asyncio.sleep(0.05)
        self.should_exit = True


def serve(app: FastAPI) -> None:
    """Serve until a signal comes."""
    service: Service = app.state.service
    Server(config_of(app, service.options), service).run()


def config_of(app: FastAPI, options: ServerOptions) -> uvicorn.Config:
    """How Uvicorn runs the application; it logs no addresses, which hold names of documents."""
    return uvicorn.Config(
        app, host=options.host, port=options.port, log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=5, timeout_keep_alive=30,
        http="h11", h11_max_incomplete_event_size=65_536, limit_concurrency=_MOST_CONNECTIONS,
        proxy_headers=False, ws="none",
    )  # fmt: skip
