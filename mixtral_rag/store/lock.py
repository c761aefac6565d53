"""The right to write to a store, held by one process at a time, which says who it is."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from mixtral_rag.errors import LockedError, StoreError

_PATIENCE = 0.5  # seconds


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the right to write to the store in `folder`; a process that dies gives it back.

    Raises:
        LockedError: another process holds it; the text says which.
        StoreError: the folder cannot be written, such as on a full disk.
    """
    from filelock import FileLock, Timeout

    holder = folder / "writer.json"
    lock = FileLock(folder / "writer.lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise LockedError(f"the store {folder} is being written {_who(holder)}") from None
    except OSError as error:
        raise StoreError(
            f"cannot lock the store {folder} for writing: {error.strerror or error}"
        ) from error
    try:
        with contextlib.suppress(OSError):  # only tells others who is writing
            me = {"pid": os.getpid(), "host": platform.node(), "since": time.time()}
            holder.write_text(json.dumps(me))
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    try:
        told = json.loads(holder.read_text())
        since = time.strftime("%H:%M:%S", time.localtime(told["since"]))
        where = "" if told["host"] == platform.node() else f" on {told['host']}"
        return f"by process {told['pid']}{where} since {since}; wait until it has finished"
    except (OSError, ValueError, KeyError, TypeError):
        return "by another process; wait until it has finished"
