"""The files of a Chroma index: put on the disk, noted, and compared with what was noted.

Chroma's own database gets a row in its table `acquire_write` whenever a process opens it, so it
goes by the rows that matter. The files of the graph go by their bytes, but only once it was
written, with its metadata last: before that all is in the database, and every opening writes what
it likes there.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_DATABASE, _METADATA = "chroma.sqlite3", "index_metadata.pickle"
_MATTER = ("collections", "segments", "embeddings", "embeddings_queue", "max_seq_id")
_GROWTH = 1 << 20  # bytes the database may grow by being opened

Noted = Mapping[str, Sequence[object]]


def flushed(folder: Path) -> str:
    """Put the files of an index on the disk, and note them.

    As JSON: size in bytes, time in nanoseconds and digest of each, by its path in the folder.
    """
    noted: dict[str, list[object]] = {}
    for path in sorted(folder.rglob("*")):
        _flush(path)
        if path.is_file() and _counts(path):
            stat = path.stat()
            noted[str(path.relative_to(folder))] = [stat.st_size, stat.st_mtime_ns, _digest(path)]
    _flush(folder)
    _flush(folder.parent)
    return json.dumps(noted)


def difference(folder: Path, noted: str, *, to_the_byte: bool) -> str | None:
    """How an index differs from what was noted of it; None when it does not.

    Args:
        folder: the index.
        noted: what `flushed` gave.
        to_the_byte: compare what is in the files, too, not only their sizes and times.
    """
    try:
        files = json.loads(noted)
        here = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        for name in files:
            if name not in here:
                return f"lacks its file {name}"
        return next(_changes(here, files, to_the_byte), None)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, TypeError):
        return "has lost the note of its files"


def _changes(here: Mapping[str, Path], noted: Noted, to_the_byte: bool) -> Iterator[str]:
    for name, (size, mtime_ns, digest) in noted.items():
        stat = here[name].stat()
        is_database = Path(name).name == _DATABASE
        grown = stat.st_size - int(str(size))
        if not 0 <= grown <= (_GROWTH if is_database else 0):
            yield f"has a file of {stat.st_size:,} bytes, {name}, that should have {size:,}"
        elif is_database and not to_the_byte:
            continue
        elif (to_the_byte or stat.st_mtime_ns != mtime_ns) and _digest(here[name]) != digest:
            yield f"has a changed file, {name}"


def _counts(path: Path) -> bool:
    return path.name == _DATABASE or (path.parent / _METADATA).exists()


def _flush(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    if path.name == _DATABASE:
        return _digest_of_rows(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_rows(path: Path) -> str:
    """Of the rows that matter, in order; of the error where they cannot be read."""
    digest = hashlib.sha256()
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        for table in _MATTER:
            digest.update(table.encode())
            for row in db.execute(f"SELECT * FROM {table} ORDER BY rowid"):  # noqa: S608 - ours
                digest.update(repr(row).encode("utf-8", "replace"))
        digest.update(repr(db.execute("PRAGMA integrity_check(1)").fetchall()).encode())
    except sqlite3.Error as error:
        return f"unreadable: {error}"
    finally:
        db.close()
    return digest.hexdigest()
