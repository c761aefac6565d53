"""The commands that serve: over HTTP, and over the Model Context Protocol; and the keys for it."""

import importlib.util
import logging
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import platformdirs
import typer

from mixtral_rag.commands.shared import (
    Adapter,
    AsJson,
    BaseUrl,
    ContextTokens,
    Embedder,
    Engine,
    KvBytes,
    KvFolder,
    KvMemory,
    KvType,
    MaxTokens,
    Model,
    NCtx,
    NGpuLayers,
    NThreads,
    Quantization,
    Reading,
    Store,
    TokenizerPath,
    TopK,
    reported,
)
from mixtral_rag.console import plain, print_json, say
from mixtral_rag.errors import MissingExtraError
from mixtral_rag.settings import load_settings

app = typer.Typer(help="API keys of the server.")
_KEY_VARIABLE = "MIXTRAL_RAG_SERVER_KEY"


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; other machines need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.")] = 8000,
    store: Store = None,
    model: Model = None,
    engine: Engine = None,
    base_url: BaseUrl = None,
    tokenizer: TokenizerPath = None,
    adapter: Adapter = None,
    quantization: Quantization = None,
    embedder: Embedder = None,
    reading: Reading = None,
    top_k: TopK = None,
    context_tokens: ContextTokens = None,
    n_ctx: NCtx = None,
    n_gpu_layers: NGpuLayers = None,
    n_threads: NThreads = None,
    kv_type: KvType = None,
    kv_folder: KvFolder = None,
    kv_bytes: KvBytes = None,
    kv_memory: KvMemory = None,
    parallel: Annotated[
        int | None, typer.Option(help="Answers computed together, llama.cpp.  [default: 8]")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest answer unless a request says.  [default: 1024]")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Unless a request says.  [default: 0 from documents, else 0.2]"),
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A name this server is reached by; may be repeated.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="A page of another host that may call; repeatable.")
    ] = None,
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Serve other machines without a key.")
    ] = False,
    max_upload_mb: Annotated[int, typer.Option(help="Largest file to take, MB.")] = 512,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait for the model.")] = 64,
    stop_seconds: Annotated[
        float, typer.Option(help="How long answers may go on when it is stopped.")
    ] = 30.0,
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Load the model with the first question.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every request.")] = False,
) -> None:
    """Serve a page for the browser, and OpenAI's API over model and documents."""
    own = ("host", "port", "allowed_host", "cors_origin", "without_key", "max_upload_mb",
           "max_waiting", "stop_seconds", "lazy", "verbose")  # fmt: skip
    flags: dict[str, Any] = {k: v for k, v in locals().items() if k not in own and k != "own"}
    with reported():
        _need_server()
        from mixtral_rag.server.app import create_app
        from mixtral_rag.server.options import ServerOptions
        from mixtral_rag.server.serving import listen
        from mixtral_rag.server.serving import serve as run

        options = ServerOptions(
            host=host, port=port, allowed_hosts=tuple(allowed_host or ()),
            cors_origins=tuple(cors_origin or ()), without_key=without_key, preload=not lazy,
            upload_bytes=max_upload_mb << 20, most_waiting=max_waiting, stop_seconds=stop_seconds,
        )  # fmt: skip
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("mixtral_rag.server").setLevel("INFO" if verbose else "WARNING")
        application = create_app(load_settings(flags), options, _keys())
        sockets = listen(options)
        _greet(application.state.service, options)
        run(application, sockets)


def mcp(
    store: Store = None,
    model: Model = None,
    engine: Engine = None,
    base_url: BaseUrl = None,
    tokenizer: TokenizerPath = None,
    embedder: Embedder = None,
    reading: Reading = None,
    top_k: TopK = None,
    context_tokens: ContextTokens = None,
    n_ctx: NCtx = None,
    kv_folder: KvFolder = None,
    kv_bytes: KvBytes = None,
    max_tokens: MaxTokens = None,
) -> None:
    """Give search and answers to an assistant, over the Model Context Protocol (stdio)."""
    flags: dict[str, Any] = dict(locals())
    with reported():
        _need_server()
        from mixtral_rag.server.mcp import create_mcp

        logging.basicConfig(level=logging.WARNING)  # to standard error; the protocol has the other
        create_mcp(load_settings(flags)).run("stdio")


def _need_server() -> None:
    for name in ("fastapi", "prometheus_client", "sse_starlette", "uvicorn", "mcp"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, "server")


def _greet(service: Any, options: Any) -> None:
    shown = f"[{options.host}]" if ":" in options.host else options.host
    answers = service.name or "no model: documents can only be searched"
    if service.is_demo:
        answers += " (a demonstration model, too small to trust)"
    say(f"Model: {answers}", file=sys.stderr)
    say(f"Page:  http://{shown}:{options.port}/", file=sys.stderr)
    say(f"API:   http://{shown}:{options.port}/v1", file=sys.stderr)


def _keys() -> Any:
    from mixtral_rag.server.keys import Keys

    # Taken out of the environment, where processes that read documents would have it.
    return Keys(_key_file(), extra=os.environ.pop(_KEY_VARIABLE, None))


def _key_file() -> Path:
    return Path(platformdirs.user_data_dir("mixtral_rag")) / "server-keys.json"


@app.command("add")
def add(name: Annotated[str, typer.Argument(help="Who or what it is for.")]) -> None:
    """Make a key and show it; it is shown only now."""
    with reported():
        print(_keys().add(name))
        say("Only its hash is kept; put it where it is needed now.", file=sys.stderr)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Names of the keys, and since when there are."""
    with reported():
        keys = [k for k in _keys().all() if k.made_at]
        if as_json:
            print_json([{"name": k.name, "made_at": k.made_at} for k in keys])
            return
        for key in keys:
            made = datetime.fromtimestamp(key.made_at).astimezone()
            print(plain(f"{made:%Y-%m-%d %H:%M}  {key.name}"))
        if not keys:
            say("There are none; a server for this machine alone needs none.", file=sys.stderr)


@app.command("remove")
def remove(name: Annotated[str, typer.Argument(help="As `keys list` shows it.")]) -> None:
    """Forget a key; a server that runs refuses it at once."""
    with reported():
        _keys().remove(name)
