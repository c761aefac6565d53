"""Models of sentence-transformers by hub name or folder, from this machine where they are on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixtral_rag.errors import SettingsError


def load(make: Callable[..., Any], name: str, **options: Any) -> Any:
    """`make(name, **options)`; the hub is asked only for what is not on this machine.

    Raises:
        SettingsError: it is neither here nor there, or cannot be loaded.
    """
    try:
        try:
            return make(name, local_files_only=True, **options)
        except (OSError, ValueError):
            if Path(name).is_dir():
                raise
            return make(name, **options)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(
            f"sentence-transformers cannot load {name!r}: {reason}; give a local folder, or a hub "
            "name where the hub can be reached"
        ) from error
