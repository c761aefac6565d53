"""ZIP files opened within limits: archives, and the formats that are ZIP files inside."""

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from mixtral_rag.errors import EncryptedError, UnreadableError

MOST_MEMBERS = 10_000
MOST_BYTES = 2 << 30  # of all members together
MOST_RATIO = 200  # of bytes to compressed bytes, for what grows beyond `_SMALL`
_SMALL = 32 << 20
CHUNK = 4096  # bytes to read of a member at once; as many of bzip2 may grow to 80 MiB
_MOST_PART = 128 << 20  # bytes of a part that is read whole
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, ValueError)
"""What reading a damaged ZIP file may raise, besides OSError."""


def may_grow(size: int) -> int:
    """Bytes that a compressed file of `size` bytes may grow to."""
    return min(MOST_BYTES, max(_SMALL, MOST_RATIO * size))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A ZIP file whose members, by what it says of them, stay within the limits.

    What a member says of itself holds: no more of it is ever inflated.

    Raises:
        UnreadableError: damaged, or it would grow too large.
    """
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise UnreadableError(f"{path} is damaged: {error}") from error
    with archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if len(members) > MOST_MEMBERS:
            raise UnreadableError(f"{path} holds more than {MOST_MEMBERS:,} files")
        if total > may_grow(path.stat().st_size):
            raise UnreadableError(
                f"{path} would grow to {total >> 20:,} MiB when unpacked; it may be a trap"
            )
        yield archive


def part(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member read whole.

    Raises:
        UnreadableError: too large or damaged.
        EncryptedError: it needs a password.
        KeyError: there is no such member.
    """
    info = archive.getinfo(name)
    if info.file_size > _MOST_PART:
        raise UnreadableError(f"{archive.filename}: {name} has {info.file_size >> 20:,} MiB, "
                              f"more than {_MOST_PART >> 20}")  # fmt: skip
    with member(archive, info) as file:
        try:
            return b"".join(iter(partial(file.read, CHUNK), b""))
        except DAMAGE as error:
            raise UnreadableError(f"{archive.filename} is damaged at {name}: {error}") from error


def member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """A member opened for reading.

    Raises:
        UnreadableError: damaged, or compressed in an unknown way.
        EncryptedError: it needs a password.
    """
    if info.flag_bits & 1:
        raise EncryptedError(f"{archive.filename} needs a password; save a copy without one")
    name = info.filename
    if info.header_offset + info.compress_size > archive.start_dir:
        raise UnreadableError(f"{archive.filename} is damaged at {name}: it ends too soon")
    try:
        return archive.open(info)
    except DAMAGE as error:
        raise UnreadableError(f"{archive.filename} is damaged at {name}: {error}") from error
