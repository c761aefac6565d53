"""Makes an ingest fail at a step, from outside: the package has no hooks for it."""

import errno
import hashlib
import os
import shutil
import signal
import sqlite3
from types import SimpleNamespace

from child import DirectPool
from chromadb.api.models.Collection import Collection
from corpus import QuickEmbedder

from mixtral_rag.ingest import reading
from mixtral_rag.store import database, index_files
from mixtral_rag.store.embedded import Embedded
from mixtral_rag.store.index import Index
from mixtral_rag.store.ledger import Ledger


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _raising(kind, *arguments):
    def act():
        raise kind(*arguments)

    return act


_ALWAYS = {"no memory": _raising(MemoryError), "interrupt": _raising(KeyboardInterrupt)}
_OF_FILES = _ALWAYS | {
    "no space": _raising(OSError, errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "bad disk": _raising(OSError, errno.EIO, os.strerror(errno.EIO)),
}
_OF_THE_DATABASE = _ALWAYS | {
    "no space": _raising(sqlite3.OperationalError, "database or disk is full"),
    "bad disk": _raising(sqlite3.OperationalError, "disk I/O error"),
}
_PLACES = {
    "hash": (SimpleNamespace(file_digest=hashlib.file_digest), "file_digest"),
    "read": (DirectPool, "submit"),
    "split": (reading, "split"),
    "embed": (QuickEmbedder, "passages"),
    "keep vectors": (Embedded, "add"),
    "put": (Ledger, "put"),
    "remove": (Ledger, "remove"),
    "commit": None,
    "follow": (Index, "follow"),
    "upsert": (Collection, "upsert"),
    "delete": (Collection, "delete"),
    "flush files": (index_files, "_flush"),
    "sync": (os, "fsync"),
    "note": (Index, "_note"),
    "rebuild": (Index, "rebuild"),
    "count": (Collection, "count"),
    "remove folders": (shutil, "rmtree"),
}
REBUILDING = ("rebuild", "count", "remove folders")
"""Steps of making the index anew."""
STEPS = dict.fromkeys(_PLACES, _OF_FILES)
STEPS |= dict.fromkeys(("keep vectors", "put", "remove", "commit"), _OF_THE_DATABASE)
STEPS |= dict.fromkeys(("follow", "note", "rebuild"), _ALWAYS)
"""What can go wrong at each step: a function that raises it, by name."""


class Failpoint:
    """Calls `act` at the n-th time that a step is reached, before or after it is done."""

    def __init__(self, step, act, *, nth=1, after=False, patch=setattr):
        self.reached = False
        self._act, self._left, self._after, self._patch = act, nth, after, patch
        if step == "commit":
            self._arm_commit()
        else:
            owner, name = _PLACES[step]
            patch(owner, name, self._at(getattr(owner, name)))
            if step == "hash":
                patch(reading, "hashlib", owner)

    def _at(self, function):
        def wrapped(*arguments, **options):
            self._left -= 1
            is_now = self._left == 0
            if is_now and not self._after:
                self._fire()
            result = function(*arguments, **options)
            if is_now and self._after:
                self._fire()
            return result

        return wrapped

    def _fire(self):
        self.reached = True
        self._act()

    def _arm_commit(self):
        """Commits of SQLite are made by the connection, which cannot be patched."""
        at = self._at

        class Connection(sqlite3.Connection):
            def __exit__(self, *error):
                if error[0] is None and self.in_transaction:
                    return at(super().__exit__)(*error)
                return super().__exit__(*error)

        def connect(*arguments, **options):
            return sqlite3.connect(*arguments, factory=Connection, **options)

        names = {n: getattr(sqlite3, n) for n in dir(sqlite3) if not n.startswith("__")}
        self._patch(database, "sqlite3", SimpleNamespace(**names | {"connect": connect}))


def arm_kill(step, options):
    """For a child: be killed at a step."""
    Failpoint(step, kill, **options)
