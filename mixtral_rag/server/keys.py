"""API keys: made here, shown once, and kept only as hashes."""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from mixtral_rag.errors import SettingsError

_PREFIX = "mrag-"
_LEAST = 16  # characters of a key that a person chose


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key: SHA-256 of 256 random bits cannot be turned back."""

    name: str
    sha256: str
    made_at: float


class Keys:
    """The keys in a file that only its user may read; the file is read again when it changes.

    Args:
        path: the file; it need not exist.
        extra: one more key, such as of an environment variable; only its hash is held.
    """

    def __init__(self, path: Path, *, extra: str | None = None) -> None:
        self._path = path
        if extra is not None and len(extra) < _LEAST:
            raise SettingsError(f"an API key must have at least {_LEAST} characters")
        self._extra = [Key("environment", _hash(extra), 0.0)] if extra else []
        self._read_at: tuple[int, int] | None = None
        self._held: list[Key] = []

    def all(self) -> list[Key]:
        """Every key.

        Raises:
            SettingsError: the file is damaged.
        """
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return list(self._extra)
        if self._read_at != (stat.st_mtime_ns, stat.st_size):
            try:
                rows = json.loads(self._path.read_text("utf-8"))
                self._held = [Key(**row) for row in rows]
            except (ValueError, TypeError, OSError) as error:
                raise SettingsError(f"{self._path} is not a list of keys: {error}") from error
            self._read_at = (stat.st_mtime_ns, stat.st_size)
        return [*self._held, *self._extra]

    def find(self, key: str) -> Key | None:
        """What is kept of a key that is right; every one is compared, in constant time."""
        given, found = _hash(key), None
        for known in self.all():
            if hmac.compare_digest(given, known.sha256):
                found = known
        return found

    def add(self, name: str) -> str:
        """Make a key and return it; it cannot be had again.

        Raises:
            SettingsError: there is one of that name.
        """
        if any(known.name == name for known in self.all()):
            raise SettingsError(
                f"there is a key named {name!r}; remove it first, or choose another"
            )
        key = _PREFIX + secrets.token_urlsafe(32)
        self._write([*self._held, Key(name, _hash(key), time.time())])
        return key

    def remove(self, name: str) -> None:
        """Forget a key; servers that run refuse it from then on.

        Raises:
            SettingsError: there is none of that name.
        """
        self.all()
        left = [known for known in self._held if known.name != name]
        if len(left) == len(self._held):
            raise SettingsError(f"there is no key named {name!r}; see: mixtral-rag keys list")
        self._write(left)

    def _write(self, keys: list[Key]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        rows = [{"name": k.name, "sha256": k.sha256, "made_at": k.made_at} for k in keys]
        part = self._path.with_suffix(f".{os.getpid()}.part")
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(rows, file, indent=1)
        part.replace(self._path)
        self._held, self._read_at = keys, None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
