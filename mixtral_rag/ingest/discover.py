"""Which files to ingest: the given files, and the documents inside the given folders."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mixtral_rag.errors import NoDocumentsError
from mixtral_rag.ingest.readers.formats import (
    KNOWN,
    is_junk,
    is_wanted_file,
    is_wanted_folder,
    suffix_of,
)

NO_SUFFIX = "no suffix"
"""What stands for the suffix of files without one in counts by suffix."""


@dataclass(frozen=True, slots=True)
class Discovered:
    """What was found.

    Args:
        files: absolute paths of the documents, each once, in order.
        passed_over: how many files of formats that no reader takes, by suffix.
        unlisted: folders that could not be looked into, with the reason.
    """

    files: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    unlisted: dict[Path, str] = field(default_factory=dict)


def discover(paths: Iterable[Path]) -> Discovered:
    """Find the documents among files and in folders.

    A file named outright is taken whatever its suffix, so that its reader can say what is wrong.
    A link to a file keeps its own name. In folders, what is hidden, code that others wrote
    (`node_modules`, virtual environments) and files that programs write for themselves are passed
    over, and links to folders are not followed.

    Raises:
        NoDocumentsError: a path does not exist, or nothing was found.
    """
    given = list(paths)
    result = Discovered()
    found: dict[Path, Path] = {}  # by what links lead to, so that each is taken once
    for path in given:
        path = Path(os.path.abspath(path.expanduser()))
        if not path.exists():
            raise NoDocumentsError(f"no such file or folder: {path}")
        for file in _documents(path, result) if path.is_dir() else [path]:
            found.setdefault(file.resolve(), file)
    if not found and not result.unlisted:
        where = ", ".join(map(str, given))
        raise NoDocumentsError(f"no documents in {where}; files that can be read end in {KNOWN}")
    result.files.extend(found.values())
    return result


def _documents(folder: Path, result: Discovered) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        path = Path(os.fsdecode(error.filename))
        result.unlisted[path] = f"cannot look into {path}: {error.strerror}"

    for parent, folders, names in os.walk(folder, onerror=failed):
        if "pyvenv.cfg" in names and Path(parent) != folder:  # a virtual environment of Python
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if is_wanted_folder(f))
        for name in sorted(names):
            if is_wanted_file(name):
                file = Path(parent, name)
                if file.is_file():
                    yield file
            elif not is_junk(name):
                result.passed_over[suffix_of(Path(name)) or NO_SUFFIX] += 1
