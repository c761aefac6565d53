"""Commands about documents: ingest, ask, status, remove."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixtral_rag.commands.shared import (
    Adapter,
    AsJson,
    BaseUrl,
    ContextTokens,
    Embedder,
    Engine,
    KvType,
    MaxTokens,
    Model,
    NCtx,
    NGpuLayers,
    NThreads,
    Quantization,
    Question,
    Seed,
    Store,
    Temperature,
    TokenizerPath,
    TopK,
    reported,
)
from mixtral_rag.console import (
    many,
    plain,
    print_citations,
    print_json,
    print_passages,
    print_report,
    print_status,
    print_stream,
    progress,
    state_of,
)
from mixtral_rag.errors import MixtralRagError, NoDocumentsError, SettingsError
from mixtral_rag.settings import Settings, answering_model, load_settings

if TYPE_CHECKING:
    from mixtral_rag.qa import DocumentQA
    from mixtral_rag.store.ledger import Document


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    store: Store = None,
    embedder: Embedder = None,
    as_json: AsJson = False,
) -> None:
    """Read documents into the store: PDF, HTML, Markdown and text.

    Ingesting again takes only what changed.
    """
    with reported():
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


def ask(
    question: Question = None,
    store: Store = None,
    model: Model = None,
    engine: Engine = None,
    base_url: BaseUrl = None,
    tokenizer: TokenizerPath = None,
    adapter: Adapter = None,
    quantization: Quantization = None,
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
    with reported():
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


def status(store: Store = None, as_json: AsJson = False) -> None:
    """List what is in the store, and which files changed since."""
    with reported():
        settings = load_settings({"store": store})
        documents = _documents(settings.store)
        if as_json:
            rows = [dataclasses.asdict(d) | {"state": state_of(d)} for d in documents]
            print_json({"store": settings.store, "documents": rows})
        else:
            print_status(documents, settings.store)


def remove(
    paths: Annotated[list[Path], typer.Argument(help="Ingested files, or folders of them.")],
    store: Store = None,
) -> None:
    """Take documents out of the store; the files themselves are not touched."""
    with reported():
        settings = load_settings({"store": store})
        documents = _documents(settings.store)
        chosen: dict[Path, None] = {}
        for path in paths:
            chosen.update(dict.fromkeys(_matching([d.path for d in documents], path)))
        qa = _open(settings, with_model=False)
        with qa.store.writing():
            qa.store.remove(list(chosen))
        print(f"Removed {many(len(chosen), 'document')} from {settings.store}.")


# --- opening and matching ----------------------------------------------------------------------


def _open(settings: Settings, *, with_model: bool) -> "DocumentQA":
    from mixtral_rag.qa import open_qa

    model = None
    if with_model:
        model, is_demo = answering_model(settings)
        if is_demo:
            print(
                "Using SmolLM2-135M, a demonstration model: fine for trying the plumbing, too "
                "small to trust.\nFor real answers: mixtral-rag pull chinese-mixtral-instruct\n",
                file=sys.stderr,
            )
        if settings.engine_used == "llamacpp":
            _warn_of_memory(Path(model), settings)
    options: dict[str, Any] = settings.model_options() if with_model else {}
    if settings.top_k is not None:
        options["top_k"] = settings.top_k
    return open_qa(
        store=settings.store,
        model=model,
        embedder=settings.embedder,
        context_tokens=settings.context_tokens,
        **options,
    )


def _warn_of_memory(model: Path, settings: Settings) -> None:
    """llama.cpp maps a file that does not fit and then crawls, or the system kills it."""
    from mixtral_rag.weights.inspect import inspect

    report = inspect(model, n_ctx=settings.n_ctx, kv_type=settings.kv_type or "f16")
    if report.memory_problem:
        print(plain(f"mixtral-rag: {model.name}: {report.memory_problem}"), file=sys.stderr)


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
