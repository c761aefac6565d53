"""What whoever starts the server decides."""

import ipaddress
import socket
from dataclasses import dataclass

from mixtral_rag.errors import SettingsError

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server listens and what it bounds.

    Args:
        host: address to listen on; any but one of this machine itself needs an API key.
        port: TCP port; 0 takes a free one.
        allowed_hosts: names in the `Host` header that are served, beside `localhost`, this
            machine's name and plain addresses; a foreign name is how DNS rebinding shows.
        cors_origins: pages of other hosts that may call, such as `https://chat.example.com`.
        without_key: serve other machines without a key.
        preload: load the model at once and not with the first question.
        most_waiting: requests that wait for the model at most; more are refused with 503.
        most_waiting_each: of one client; more are refused with 429.
        wait_seconds: longest wait for the model.
        answer_seconds: longest time an answer may take.
        stop_seconds: how long running answers may go on when the server is stopped.
        upload_bytes: largest file.
        body_bytes: largest body of any other request.
        most_answers: largest `n`.
        most_messages: most turns of a conversation.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    without_key: bool = False
    preload: bool = True
    most_waiting: int = 64
    most_waiting_each: int = 32
    wait_seconds: float = 300.0
    answer_seconds: float = 1800.0
    stop_seconds: float = 30.0
    upload_bytes: int = 512 * _MIB
    body_bytes: int = 8 * _MIB
    most_answers: int = 8
    most_messages: int = 2000

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0 <= self.port <= 65_535:
            raise SettingsError(f"port is {self.port}; it must be from 0 to 65535")
        for name in ("most_waiting", "most_waiting_each", "upload_bytes", "body_bytes",
                     "most_answers", "most_messages"):  # fmt: skip
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if "*" in self.cors_origins:
            raise SettingsError("cors_origins must name pages; * would let any page read answers")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check_key(self, *, has_key: bool) -> None:
        """Refuse to serve other machines without a key, unless that is asked for.

        Raises:
            SettingsError: it is not.
        """
        if not (self.is_local or has_key or self.without_key):
            raise SettingsError(
                f"--host {self.host} lets other machines connect, and there is no API key; make "
                "one first: mixtral-rag keys add NAME (or --without-key, for a network you trust)"
            )

    def serves(self, host: str) -> bool:
        """Whether a `Host` header, without its port, is one of ours."""
        name = host.strip("[]").rstrip(".").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            own = {"localhost", socket.gethostname().lower()}
            return name in own | {h.lower() for h in self.allowed_hosts}
        return True
