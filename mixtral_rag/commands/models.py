"""Commands about models: list, pull, inspect and upgrade them."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixtral_rag.commands.shared import AsJson, KvType, Models, NCtx, reported
from mixtral_rag.console import byte_progress, many, plain, print_json, say, size, warn
from mixtral_rag.settings import load_settings
from mixtral_rag.translation import padded, translated

if TYPE_CHECKING:
    from mixtral_rag.weights.inspect import ModelReport
    from mixtral_rag.weights.library import PulledModel


def models(
    models: Models = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare pulled files with their checksums.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the models there are, what is on disk, and what fits this machine's memory."""
    from mixtral_rag import machine
    from mixtral_rag.weights import catalog
    from mixtral_rag.weights.library import models_folder, pulled_models

    with reported():
        folder = load_settings({"models": models}).models or models_folder()
        pulled, memory = pulled_models(folder), machine.model_memory()
        if check:
            _check_pulled(pulled, folder)
            return
        if as_json:
            sizes = [
                dataclasses.asdict(q) | {"context": catalog.longest_context(q.n_bytes, memory)}
                for q in catalog.QUANTISATIONS
            ]
            known = [dataclasses.asdict(m) for m in catalog.MODELS]
            here = [dataclasses.asdict(m) | {"gguf": m.gguf} for m in pulled]
            print_json({"memory": memory, "models": known, "quantisations": sizes, "pulled": here})
            return
        _print_catalogue(memory)
        _print_pulled(pulled, folder)


def pull(
    name: Annotated[
        str, typer.Argument(help="A name of `mixtral-rag models`, or OWNER/REPOSITORY.")
    ],
    quant: Annotated[
        str | None,
        typer.Option(help="Quantisation, such as Q4_K.  [default: the best that fits the memory]"),
    ] = None,
    kind: Annotated[str, typer.Option(help="gguf, full (Hugging Face weights) or lora.")] = "gguf",
    hub: Annotated[str | None, typer.Option(help="hf or modelscope.  [default: hf]")] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="A mirror of the hub, such as https://hf-mirror.com."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit.  [default: the main branch]")
    ] = None,
    models: Models = None,
    connections: Annotated[int, typer.Option(min=1, max=64, help="Requests at a time.")] = 8,
) -> None:
    """Fetch a model from a hub; run again after an interruption, it goes on.

    Checksums are verified; a GGUF in the old expert layout is written in today's.
    """
    from mixtral_rag import machine
    from mixtral_rag.weights.pull import pull

    with reported():
        settings = load_settings({"models": models, "hub": hub, "endpoint": endpoint})
        try:
            with byte_progress("asking the hub") as show:
                model = pull(
                    name,
                    kind=kind,
                    quant=quant,
                    hub=settings.hub or "hf",
                    endpoint=settings.endpoint,
                    revision=revision,
                    folder=settings.models,
                    memory=machine.model_memory(),
                    n_connections=connections,
                    on_progress=lambda what, done, total: show(done, total, what),
                )
        except KeyboardInterrupt:
            say("\nStopped. What has arrived stays; run it again for the rest.")
            raise typer.Exit(130) from None
        say(f"{model.title}: {size(model.n_bytes)} in {model.folder}")
        if model.variant == "lora":
            say(f"Merge it into full weights: mixtral-rag merge FULL {model.name} --output DIR")
        if model.variant == "full":
            say(f"Make a GGUF of it: mixtral-rag convert {model.name}")
        if model.gguf is None:
            return
        say(f"Use it: mixtral-rag ask --model {shlex.quote(model.title)}")
        from mixtral_rag.weights.inspect import inspect

        if problem := inspect(model.gguf).problem:
            warn(problem)


