"""The command that reads documents."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixtral_rag.commands.opening import open_documents
from mixtral_rag.commands.shared import (
    AsJson,
    Collection,
    ContextTokens,
    Embedder,
    Model,
    Store,
    reported,
)
from mixtral_rag.console import print_json, say, warn
from mixtral_rag.console_ingest import print_report, progress
from mixtral_rag.errors import LockedError, MixtralRagError, NoDocumentsError
from mixtral_rag.settings import Settings, load_settings

if TYPE_CHECKING:
    from mixtral_rag.qa import DocumentQA


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    store: Store = None,
    collection: Collection = None,
    embedder: Embedder = None,
    ocr: Annotated[
        bool, typer.Option("--ocr", help="Read pages that are pictures, with tesseract.")
    ] = False,
    ocr_languages: Annotated[
        str | None, typer.Option(help="As tesseract names them.  [default: chi_sim+eng]")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove documents whose files are gone.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try again what failed and has not changed.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on, and ingest whatever changes.")
    ] = False,
    warm: Annotated[
        bool, typer.Option("--warm", help="Then let the model read them, as `warm` does.")
    ] = False,
    model: Model = None,
    context_tokens: ContextTokens = None,
    as_json: AsJson = False,
) -> None:
    """Read documents into the store.

    PDF, Word, PowerPoint, Excel, CSV, HTML, Markdown, text, EPUB, mail, notebooks, JSON, source
    code, and archives of these. Ingesting again takes only what changed.
    """
    flags = {"store": store, "collection": collection, "embedder": embedder,
             "ocr_languages": ocr_languages, "model": model,
             "context_tokens": context_tokens}  # fmt: skip
    with reported():
        settings = load_settings(flags)
        qa = open_documents(settings, with_model=False)
        languages = settings.ocr_languages if ocr else None
        options = {"ocr": languages, "prune": prune, "retry_failed": retry}
        whole = _ingest(qa, paths, settings, options, as_json=as_json)
        if warm:
            _warm(settings, as_json=as_json)
        if watch:
            _watch(qa, paths, settings, options, as_json=as_json)
        if not whole:
            raise typer.Exit(1)


def _ingest(
    qa: "DocumentQA", paths: list[Path], settings: Settings, options: dict[str, Any], *,
    as_json: bool, quiet: bool = False,
) -> bool:  # fmt: skip
    """Ingest once and print what was done; whether everything is in the store."""
    try:
        with progress() as on_progress:
            report = qa.ingest(paths, on_progress=on_progress, **options)
    except KeyboardInterrupt:
        say("\nStopped. Documents that were finished stay; run it again for the rest.")
        raise typer.Exit(130) from None
    if quiet and not (report.added or report.updated or report.moved or report.removed
                      or report.failed):  # fmt: skip
        return report.is_whole
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        print_report(report, settings.folder)
    return report.is_whole


def _warm(settings: Settings, *, as_json: bool) -> None:
    """Read all that is in the store ahead; that it does not fit is no failure of the ingest."""
    from mixtral_rag.commands.warm import print_warmed, read_ahead

    try:
        warmed = read_ahead(settings)
    except MixtralRagError as error:
        warn(f"not read ahead: {error}")
    else:
        if not as_json:
            print_warmed(warmed)


def _watch(
    qa: "DocumentQA", paths: list[Path], settings: Settings, options: dict[str, Any], *,
    as_json: bool,
) -> None:  # fmt: skip
    from mixtral_rag.ingest.watch import changes

    say("Watching for changes; Ctrl-C ends.", file=sys.stderr)
    # What fails is told once and tried again when it changes.
    options = {**options, "retry_failed": False}
    for _ in changes(paths):
        try:
            _ingest(qa, paths, settings, options, as_json=as_json, quiet=True)
        except (LockedError, NoDocumentsError) as error:  # may pass
            warn(str(error))
