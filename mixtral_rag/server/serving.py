"""Running the application until it is told to stop, and then stopping in good order."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mixtral_rag.errors import SettingsError
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


def listen(options: ServerOptions) -> list[socket.socket]:
    """Sockets at the address, taken before anything is loaded.

    Raises:
        SettingsError: it is another program's, or none of this machine's.
    """
    host, port = options.host, options.port
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        places = list(dict.fromkeys((family, place) for family, _, _, _, place in found))
        for number, (family, place) in enumerate(places):
            try:
                sockets.append(socket.create_server(place, family=family))
            except OSError as error:  # `localhost` may name ::1 on a machine without IPv6
                is_last = number == len(places) - 1 and not sockets
                if error.errno != errno.EADDRNOTAVAIL or is_last:
                    raise
    except OSError as error:
        for one in sockets:
            one.close()
        reason = str(error.strerror or error).split(" (while ")[0]  # Python adds the address
        message = f"cannot listen on port {port} of {host}: {reason}; choose another with --port"
        raise SettingsError(f"{message} or --host") from error
    return sockets


def serve(app: FastAPI, sockets: Sequence[socket.socket] | None = None) -> None:
    """Serve until a signal comes, at the address of the options unless sockets are given."""
    service: Service = app.state.service
    Server(config_of(app, service.options), service).run(list(sockets) if sockets else None)


def config_of(app: FastAPI, options: ServerOptions) -> uvicorn.Config:
    """How Uvicorn runs the application; it logs no addresses, which hold names of documents."""
    return uvicorn.Config(
        app, host=options.host, port=options.port, log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=5, timeout_keep_alive=30,
        http="h11", h11_max_incomplete_event_size=65_536, limit_concurrency=_MOST_CONNECTIONS,
        proxy_headers=False, ws="none",
    )  # fmt: skip
