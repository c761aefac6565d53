"""Commands about model files: inspect, upgrade."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixtral_rag.commands.shared import AsJson, KvType, NCtx, reported
from mixtral_rag.console import byte_progress, plain, print_json, size

if TYPE_CHECKING:
    from mixtral_rag.weights.inspect import ModelReport


def inspect(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    n_ctx: NCtx = None,
    kv_type: KvType = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model file is, what memory it needs, and whether it runs here."""
    from mixtral_rag.weights.inspect import inspect

    with reported():
        report = inspect(file.expanduser(), n_ctx=n_ctx, kv_type=kv_type or "f16")
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
    print(f"Wrote {path} and compared it with the old file.")
    print(f"Use it: mixtral-rag ask --model {shlex.quote(str(path))}")


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
        print(plain(f"{name:12}{value}"))
