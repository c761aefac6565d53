"""New files and folders appear whole or not at all, and only where there is room for them."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mixtral_rag.errors import ModelFileError

Progress = Callable[[int, int], None]
"""Gets bytes done and bytes to do."""


@contextmanager
def made_whole(goal: Path) -> Iterator[Path]:
    """A hidden path beside `goal` to write to, which takes its name when the block ends well.

    Whatever ends it otherwise, Ctrl-C too, nothing is left. What a killed run left is removed.

    Raises:
        ModelFileError: it cannot be written.
    """
    partial = goal.with_name(f".{goal.name}.partial")
    try:
        _remove(partial)
        yield partial
        os.replace(partial, goal)
    except OSError as error:
        _remove(partial)
        raise disk_error(goal, error) from error
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_room(goal: Path, needed: int, *, option: str = "--output") -> None:
    """Raise `ModelFileError` unless `goal` can be made and `needed` bytes are free there."""
    parent = goal.absolute().parent
    if not parent.is_dir():
        raise ModelFileError(f"there is no folder {parent} to write {goal.name} in")
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ModelFileError(
            f"the disk of {parent} has {free / 1e9:.1f} GB free and {goal.name} takes "
            f"{needed / 1e9:.1f} GB; free some, or choose another place with {option}"
        )


def disk_error(goal: Path, error: OSError) -> ModelFileError:
    """Our error for a disk that is full or cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelFileError(f"cannot write {goal}: the disk is full; free some and run it again")
    return ModelFileError(f"cannot write {goal}: {error.strerror or error}")
