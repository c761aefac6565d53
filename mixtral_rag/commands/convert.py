"""Commands that make model files: merge, convert, quantize."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mixtral_rag.commands.shared import Models, NThreads, reported
from mixtral_rag.console import byte_progress, many, say, size
from mixtral_rag.settings import load_settings
from mixtral_rag.weights.library import locate_weights

Replace = Annotated[bool, typer.Option("--replace", help="Overwrite an existing file.")]


def merge(
    base: Annotated[
        str, typer.Argument(help="Folder of full Hugging Face weights, or name of pulled ones.")
    ],
    lora: Annotated[
        list[str],
        typer.Argument(help="Folders of LoRA weights or pulled ones, merged in this order."),
    ],
    output: Annotated[Path, typer.Option(help="The new folder.")],
    dtype: Annotated[
        str | None, typer.Option(help="f32, f16 or bf16.  [default: as in the base]")
    ] = None,
    models: Models = None,
) -> None:
    """Merge LoRA weights into full weights, a few rows at a time."""
    from mixtral_rag.weights.merge import merge

    with reported():
        pulled = load_settings({"models": models}).models
        full = locate_weights(base, "full", pulled)
        adapters = [locate_weights(name, "lora", pulled) for name in lora]
    with reported(), byte_progress("merging") as on_progress:
        report = merge(
            full,
            adapters,
            output.expanduser(),
            dtype=dtype,
            on_progress=on_progress,
        )
    say(
        f"Wrote {report.path}: {many(report.n_tensors, 'tensor')}, "
        f"{report.n_changed:,} changed, {report.n_replaced:,} replaced."
    )
    say(f"Make a GGUF of it: mixtral-rag convert {shlex.quote(str(report.path))}")


def convert(
    folder: Annotated[
        str, typer.Argument(help="Folder of full Hugging Face weights, or name of pulled ones.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="The new file.  [default: FOLDER-TYPE.gguf]")
    ] = None,
    type: Annotated[
        str | None, typer.Option(help="f16, bf16, f32 or q8_0.  [default: as the weights are]")
    ] = None,
    replace: Replace = False,
    models: Models = None,
) -> None:
    """Make a GGUF file of full weights: Mixtral, Mistral or Llama."""
    from mixtral_rag.weights.convert import convert

    with reported():
        weights = locate_weights(folder, "full", load_settings({"models": models}).models)
    target = output.expanduser() if output else None
    if target is None and not Path(folder).expanduser().is_dir():  # beside the pulled ones: no
        target = Path(f"{folder}-{type}.gguf" if type else f"{folder}.gguf")
    with reported(), byte_progress("converting") as on_progress:
        path = convert(weights, target, type=type, replace=replace, on_progress=on_progress)
    say(f"Wrote {path} ({size(path.stat().st_size)}).")
    if type != "q8_0":
        say(f"Make it smaller: mixtral-rag quantize {shlex.quote(str(path))} --type Q4_K_M")


def quantize(
    file: Annotated[Path, typer.Argument(help="A GGUF file in f32, f16 or bf16.")],
    type: Annotated[str, typer.Option(help="Such as Q4_K_M, Q5_K_M, Q6_K, Q8_0, IQ4_XS.")],
    output: Annotated[
        Path | None, typer.Option(help="The new file.  [default: FILE-TYPE.gguf]")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="Importance matrix made by llama-imatrix.")
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take a file that is quantised already.")
    ] = False,
    n_threads: NThreads = None,
    replace: Replace = False,
) -> None:
    """Make a GGUF file smaller, with llama.cpp's types."""
    from mixtral_rag.engines.llama_quantize import quantize

    with reported(), byte_progress("quantising") as on_progress:
        report = quantize(
            file.expanduser(),
            output.expanduser() if output else None,
            type=type,
            imatrix=imatrix.expanduser() if imatrix else None,
            allow_requantize=allow_requantize,
            replace=replace,
            n_threads=n_threads,
            on_progress=on_progress,
        )
    say(
        f"Wrote {report.path}: {report.type}, {size(report.file_bytes)}, "
        f"{report.bits_per_weight:.2f} bits a weight."
    )
    say(f"Use it: mixtral-rag ask --model {shlex.quote(str(report.path))}")
