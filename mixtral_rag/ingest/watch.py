"""Waiting for changes of files, by the system's own notices."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_QUIET = 1_600  # milliseconds without a change before changes are told
_AGAIN = 30_000  # milliseconds after which to look anyway: network drives send no notices


def changes(paths: Iterable[Path]) -> Iterator[bool]:
    """Yield whenever something under `paths` may have changed, and now and then without a notice.

    Yields True after a notice. Ends on Ctrl-C.
    """
    from watchfiles import DefaultFilter, watch

    given = [Path(os.path.abspath(p.expanduser())) for p in paths]
    # An editor puts a new file in the place of the old, so a file is watched by its folder.
    folders = {p if p.is_dir() else p.parent for p in given}
    is_wanted = DefaultFilter()

    def wanted(change: object, path: str) -> bool:
        changed = Path(path)
        return is_wanted(change, path) and any(  # type: ignore[arg-type]
            root == changed or root in changed.parents for root in given
        )

    for found in watch(
        *folders,
        watch_filter=wanted,
        debounce=_QUIET,
        rust_timeout=_AGAIN,
        yield_on_timeout=True,
        raise_interrupt=False,
    ):
        yield bool(found)
