"""Files that come over the network: where they lie, under which names, and their writing."""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path, PurePath

from mixtral_rag.errors import StoreError
from mixtral_rag.ingest.readers.formats import KNOWN, is_wanted_file
from mixtral_rag.server.failures import RefusedError
from mixtral_rag.store.documents import make_folder
from mixtral_rag.store.ledger import Document

FOLDER = "uploads"
_LONGEST = 180  # bytes of a name
_WRITTEN = 1 << 20  # bytes written at a time


def safe_name(name: str) -> str:
    """The last part of a path that a file of this name may have: nothing in it leads anywhere.

    Raises:
        RefusedError: no reader takes such a file.
    """
    name = unicodedata.normalize("NFC", name).strip()
    shown = "".join("_" if c in '/\\:*?"<>|' or not c.isprintable() else c for c in name)
    shown = shown.lstrip(".~ ").rstrip(". ")
    end = PurePath(shown).suffix
    stem = shown[: len(shown) - len(end)].encode("utf-8", "replace")[: _LONGEST - len(end.encode())]
    safe = stem.decode("utf-8", "ignore") + end
    if not stem or not is_wanted_file(safe):
        raise RefusedError(
            f"{shown[:80]!r} is of no format that is read here; known are {KNOWN}", status=415,
            code="unsupported_type",
        )  # fmt: skip
    return safe


def place_of(folder: Path, name: str) -> Path:
    """Where the upload of this name lies: in a folder named by a hash, one for each name."""
    safe = safe_name(name)
    digest = hashlib.sha256(safe.encode()).hexdigest()[:32]
    return folder / FOLDER / digest / safe


async def receive(folder: Path, name: str, body: AsyncIterator[bytes]) -> Path:
    """Write what comes to the place of `name`; an earlier file of that name is there until then.

    Raises:
        RefusedError: nothing came, or no reader takes such a file.
        StoreError: it cannot be written, such as on a full disk.
    """
    place = place_of(folder, name)
    part = folder / FOLDER / f"{secrets.token_hex(8)}.part"
    n_bytes, held = 0, list[bytes]()
    try:
        make_folder(folder)
        part.parent.mkdir(exist_ok=True, mode=0o700)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            async for piece in body:
                held.append(piece)
                n_bytes += len(piece)
                if sum(map(len, held)) >= _WRITTEN:
                    await asyncio.to_thread(file.writelines, held)
                    held = []
            await asyncio.to_thread(file.writelines, held)
        if not n_bytes:
            raise RefusedError("the file is empty")
        place.parent.mkdir(exist_ok=True, mode=0o700)
        part.replace(place)
    except FileNotFoundError:
        raise RefusedError("the collection was deleted meanwhile", status=409) from None
    except OSError as error:
        raise StoreError(f"the upload cannot be kept: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return place


def is_upload(folder: Path, path: Path) -> bool:
    """Whether a document came over the network; only those files are ours to delete."""
    return path.parent.parent == folder / FOLDER


def delete(folder: Path, document: Document) -> None:
    """Delete the file of an upload; one that has taken its place since then stays."""
    path, failure = document.path, document.failure
    known = {document.mtime_ns, failure.mtime_ns if failure else 0}
    with contextlib.suppress(OSError):
        if is_upload(folder, path) and path.stat().st_mtime_ns in known:
            shutil.rmtree(path.parent)


def discard(folder: Path, path: Path) -> None:
    """Delete the file of an upload that no document was made of."""
    if is_upload(folder, path):
        shutil.rmtree(path.parent, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what uploads that were cut off have left; when the server starts."""
    for part in (folder / FOLDER).glob("*.part"):
        with contextlib.suppress(OSError):
            part.unlink()
