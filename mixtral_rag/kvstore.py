"""States of computed prompts on disk, so that no prompt is computed twice.

A state is what an engine keeps of a prompt: the keys and values of its tokens. Any prompt that
begins with the same tokens can start from it. Each state is a file that the engine writes and
reads, and beside it a note: which model and options made it, hashes of its tokens, block by block,
and the file's checksum. The note is written last, so a state without one does not exist; a note or
a file with anything wrong counts as none.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import struct
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mixtral_rag.errors import SettingsError

_log = logging.getLogger("mixtral_rag.kvstore")
BLOCK = 16  # tokens; a prompt starts from a state at the last border they share
_SHARE = 0.2  # of the free disk, for a store without a budget
PATIENCE = 2.0
"""Seconds to leave to the question that follows, before a prompt's file gets its checksum."""
_STALE = 3600  # seconds after which a file half written belongs to nobody
_NOTE, _STATE, _PART = ".json", ".state", ".part"
_OURS = re.compile(r"(lone-)?[0-9a-f]{32}\.(json|state|part)")
_LONE = "lone-"  # what names of states begin with that only `exact` looks for
_SLACK = 64  # lone states may exceed the budget by this part of it, until it is looked at again
_NOTED = ("model", "n_tokens", "size", "sha256", "blocks", "name")


@dataclass(frozen=True, slots=True)
class State:
    """A state on disk.

    Args:
        path: the engine's file.
        model: key of the model and options that made it.
        n_tokens: how many tokens it holds.
        size: bytes of the file.
        sha256: checksum of the file.
        blocks: the chain of hashes, one for each whole block of tokens.
        name: of the model, for people.
        used: when it was last read or written, in seconds since 1970.
    """

    path: Path
    model: str
    n_tokens: int
    size: int
    sha256: str
    blocks: tuple[str, ...]
    name: str = ""
    used: float = 0.0


