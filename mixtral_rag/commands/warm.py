"""The command that lets the model read documents ahead."""

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixtral_rag.commands.opening import open_documents, stored_documents
from mixtral_rag.commands.shared import (
    AsJson,
    Collection,
    ContextTokens,
    Engine,
    KvBytes,
    KvFolder,
    KvType,
    Model,
    NCtx,
    NGpuLayers,
    NThreads,
    Reading,
    Store,
    reported,
)
from mixtral_rag.console import duration, many, print_json, say, task_progress
from mixtral_rag.errors import SettingsError
from mixtral_rag.settings import Settings, load_settings

if TYPE_CHECKING:
    from mixtral_rag.warming import Warmed

_LANGUAGES = {"zh": "Chinese", "en": "English"}


def warm(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Ingested files or folders, as for `ask --in`.  [default: all]"),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Of the questions: zh or en.  [default: the documents']")
    ] = None,
    store: Store = None,
    collection: Collection = None,
    model: Model = None,
    engine: Engine = None,
    as_json: AsJson = False,
    context_tokens: ContextTokens = None,
    reading: Reading = None,
    n_ctx: NCtx = None,
    n_gpu_layers: NGpuLayers = None,
    n_threads: NThreads = None,
    kv_type: KvType = None,
    kv_folder: KvFolder = None,
    kv_bytes: KvBytes = None,
) -> None:
    """Let the model read documents ahead, so that questions about them are answered at once.

    Documents that fit one prompt (see --context-tokens), or with --reading apart any number of
    them, passage by passage. Ask with the same options.
    """
    flags = {k: v for k, v in locals().items() if k not in ("paths", "language", "as_json")}
    with reported():
        settings = load_settings(flags)
        warmed = read_ahead(settings, paths, language)
        if as_json:
            print_json(dataclasses.asdict(warmed))
        else:
            print_warmed(warmed)


def read_ahead(
    settings: Settings, paths: list[str] | None = None, language: str | None = None
) -> "Warmed":
    """Read the documents at `paths`, or all, with the model that is set."""
    if language not in (None, *_LANGUAGES):
        raise SettingsError(f"--language is {language!r}; it must be zh or en")
    if settings.engine_used == "llamacpp" and settings.kv_bytes == 0:
        raise SettingsError("with --kv-bytes 0 nothing that is read ahead would be kept")
    if settings.engine_used == "llamacpp":
        _check_writable(settings.kv_folder)
    from mixtral_rag.store.filter import Filter

    stored_documents(settings.folder)
    more: dict[str, Any] = {"filter": Filter(paths=tuple(paths))} if paths else {}
    qa = open_documents(settings, with_model=True, **more)
    try:
        with task_progress("reading") as show:
            return qa.warm(
                language,  # type: ignore[arg-type]  # checked above
                on_progress=lambda done, total: show("reading", done, total),
            )
    finally:
        qa.close()


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingsError(
            f"cannot write to {folder}: {error.strerror}; what is read ahead would not be kept, "
            "choose another --kv-folder"
        ) from error


def print_warmed(warmed: "Warmed") -> None:
    """What was read, and which questions it serves."""
    known = f" ({warmed.cached_tokens:,} of them were known)" if warmed.cached_tokens else ""
    say(
        f"Read {many(warmed.n_documents, 'document')}, {warmed.n_tokens:,} tokens{known}, in "
        f"{duration(warmed.seconds)}. Questions in {_LANGUAGES[warmed.language]} start from there."
    )
