"""The command line: every command, by name."""

import sys
from typing import Annotated

import typer

from mixtral_rag import __version__
from mixtral_rag.commands import (
    asking,
    cache,
    convert,
    documents,
    measure,
    models,
    serve,
    store,
    warm,
)
from mixtral_rag.commands.help import Commands

app = typer.Typer(
    name="mixtral-rag",
    cls=Commands,
    help="Private question answering over your own documents, with a model you run yourself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("ingest")(documents.ingest)
app.command("ask")(asking.ask)
app.command("warm")(warm.warm)
app.command("summarize")(asking.summarize)
app.command("status")(store.status)
app.command("remove")(store.remove)
app.command("verify")(store.verify)
app.command("models")(models.models)
app.command("pull")(models.pull)
app.command("inspect")(models.inspect)
app.command("upgrade")(models.upgrade)
app.command("merge")(convert.merge)
app.command("convert")(convert.convert)
app.command("quantize")(convert.quantize)
app.command("doctor")(measure.doctor)
app.command("bench")(measure.bench)
app.command("serve")(serve.serve)
app.command("mcp")(serve.mcp)
app.add_typer(serve.app, name="keys", no_args_is_help=True)
app.add_typer(cache.app, name="cache", no_args_is_help=True)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mixtral-rag {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of `mixtral-rag`."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a C locale must not make Chinese text an error
            stream.reconfigure(encoding="utf-8", errors="replace")
    app()
