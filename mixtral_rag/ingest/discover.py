"""Which files to ingest: the given files, and the documents inside the given folders."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mixtral_rag.errors import NoDocumentsError
from mixtral_rag.ingest.readers.formats import KNOWN, is_wanted_file, is_wanted_folder


def discover(paths: Iterable[Path]) -> list[Path]:
    """Absolute paths of the documents, each once, in order.

    A file named outright is taken whatever its suffix, so that its reader can say what is wrong.
    A link to a file keeps its own name. In folders, what is hidden, code that others wrote
    (`node_modules`, virtual environments) and files that programs write for themselves are passed
    over, and links to folders are not followed.

    Raises:
        NoDocumentsError: a path does not exist, or nothing was found.
    """
    given = list(paths)
    found: dict[Path, Path] = {}  # by what links lead to, so that each is taken once
    for path in given:
        path = Path(os.path.abspath(path.expanduser()))
        if not path.exists():
            raise NoDocumentsError(f"no such file or folder: {path}")
        for file in _documents(path) if path.is_dir() else [path]:
            found.setdefault(file.resolve(), file)
    if not found:
        where = ", ".join(map(str, given))
        raise NoDocumentsError(f"no documents in {where}; files that can be read end in {KNOWN}")
    return list(found.values())


def _documents(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        if "pyvenv.cfg" in names and Path(parent) != folder:  # a virtual environment of Python
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if is_wanted_folder(f))
        for name in sorted(names):
            if is_wanted_file(name):
                file = Path(parent, name)
                if file.is_file():
                    yield file
