"""Archives (ZIP, TAR): every document inside, under its path in the archive."""

import bz2
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from mixtral_rag.errors import DocumentError, UnreadableError
from mixtral_rag.ingest.readers import Parsed, ReadOptions, zips
from mixtral_rag.ingest.readers.formats import suffix_of
from mixtral_rag.ingest.readers.inside import Inside, collecting, decoded_name, safe_name

_OPENERS: dict[str, Callable[[Path], Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
_ENDS = {".tgz": "gz", ".tbz2": "bz2", ".txz": "xz"}
_MOST_LEFT = 100  # names told of what was left out
_DAMAGE = (*zips.DAMAGE, tarfile.TarError, lzma.LZMAError)


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read the documents of an archive; what cannot be read is told in `problems`."""
    with collecting(options) as inside:
        if suffix_of(path) == ".zip":
            with zips.opened(path) as archive:
                _zip(archive, inside)
        else:
            _tar(path, inside)
        if not inside.blocks and inside.problems:
            raise UnreadableError(f"{path}: {'; '.join(inside.problems[:5])}")
        return Parsed("", inside.blocks, problems=inside.problems)


def _zip(archive: zipfile.ZipFile, inside: Inside) -> None:
    members = archive.infolist()
    for at, info in enumerate(members, start=1):
        shown = _zip_name(info)
        name = safe_name(shown)
        if name is None:
            inside.problems.append(f"{shown} leads out of the archive")
        elif info.is_dir() or not inside.wants(name):
            continue
        elif info.external_attr >> 28 == 0o12:
            inside.problems.append(f"{name} is a link, which is not followed")
        else:
            try:
                with zips.member(archive, info) as file:
                    inside.take(name, file)
            except DocumentError as error:
                inside.problems.append(
                    str(error).replace(str(archive.filename), name).replace(info.filename, name)
                )
        if inside.is_full:
            inside.problems += _left_out(members[at:], inside)
            return


def _left_out(members: list[zipfile.ZipInfo], inside: Inside) -> Iterator[str]:
    """A line for each document among the members, at most `_MOST_LEFT`."""
    names = filter(None, (safe_name(_zip_name(info)) for info in members if not info.is_dir()))
    wanted = [name for name in names if inside.wants(name)]
    yield from (f"{name} was left out" for name in wanted[:_MOST_LEFT])
    if len(wanted) > _MOST_LEFT:
        yield f"{len(wanted) - _MOST_LEFT:,} more files were left out"


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name, which may be in another encoding than its flag says."""
    if info.flag_bits & 0x800:
        return info.filename
    extra = info.extra
    while len(extra) >= 4:  # an extra field may hold it in UTF-8
        kind, size = struct.unpack("<HH", extra[:4])
        if kind == 0x7075 and 5 < size <= len(extra) - 4:
            raw = info.orig_filename.encode("cp437", "replace")
            if zlib.crc32(raw) == struct.unpack("<I", extra[5:9])[0]:
                return extra[9 : 4 + size].decode("utf-8", "replace")
        extra = extra[4 + size :]
    try:
        return decoded_name(info.orig_filename.encode("cp437"), info.filename)
    except UnicodeEncodeError:
        return info.filename


class _Bounded:
    """A file that ends with an error where it has given more than `limit` bytes."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._left = file, limit

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise _TooLargeError
        return data


class _TooLargeError(Exception):
    """An archive grew beyond its limit."""


def _tar(path: Path, inside: Inside) -> None:
    end = suffix_of(path)
    kind = _ENDS.get(end, end.rsplit(".", 1)[-1])
    try:
        if kind not in _OPENERS:
            with tarfile.open(path, "r:") as archive:
                return _members(archive, inside)
        limit = zips.may_grow(path.stat().st_size)
        with _OPENERS[kind](path) as file:
            bounded = cast(IO[bytes], _Bounded(file, limit))
            with tarfile.open(fileobj=bounded, mode="r|") as archive:
                _members(archive, inside)
    except _TooLargeError:
        inside.stop("it grows too much when unpacked and may be a trap")
    except _DAMAGE as error:
        if not inside.blocks:
            raise UnreadableError(f"{path} is damaged: {error}") from error
        inside.stop(f"it is damaged: {error}")


def _members(archive: tarfile.TarFile, inside: Inside) -> None:
    for count, info in enumerate(archive):
        raw = info.name.encode("utf-8", "surrogateescape")
        shown = decoded_name(raw, raw.decode("utf-8", "replace"))
        name = safe_name(shown)
        if name is None:
            inside.problems.append(f"{shown} leads out of the archive")
        elif (info.issym() or info.islnk()) and inside.wants(name):
            inside.problems.append(f"{name} is a link, which is not followed")
        elif info.isdev():
            inside.problems.append(f"{name} is a device, not a document")
        elif info.isfile() and inside.wants(name):
            file = archive.extractfile(info)
            if file is not None:
                inside.take(name, file)
        if count >= zips.MOST_MEMBERS:
            inside.stop(f"more than {zips.MOST_MEMBERS:,} files")
        if inside.is_full:
            return
