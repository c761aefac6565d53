"""Commands about the states of computed prompts on the disk: cache status, cache clear."""

import time
from typing import TYPE_CHECKING

import typer

from mixtral_rag.commands.shared import AsJson, KvBytes, KvFolder, reported
from mixtral_rag.console import duration, many, print_json, say, size
from mixtral_rag.settings import load_settings

if TYPE_CHECKING:
    from mixtral_rag.kvstore import KVStore

_MOST_LISTED = 20

app = typer.Typer(help="Computed prompts kept on the disk, which need not be computed again.")


@app.command()
def status(kv_folder: KvFolder = None, kv_bytes: KvBytes = None, as_json: AsJson = False) -> None:
    """List what is kept, and how much of the disk it takes and may take."""
    with reported():
        store = _store(kv_folder, kv_bytes)
        states, most = store.states(), store.max_bytes
        if as_json:
            rows = [{"model": s.name, "n_tokens": s.n_tokens, "bytes": s.size, "used": s.used,
                     "file": s.path} for s in states]  # fmt: skip
            print_json({"folder": store.folder, "max_bytes": most, "states": rows})
            return
        taken = sum(s.size for s in states)
        say(f"{many(len(states), 'computed prompt')} in {store.folder}: "
            f"{size(taken)} of at most {size(most)}")  # fmt: skip
        for state in states[:_MOST_LISTED]:
            ago = duration(max(0.0, time.time() - state.used))
            say(f"  {state.n_tokens:>7,} tokens  {size(state.size):>8}  "
                f"used {ago} ago  {state.name}")  # fmt: skip
        if len(states) > _MOST_LISTED:
            say(f"  and {len(states) - _MOST_LISTED} more")


@app.command()
def clear(kv_folder: KvFolder = None) -> None:
    """Remove all that is kept; what is asked next is computed again."""
    with reported():
        store = _store(kv_folder, None)
        n = len(store.states())
        freed = store.clear()
        say(f"Removed {many(n, 'computed prompt')}, {size(freed)}, from {store.folder}.")


def _store(kv_folder: object, kv_bytes: int | None) -> "KVStore":
    from mixtral_rag.kvstore import KVStore

    settings = load_settings({"kv_folder": kv_folder, "kv_bytes": kv_bytes})
    return KVStore(settings.kv_folder, max_bytes=settings.kv_bytes)