def inspect(
    file: Annotated[str, typer.Argument(help="A GGUF file, or the name of a pulled model.")],
    n_ctx: NCtx = None,
    kv_type: KvType = None,
    models: Models = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model file is, what memory it needs, and whether it runs here."""
    from mixtral_rag.weights.inspect import inspect
    from mixtral_rag.weights.library import locate

    with reported():
        path = locate(file, load_settings({"models": models}).models)
        report = inspect(path, n_ctx=n_ctx, kv_type=kv_type or "f16")
        if as_json:
            print_json(dataclasses.asdict(report) | {"problem": report.problem})
        else:
            _print_model(report)
        if report.problem:
            raise typer.Exit(1)


def upgrade(
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

    with reported(), byte_progress("upgrading") as on_progress:
        path = upgrade(file.expanduser(), output, replace=replace, on_progress=on_progress)
    say(f"Wrote {path} and compared it with the old file.")
    say(f"Use it: mixtral-rag ask --model {shlex.quote(str(path))}")


def _print_model(report: "ModelReport") -> None:
    """Facts of a model file, one a line."""
    experts = f"{report.n_experts} experts, {report.n_experts_used} active, {report.layout}"
    kind = "instruct" if report.is_instruct else "base"
    facts = {
        "name": report.name,
        "kind": f"{report.architecture}, {'Mixtral, ' if report.is_mixtral else ''}{kind}",
        "experts": experts if report.n_experts else "none",
        "weights": f"{report.n_weights / 1e9:.2f} billion, {report.bits_per_weight:.2f} bits each",
        "tensors": ", ".join(f"{n} {name}" for name, n in report.types.items()),
        "context": f"{report.context_length:,} tokens, RoPE base {report.rope_base or 0:,.0f}",
        "vocabulary": f"{report.vocabulary_size:,} tokens, {report.tokenizer}, "
        f"{'with' if report.has_chat_template else 'no'} chat template",
        "file": size(report.file_bytes),
        "KV cache": "unknown"
        if report.kv_bytes is None
        else f"{size(report.kv_bytes)} for {report.n_ctx:,} tokens in {report.kv_type}",
        "memory": "unknown"
        if report.needed_bytes is None
        else f"{size(report.needed_bytes)} of {size(report.memory_bytes)}",
        "runs here": report.problem or "yes",
    }
    for name, value in facts.items():
        print(plain(padded(translated(name), 12) + translated(value)))


def _print_catalogue(memory: int) -> None:
    """Upstream's table, with the memory each takes and what this machine can do with it."""
    from rich.console import Console
    from rich.table import Table

    from mixtral_rag.weights import catalog

    named = Table(box=None, pad_edge=False)
    for column in ("Model", "About", "Published as"):
        named.add_column(translated(column))
    for model in catalog.MODELS:
        forms = [
            f.kind + (f" ({f.n_bytes / 1e9:.0f} GB)" if f.n_bytes else "") for f in model.forms
        ]
        named.add_row(model.name, translated(model.about), ", ".join(forms))
    table = Table(box=None, pad_edge=False)
    for column in ("Quantisation", "Size", "Bits", "Perplexity", "Memory at 32K", "Fits here"):
        table.add_column(
            translated(column), justify="left" if column == "Quantisation" else "right"
        )
    for row in catalog.QUANTISATIONS:
        context = catalog.longest_context(row.n_bytes, memory)
        fits = "yes" if context == 32_768 else f"to {context // 1024}K" if context else "no"
        perplexity = "" if row.perplexity is None else f"{row.perplexity:.2f}"
        needed = size(catalog.needed_memory(row.n_bytes, 32_768))
        cells = (row.name, size(row.n_bytes), f"{row.bits_per_weight:.2f}", perplexity, needed)
        table.add_row(*cells, translated(fits))
    console = Console()
    console.print(named)
    console.print()
    console.print(table)
    say(f"\nThis machine has {size(memory)} of memory. Perplexity: Chinese-Mixtral at 4K context.")


def _print_pulled(pulled: "list[PulledModel]", folder: Path) -> None:
    if not pulled:
        say(f"No model in {folder} yet; fetch one: mixtral-rag pull chinese-mixtral-instruct")
        return
    from mixtral_rag.weights.library import best_pulled

    say(f"{many(len(pulled), 'model')} in {folder}:")
    for model in pulled:
        used = "  (answers `ask`)" if model is best_pulled(pulled) else ""
        say(f"  {model.title}  {size(model.n_bytes)}{used}")


def _check_pulled(pulled: "list[PulledModel]", folder: Path) -> None:
    """Say of each model whether it is intact; exit with 1 when one is not."""
    from mixtral_rag.weights.check import damaged_files

    if not pulled:
        say(f"No model in {folder} to check.")
    is_sound = True
    for model in pulled:
        with byte_progress("checking") as show:
            damaged = damaged_files(model, lambda what, done, total: show(done, total, what))
        say(f"{model.title}: {'damaged' if damaged else 'intact'}")
        for path in damaged:
            is_sound = False
            warn(f"{path} is damaged; remove it and pull the model again")
    if not is_sound:
        raise typer.Exit(1)
