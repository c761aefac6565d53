"""Commands about the store: status, remove, verify."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import typer

from mixtral_rag.commands.opening import open_documents, stored_documents
from mixtral_rag.commands.shared import AsJson, Collection, Store, reported
from mixtral_rag.console import many, print_json, say
from mixtral_rag.console_ingest import print_status, state_of
from mixtral_rag.errors import NoDocumentsError
from mixtral_rag.settings import load_settings


def status(
    store: Store = None,
    collection: Collection = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also pages and parts that were not read.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List what is in the store, and which files changed since."""
    from mixtral_rag.store.documents import collections

    with reported():
        settings = load_settings({"store": store, "collection": collection})
        others = collections(settings.store)
        documents = stored_documents(settings.folder)
        if as_json:
            rows = [dataclasses.asdict(d) | {"state": state_of(d)} for d in documents]
            print_json({"store": settings.folder, "documents": rows, "collections": others})
        else:
            print_status(documents, settings.folder, verbose=verbose)
            if others and settings.collection is None:
                say(f"Collections: {', '.join(others)}")


def remove(
    paths: Annotated[list[Path], typer.Argument(help="Ingested files, or folders of them.")],
    store: Store = None,
    collection: Collection = None,
) -> None:
    """Take documents out of the store; the files themselves are not touched."""
    with reported():
        settings = load_settings({"store": store, "collection": collection})
        documents = stored_documents(settings.folder)
        chosen: dict[Path, None] = {}
        for path in paths:
            chosen.update(dict.fromkeys(_matching([d.path for d in documents], path)))
        qa = open_documents(settings, with_model=False)
        with qa.store.writing(), qa.store.step() as step:
            step.remove(list(chosen))
            step.sweep()
        say(f"Removed {many(len(chosen), 'document')} from {settings.folder}.")
        if any(settings.kv_folder.glob("*.state")):
            say("Prompts the model has read hold their text too: mixtral-rag cache clear")


def verify(
    store: Store = None,
    collection: Collection = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make the indexes anew from the ledger.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the ledger with both indexes; exit code 0 when all agree."""
    with reported():
        settings = load_settings({"store": store, "collection": collection})
        stored_documents(settings.folder)
        qa = open_documents(settings, with_model=False)
        found = qa.store.verify()
        if repair and any(found.values()):
            qa.store.repair()
            repaired = {part for part, problem in found.items() if problem}
            found = qa.store.verify()
        else:
            repaired = set()
        if as_json:
            print_json({"store": settings.folder, "problems": found, "repaired": sorted(repaired)})
        else:
            for part, problem in found.items():
                good = "was made anew; ok" if part in repaired else "ok"
                say(f"{part}: {problem or good}")
        if any(found.values()):
            if not (repair or as_json):
                say("To make the indexes anew: mixtral-rag verify --repair")
            raise typer.Exit(1)


def _matching(documents: list[Path], wanted: Path) -> list[Path]:
    """The documents at or under a path, else the only one of that name."""
    path = Path(os.path.abspath(wanted.expanduser()))
    found = [d for d in documents if d == path or path in d.parents]
    if not found and len(wanted.parts) == 1 and not path.exists():
        found = [d for d in documents if d.name == wanted.name]
        if len(found) > 1:
            listed = ", ".join(map(str, found))
            raise NoDocumentsError(f"{wanted} could be any of {listed}; give the whole path")
    if not found:
        raise NoDocumentsError(f"{wanted} is not in the store; see: mixtral-rag status")
    return found