class KVStore:
    """The states in `folder`, for any number of processes at once.

    Args:
        folder: where they are; made when the first is saved, readable by its owner only.
        max_bytes: most bytes of all together; the longest unused go first. None takes a fifth of
            what the disk has free, counting what they take now.

    Raises:
        SettingsError: the budget is negative.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None = None) -> None:
        if max_bytes is not None and max_bytes < 0:
            raise SettingsError(f"kv_bytes is {max_bytes}; it must be 0 or more")
        self.folder, self._max_bytes = folder, max_bytes
        self._notes: dict[Path, tuple[int, State | None]] = {}  # by time of the note, as read
        self._coming: list[State] = []  # written, and being finished by threads
        self._swept = -math.inf
        self._room: float = -1  # bytes of lone states until the budget is looked at again

    @property
    def max_bytes(self) -> int:
        """Most bytes of all states together."""
        if self._max_bytes is not None:
            return self._max_bytes
        existing = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        return int((shutil.disk_usage(existing).free + self.n_bytes()) * _SHARE)

    def n_bytes(self) -> int:
        """What all states take on the disk."""
        return sum(state.size for state in self.states())

    def states(self) -> list[State]:
        """Every state, the latest used first."""
        return self._states()

    def _files(self, suffix: str) -> list[Path]:
        """Files of this store; others may lie in the same folder."""
        return [p for p in self.folder.glob(f"*{suffix}") if _OURS.fullmatch(p.name)]

    def _states(self, *, with_lone: bool = True) -> list[State]:
        notes = [p for p in self._files(_NOTE) if with_lone or not p.name.startswith(_LONE)]
        found = [state for path in notes if (state := self._noted(path)) is not None]
        return sorted(found, key=lambda state: -state.used)

    def find(
        self, model: str, ids: Sequence[int], *, more_than: int = 0, room: int | None = None
    ) -> tuple[State, int] | None:
        """The state that holds most of the first tokens of a prompt, and how many.

        Args:
            model: key of the model and options.
            ids: the prompt.
            more_than: tokens that are at hand already; less or equal is not worth reading.
            room: most tokens that the engine's window can take; a longer state must be left alone.
        """
        place = {block: n for n, block in enumerate(chain(ids), start=1)}
        best: tuple[int, float, State] | None = None
        for state in self._states(with_lone=False):
            if state.model != model or (room is not None and state.n_tokens > room):
                continue
            shared = next((place[b] for b in reversed(state.blocks) if b in place), 0) * BLOCK
            if shared > more_than and (best is None or (shared, -state.size) > best[:2]):
                best = (shared, -state.size, state)
        return (best[2], best[0]) if best else None

    def covered(self, model: str, ids: Sequence[int]) -> int:
        """How many of the first tokens of a prompt are kept, or will be in a moment."""
        coming, blocks = list(self._coming), set(chain(ids))  # each stands for all before it
        found = self.find(model, ids)
        shared = [len(blocks & set(s.blocks)) * BLOCK for s in coming if s.model == model]
        return max(found[1] if found else 0, *shared, 0)

    def exact(self, model: str, ids: Sequence[int]) -> State | None:
        """The lone state of a prompt of exactly these tokens; found without looking at others."""
        if not (blocks := chain(ids)):
            return None
        path = self._place(model, blocks, len(ids), is_lone=True)
        state = self._noted(path.with_suffix(_NOTE))
        return state if state is not None and state.blocks == blocks else None

    def _place(self, model: str, blocks: Sequence[str], n_tokens: int, *, is_lone: bool) -> Path:
        what = f"{model} {blocks[-1]} {n_tokens}".encode()
        name = hashlib.blake2b(what, digest_size=16).hexdigest()
        return self.folder / f"{_LONE if is_lone else ''}{name}{_STATE}"

    def load(self, state: State, read: Callable[[Path], None]) -> bool:
        """Let the engine read a state; False where its file is not what was written.

        Args:
            state: what `find` gave.
            read: reads the file into the engine; an `OSError` or `ValueError` means it cannot.
        """
        try:
            if _checksum(state.path) != state.sha256:
                raise ValueError("it is not what was written")
            read(state.path)
        except (OSError, ValueError) as error:
            _log.warning("%s is not used: %s; the prompt is computed", state.path, error)
            if isinstance(error, ValueError):
                self._remove(state.path)
            return False
        with contextlib.suppress(OSError):  # removed by another process meanwhile
            os.utime(state.path)
        return True

    def save(
        self,
        model: str,
        ids: Sequence[int],
        write: Callable[[Path], None],
        *,
        name: str = "",
        is_lone: bool = False,
        in_background: bool = False,
    ) -> bool:
        """Keep a state; False where it cannot be kept, which is logged.

        Args:
            model: key of the model and options.
            ids: the tokens it holds.
            write: writes the engine's file.
            name: of the model, for people.
            is_lone: whether it is one of many that only `exact` shall find.
            in_background: return when it has written, and leave the rest to a thread, which is
                waited for at the end of the process.
        """
        blocks = chain(ids)
        if not blocks:
            return False
        part = self.folder / f"{uuid.uuid4().hex}{_PART}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sweep()
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            write(part)
        except (OSError, ValueError) as error:
            self._give_up(part, error)
            return False
        state = State(part, model, len(ids), 0, "", blocks, name)
        if in_background:
            if not is_lone:
                self._coming.append(state)
            work = threading.Thread(target=self._finish_idly, args=(state, is_lone), name="kv-save")
            work.start()
            return True
        return self._finish(state, is_lone)

    def _finish_idly(self, written: State, is_lone: bool) -> None:
        """`_finish` on the time that no question needs: the next one may come at once.

        The end of the process does not wait for it. Passages are wanted from the disk at once.
        """
        if not is_lone:
            threading.main_thread().join(PATIENCE)
        if sys.platform == "linux":  # elsewhere it would be the whole process
            with contextlib.suppress(OSError):  # a sandbox may forbid it
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            self._finish(written, is_lone)
        finally:
            if not is_lone:
                self._coming.remove(written)

    def _finish(self, written: State, is_lone: bool) -> bool:
        """Make a written file a state.

        Nothing is flushed to the disk: a file that a power loss tears is not what its note says.
        """
        part = written.path
        path = self._place(written.model, written.blocks, written.n_tokens, is_lone=is_lone)
        try:
            state = replace(written, path=path, size=part.stat().st_size, sha256=_checksum(part))
            self._room = self._room - state.size if is_lone else -1
            most = self.max_bytes if self._room < 0 else None
            if most is not None and state.size > most:
                raise ValueError(f"its {state.size:,} bytes are more than all states may take")
            path.with_suffix(_NOTE).unlink(missing_ok=True)
            part.replace(path)
            self._write_note(state)
        except (OSError, ValueError) as error:
            self._give_up(part, error)
            return False
        if most is not None:
            self._make_room(state, most, is_lone=is_lone)
        return True

    def _give_up(self, part: Path, error: Exception) -> None:
        _log.warning("the state of a prompt is not kept in %s: %s", self.folder, error)
        with contextlib.suppress(OSError):
            part.unlink()

    def clear(self) -> int:
        """Remove every state; returns the bytes that are free again."""
        freed = self.n_bytes()
        for suffix in (_NOTE, _STATE, _PART):  # notes first: a state without one does not exist
            for path in self._files(suffix):
                with contextlib.suppress(OSError):
                    path.unlink()
        return freed

    def _make_room(self, newest: State, most: int, *, is_lone: bool) -> None:
        """Remove what the newest holds as well, and the longest unused beyond the budget."""
        states = [] if is_lone else self._states(with_lone=False)
        for state in states:
            if state.path == newest.path:
                continue
            if state.model == newest.model and state.blocks == newest.blocks[: len(state.blocks)]:
                self._remove(state.path)
        taken = 0
        for state in self.states():
            taken += state.size
            if taken > most and state.path != newest.path:
                self._remove(state.path)
        if is_lone:
            self._room = most / _SLACK

    def _remove(self, path: Path) -> None:
        for gone in (path.with_suffix(_NOTE), path):
            with contextlib.suppress(OSError):
                gone.unlink()

    def _sweep(self) -> None:
        """Remove what a killed process left half written, and states without a note."""
        if time.monotonic() - self._swept < _STALE:
            return
        self._swept, now = time.monotonic(), time.time()
        for path in (*self._files(_PART), *self._files(_STATE)):
            with contextlib.suppress(OSError):
                is_whole = path.suffix == _STATE and path.with_suffix(_NOTE).exists()
                if not is_whole and now - path.stat().st_mtime > _STALE:
                    path.unlink()

    def _noted(self, note: Path) -> State | None:
        """The state a note tells of; None where there is anything wrong with either."""
        try:
            written, file = note.stat().st_mtime_ns, note.with_suffix(_STATE).stat()
        except OSError:
            self._notes.pop(note, None)
            return None
        if note not in self._notes or self._notes[note][0] != written:
            self._notes[note] = (written, _read_note(note))
        state = self._notes[note][1]
        if state is None or state.size != file.st_size:
            return None
        return replace(state, used=file.st_mtime)

    def _write_note(self, state: State) -> None:
        values = {name: getattr(state, name) for name in _NOTED}
        body = json.dumps(values)
        part = self.folder / f"{uuid.uuid4().hex}{_PART}"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n")
        part.replace(state.path.with_suffix(_NOTE))


def chain(ids: Sequence[int]) -> tuple[str, ...]:
    """A hash for every whole block of tokens that also stands for all before it."""
    blocks: list[str] = []
    before = b""
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        tokens = struct.pack(f"<{BLOCK}i", *ids[start : start + BLOCK])
        before = hashlib.blake2b(before + tokens, digest_size=12).digest()
        blocks.append(before.hex())
    return tuple(blocks)


def _read_note(path: Path) -> State | None:
    try:
        body, checksum = path.read_text("utf-8").splitlines()
        if hashlib.sha256(body.encode()).hexdigest() != checksum:
            return None
        values = json.loads(body)
        values["blocks"] = tuple(values["blocks"])
        return State(path.with_suffix(_STATE), **values)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
