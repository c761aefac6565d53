"""Documents inside another, such as members of an archive and attachments of a mail."""

import importlib
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, cast

from mixtral_rag.errors import DocumentError, UnreadableError
from mixtral_rag.ingest.heartbeat import alive
from mixtral_rag.ingest.readers import LOST, Block, Parsed, ReadOptions, read, zips
from mixtral_rag.ingest.readers.encoding import decode
from mixtral_rag.ingest.readers.formats import (
    CONTAINERS,
    MODULES,
    is_wanted_file,
    is_wanted_folder,
    suffix_of,
)

_DEEPEST = 2  # containers that may stand inside one another, the outermost not counted
_LARGEST = 512 << 20  # bytes of one member
_MOST_TEXT = 16_000_000  # characters; the pool takes 20,000,000 of one document
_MOST_BLOCKS = 400_000  # of 500,000
_LONGEST = 1800.0  # seconds for all of them


@dataclass
class _Room:
    """What the outermost document and all inside it may still take."""

    members: int = zips.MOST_MEMBERS
    size: int = zips.MOST_BYTES
    text: int = _MOST_TEXT
    blocks: int = _MOST_BLOCKS
    depth: int = 0
    end: float = field(default_factory=lambda: time.monotonic() + _LONGEST)


_room: ContextVar[_Room | None] = ContextVar("room", default=None)


@contextmanager
def collecting(options: ReadOptions) -> Iterator["Inside"]:
    """Collect documents inside the one being read; a private folder holds one at a time."""
    room = _room.get() or _Room()
    token = _room.set(room)
    room.depth += 1
    try:
        with tempfile.TemporaryDirectory(prefix="mixtral-rag-") as folder:
            yield Inside(options, room, Path(folder))
    finally:
        room.depth -= 1
        _room.reset(token)


class Inside:
    """Blocks of the documents found inside another, and what could not be read.

    Attributes:
        blocks: their text; sections begin with the document's name.
        problems: one line for each that could not be read.
        is_full: whether a limit for all of them was reached; the rest is left out.
    """

    def __init__(self, options: ReadOptions, room: _Room, folder: Path) -> None:
        self.blocks: list[Block] = []
        self.problems: list[str] = []
        self.is_full = False
        self._options, self._room, self._folder = options, room, folder

    def wants(self, name: str) -> bool:
        """Whether a member should be read: not hidden, and there is a reader for it."""
        parts = PurePosixPath(name).parts
        if not parts or not is_wanted_file(parts[-1]):
            return False
        return all(map(is_wanted_folder, parts[:-1]))

    def take(self, name: str, source: IO[bytes]) -> None:
        """Read a member with the reader for its name; what goes wrong becomes a problem."""
        if self.is_full:
            return
        room = self._room
        room.members -= 1
        if room.members < 0 or time.monotonic() > room.end or room.text <= 0:
            self.stop("more files, text or time than one archive may take", name)
            return
        suffix = suffix_of(PurePosixPath(name))
        if MODULES.get(suffix) in CONTAINERS and room.depth > _DEEPEST:
            self.problems.append(f"{name} is inside too many other archives")
            return
        path = self._folder / f"member{suffix}"
        try:
            if self._copy(name, source, path):
                self._read(name, path)
        except DocumentError as error:
            self.problems.append(str(error).replace(str(path), name))
        except MemoryError:
            self.problems.append(f"{name} needs too much memory to read")
        finally:
            path.unlink(missing_ok=True)
        alive()

    def stop(self, reason: str, name: str = "") -> None:
        """Leave out all that follows, from the one called `name`."""
        self.is_full = True
        start = f", from {name} on" if name else ""
        self.problems.append(f"the rest was left out{start}: {reason}")

    def _copy(self, name: str, source: IO[bytes], path: Path) -> bool:
        size = 0
        with path.open("wb") as target:
            try:
                while chunk := source.read(zips.CHUNK):
                    size += len(chunk)
                    self._room.size -= len(chunk)
                    if size > _LARGEST:
                        raise UnreadableError(f"{name} has more than {_LARGEST >> 20} MiB")
                    if self._room.size < 0:
                        self.stop(f"together more than {zips.MOST_BYTES >> 30} GiB", name)
                        return False
                    target.write(chunk)
            except zips.DAMAGE as error:
                raise UnreadableError(f"{name} is damaged: {error}") from error
        return True

    def _read(self, name: str, path: Path) -> None:
        try:
            parsed = read(path, self._options)
        except (DocumentError, MemoryError):
            raise
        except RecursionError:
            raise UnreadableError(f"{name} is nested too deeply to read") from None
        except Exception as error:  # libraries raise anything over a damaged file
            reason = f"{type(error).__name__}: {error}"
            raise UnreadableError(f"{name} cannot be read, it may be damaged ({reason})") from error
        self._add(name, parsed)

    def _add(self, name: str, parsed: Parsed) -> None:
        for block in parsed.blocks:
            section = (name, *block.section)
            self._room.blocks -= 1
            self._room.text -= len(block.text) + sum(map(len, section))
            if self._room.text < 0 or self._room.blocks < 0:
                self.stop("more text than one document may have", name)
                break
            self.blocks.append(Block(block.text, block.page, section))
        for state in LOST:
            if numbers := parsed.pages.get(state):
                pages = ", ".join(map(str, numbers[:20])) + (", …" if len(numbers) > 20 else "")
                self.problems.append(f"{name}: pages {state.replace('_', ' ')}: {pages}")
        self.problems += [f"{name}: {problem}" for problem in parsed.problems]


def read_as(suffix: str, data: bytes, options: ReadOptions, *, name: str) -> Parsed:
    """Read what a document holds in the form of another, without a look whether it has text.

    Args:
        suffix: of the form, such as `.html`.
        data: its bytes.
        options: how to read.
        name: what errors call it: the document and the part of it.
    """
    with tempfile.TemporaryDirectory(prefix="mixtral-rag-") as folder:
        path = Path(folder, f"part{suffix}")
        path.write_bytes(data)
        module = importlib.import_module(f"{__package__}.{MODULES[suffix]}")
        try:
            return cast(Parsed, module.read(path, options))
        except DocumentError as error:
            raise type(error)(str(error).replace(str(path), name)) from error


def safe_name(name: str) -> str | None:
    """A member's path in the usual form; None when it leads out of the archive."""
    name = name.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or re.match(r"^[A-Za-z]:", name) or ".." in parts or "\0" in name:
        return None
    return "/".join(parts)


def decoded_name(raw: bytes, otherwise: str) -> str:
    """A member's name from its bytes: UTF-8, or GBK as archives made in China have it.

    Args:
        raw: the bytes.
        otherwise: the name to take when the bytes cannot be told.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        pass
    try:
        name = raw.decode("gb18030")
        strange = [c for c in name if not c.isascii()]
        usual = sum(len(c.encode("gb2312", errors="ignore")) == 2 for c in strange)
        if usual >= 0.5 * len(strange):
            return name
    except UnicodeDecodeError:
        pass
    try:
        return decode(Path(otherwise), raw)[0]
    except UnreadableError:
        return otherwise
