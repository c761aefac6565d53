"""The commands that use the model: ask and summarize."""

import dataclasses
import datetime as dt
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixtral_rag.commands.opening import open_documents, stored_documents
from mixtral_rag.commands.shared import (
    Adapter,
    AsJson,
    BaseUrl,
    Collection,
    ContextTokens,
    Embedder,
    Engine,
    KvBytes,
    KvFolder,
    KvType,
    MaxTokens,
    Model,
    NCtx,
    NGpuLayers,
    NThreads,
    Quantization,
    Question,
    Reading,
    Seed,
    Store,
    Temperature,
    TokenizerPath,
    TopK,
    reported,
)
from mixtral_rag.console import (
    plain,
    print_json,
    print_passages,
    print_stream,
    say,
    task_progress,
    warn,
)
from mixtral_rag.console_answer import print_account, print_citations
from mixtral_rag.errors import MixtralRagError, SettingsError
from mixtral_rag.settings import load_settings

if TYPE_CHECKING:
    from mixtral_rag.qa import DocumentQA
    from mixtral_rag.store.filter import Filter

_NOT_SETTINGS = ("question", "retrieve_only", "as_json", "explain", "within", "types", "since",
                 "until", "supported_only", "metadata")  # fmt: skip


def ask(
    question: Question = None,
    store: Store = None,
    collection: Collection = None,
    model: Model = None,
    engine: Engine = None,
    base_url: BaseUrl = None,
    tokenizer: TokenizerPath = None,
    adapter: Adapter = None,
    quantization: Quantization = None,
    embedder: Embedder = None,
    reranker: Annotated[
        str | None,
        typer.Option(help="Cross-encoder that orders the passages: hub name, folder or GGUF."),
    ] = None,
    within: Annotated[
        list[str] | None,
        typer.Option("--in", help="Only this file, folder or pattern such as '*.pdf'; repeatable."),
    ] = None,
    types: Annotated[
        list[str] | None, typer.Option("--type", help="Only this type, such as pdf; repeatable.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Changed since, such as 2024-05-01.")] = None,
    until: Annotated[str | None, typer.Option(help="Changed until, such as 2024-05-31.")] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--where", help="Only with this metadata, NAME=VALUE; repeatable."),
    ] = None,
    retrieve_only: Annotated[
        bool, typer.Option("--retrieve-only", help="Show the passages; use no model.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what the model read and what was left out.")
    ] = False,
    supported_only: Annotated[
        bool,
        typer.Option("--supported-only", help="Leave out sentences their sources do not hold."),
    ] = False,
    as_json: AsJson = False,
    top_k: TopK = None,
    context_tokens: ContextTokens = None,
    reading: Reading = None,
    n_ctx: NCtx = None,
    n_gpu_layers: NGpuLayers = None,
    n_threads: NThreads = None,
    kv_type: KvType = None,
    kv_folder: KvFolder = None,
    kv_bytes: KvBytes = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
) -> None:
    """Answer a question from the documents, with citations; without a question, chat."""
    flags = {k: v for k, v in locals().items() if k not in _NOT_SETTINGS}
    with reported():
        settings = load_settings(flags)
        chosen = _filter(within, types, since, until, metadata)
        stored_documents(settings.folder)
        qa = open_documents(
            settings, with_model=not retrieve_only, filter=chosen, drop_unsupported=supported_only
        )
        if question is None:
            if as_json or retrieve_only:
                raise SettingsError("--json and --retrieve-only need a question")
            _chat(qa, explain=explain)
        elif retrieve_only:
            print_passages(qa.search(question), as_json=as_json)
        elif as_json:
            print_json(dataclasses.asdict(qa.ask(question)))
        else:
            stream = qa.stream(question)
            print_stream(stream)
            print_citations(stream.answer)
            if explain:
                print_account(stream.answer)


def _filter(
    within: list[str] | None,
    types: list[str] | None,
    since: str | None,
    until: str | None,
    metadata: list[str] | None,
) -> "Filter | None":
    from mixtral_rag.store.filter import Filter

    pairs = dict(_pair(text) for text in metadata or [])
    chosen = Filter(
        tuple(within or ()), tuple(types or ()), _day("--since", since), _day("--until", until),
        pairs,
    )  # fmt: skip
    return chosen or None


def _day(option: str, text: str | None) -> dt.date | None:
    try:
        return None if text is None else dt.date.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{option} is {text!r}; it must be a day such as 2024-05-31") from None


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise SettingsError(f"--where is {text!r}; it must be NAME=VALUE")
    return name, value


def _chat(qa: "DocumentQA", *, explain: bool) -> None:
    from mixtral_rag.qa import Conversation

    is_terminal = sys.stdin.isatty()
    if is_terminal:
        say("Ask about your documents. /new starts over; Ctrl-D or /exit ends.", file=sys.stderr)
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
                if explain:
                    print_account(conversation.last)
            except KeyboardInterrupt:
                say("\n(stopped)")
            except MixtralRagError as error:  # such as a question that is too long
                warn(str(error))


def summarize(
    file: Annotated[Path, typer.Argument(help="The document; it need not be ingested.")],
    language: Annotated[
        str | None, typer.Option(help="zh or en.  [default: the document's]")
    ] = None,
    model: Model = None,
    engine: Engine = None,
    base_url: BaseUrl = None,
    tokenizer: TokenizerPath = None,
    adapter: Adapter = None,
    quantization: Quantization = None,
    as_json: AsJson = False,
    context_tokens: ContextTokens = None,
    n_ctx: NCtx = None,
    n_gpu_layers: NGpuLayers = None,
    n_threads: NThreads = None,
    kv_type: KvType = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
) -> None:
    """Summarise a document, also one longer than the context window."""
    flags: dict[str, Any] = {
        k: v for k, v in locals().items() if k not in ("file", "language", "as_json")
    }
    with reported():
        if language not in (None, "zh", "en"):
            raise SettingsError(f"--language is {language!r}; it must be zh or en")
        # No part is read twice, and what is kept of questions would make room for them.
        settings = load_settings(flags | {"kv_bytes": 0})
        from mixtral_rag.commands.opening import open_model
        from mixtral_rag.summarize import read_texts, summarize

        texts = read_texts(file)
        chat = open_model(settings)
        with task_progress(file.name) as show:
            text = summarize(
                chat,
                texts,
                language=language,  # type: ignore[arg-type]  # checked above
                context_tokens=settings.context_tokens,
                on_progress=lambda p: show(_step(p.level, p.total), p.done, p.total),
            )
        print_json({"file": file, "summary": text}) if as_json else print(plain(text))


def _step(level: int, total: int) -> str:
    if total == 1:
        return "writing the summary"
    return "summarising parts" if level == 0 else "joining summaries"
