"""Commands that measure: doctor, bench."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixtral_rag.commands.diagnosis import diagnosis_json, print_diagnosis
from mixtral_rag.commands.shared import (
    AsJson,
    Embedder,
    KvType,
    Model,
    NCtx,
    NGpuLayers,
    NThreads,
    Store,
    reported,
)
from mixtral_rag.console import plain, print_json, say, task_progress, warn
from mixtral_rag.errors import ModelNotFoundError, SettingsError
from mixtral_rag.settings import find_model, load_settings
from mixtral_rag.translation import translated
from mixtral_rag.weights.library import locate, pulled_models

if TYPE_CHECKING:
    from mixtral_rag.bench import BenchRow

Seconds = Annotated[float, typer.Option(min=0.1, help="Time for measuring a model's speed.")]


def doctor(
    model: Model = None,
    store: Store = None,
    embedder: Embedder = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not load the model; use what was measured before.")
    ] = False,
    seconds: Seconds = 20,
    n_ctx: NCtx = None,
    n_gpu_layers: NGpuLayers = None,
    n_threads: NThreads = None,
    kv_type: KvType = None,
    as_json: AsJson = False,
) -> None:
    """Check machine, engines, store and model; measure the speed; give advice.

    The exit code is 0 when a question can be answered and 1 when not.
    """
    names = ("model", "store", "embedder", "n_ctx", "n_gpu_layers", "n_threads", "kv_type")
    flags = {name: value for name, value in locals().items() if name in names}
    with reported():
        settings = load_settings(flags)
        from mixtral_rag.doctor import diagnose

        why = ""
        try:
            file, is_demonstration = find_model(settings)
        except ModelNotFoundError as error:
            file, is_demonstration, why = None, False, str(error)
        options = settings.model_options()
        chosen = {k: options[k] for k in ("n_ctx", "n_gpu_layers", "n_threads", "kv_type")
                  if k in options}  # fmt: skip
        with task_progress("measuring") as on_progress:
            diagnosis = diagnose(
                model=file,
                is_demonstration=is_demonstration,
                why_no_model=why,
                store=settings.store,
                embedder=settings.embedder,
                models_on_disk=[m.title for m in pulled_models(settings.models)],
                measure=not quick,
                seconds=seconds,
                on_progress=lambda share: on_progress("measuring the model", share, 1),
                **chosen,
            )
        if as_json:
            print_json(diagnosis_json(diagnosis))
        else:
            print_diagnosis(diagnosis)
        if diagnosis.problems:
            raise typer.Exit(1)


def bench(
    files: Annotated[list[str], typer.Argument(help="GGUF files, or names of pulled models.")],
    text: Annotated[Path, typer.Option(help="UTF-8 text to predict, for the perplexity.")],
    n_ctx: Annotated[
        int | None, typer.Option(help="Window for the perplexity, in tokens.  [default: 4096]")
    ] = None,
    contexts: Annotated[
        str | None, typer.Option(help="More windows, such as 4096,8192,16384.")
    ] = None,
    n_chunks: Annotated[
        int | None, typer.Option(help="Windows of the text to score.  [default: all]")
    ] = None,
    seconds: Seconds = 20,
    n_gpu_layers: NGpuLayers = None,
    n_threads: NThreads = None,
    kv_type: KvType = None,
    csv: Annotated[Path | None, typer.Option(help="Write the rows to this CSV file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw them to this .png, .svg or .pdf file.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace CSV and plot where they exist.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare model files: size, perplexity and speed on this machine.

    Perplexity is what llama.cpp's own tool gives. Ctrl-C keeps what was finished.
    """
    flags = {"n_gpu_layers": n_gpu_layers, "n_threads": n_threads, "kv_type": kv_type}
    with reported():
        settings = load_settings(flags)
        options, pulled = settings.model_options(), settings.models
        chosen = {k: options[k] for k in flags if k in options}
        csv, plot = _writable(csv, replace), _writable(plot, replace)
        if plot is not None:
            from mixtral_rag.bench_plot import check_plot

            check_plot(plot)
        from mixtral_rag.bench import bench

        rows: dict[Path, BenchRow] = {}
        is_whole = True
        try:
            with task_progress("reading") as on_progress:
                for row in bench(
                    [locate(file, pulled) for file in files],
                    _read(text.expanduser()),
                    contexts=_contexts(n_ctx, contexts),
                    n_chunks=n_chunks,
                    seconds=seconds,
                    on_progress=on_progress,
                    **chosen,
                ):
                    rows[row.path] = row
        except KeyboardInterrupt:
            is_whole = False
        _show(list(rows.values()), csv, plot, as_json=as_json)
        if not is_whole:
            warn("interrupted; this is what was finished")
            raise typer.Exit(130)


# --- bench: reading and showing ----------------------------------------------------------------


def _contexts(n_ctx: int | None, more: str | None) -> list[int]:
    try:
        listed = [int(word) for word in (more or "").replace(" ", "").split(",") if word]
    except ValueError:
        raise SettingsError(f"--contexts is {more!r}; give numbers such as 4096,8192") from None
    first = [n_ctx] if n_ctx is not None else ([] if listed else [4096])
    return list(dict.fromkeys(first + listed))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise SettingsError(f"cannot read the text {path}: {error.strerror}") from None


def _writable(path: Path | None, replace: bool) -> Path | None:
    """The path to write to, checked before hours of work."""
    if path is None:
        return None
    path = path.expanduser()
    if path.exists() and not (replace and path.is_file()):
        raise SettingsError(f"{path} exists already; choose another name, or use --replace")
    if not path.parent.is_dir():
        raise SettingsError(f"there is no folder {path.parent} to write {path.name} to")
    return path


def _show(
    rows: "Sequence[BenchRow]", csv: Path | None, plot: Path | None, *, as_json: bool
) -> None:
    if as_json:
        print_json({"rows": [dataclasses.asdict(row) for row in rows]})
    elif rows:
        _print_rows(rows)
    where = sys.stderr if as_json else sys.stdout
    if csv is not None and rows:
        from mixtral_rag.bench import write_csv

        write_csv(rows, csv)
        say(f"Wrote {csv}", file=where)
    if plot is not None and any(row.perplexities for row in rows):
        from mixtral_rag.bench_plot import plot as draw

        drawn = [row for row in rows if row.perplexities]
        labels = draw(rows, plot)
        say(f"Wrote {plot}", file=where)
        for label, row in zip(labels, drawn, strict=True):
            if label != row.path.stem:  # no font here has these characters
                print(plain(f"  {label}: {row.path.name}"), file=where)


def _print_rows(rows: "Sequence[BenchRow]") -> None:
    """The table of files, and with several contexts one of perplexity by context."""
    contexts = list(dict.fromkeys(p.n_ctx for row in rows for p in row.perplexities))
    first = contexts[0] if contexts else 4096
    cells = []
    for row in rows:
        sizes = [row.path.name, f"{row.file_bytes / 1e9:.2f}", f"{row.bits_per_weight:.2f}"]
        speed = [f"{row.decode_milliseconds:.1f}", f"{row.prefill_rate:.1f}"]
        cells.append([*sizes, _score(row, first, with_error=True), *speed])
    _print_table(["File", "GB", "Bits", f"PPL {_ctx(first)}", "ms/token", "Prefill/s"], cells)
    if len(contexts) > 1:
        say("\nPerplexity by context:")
        contexts.sort()
        cells = [[row.path.name, *(_score(row, n) for n in contexts)] for row in rows]
        _print_table(["File", *map(_ctx, contexts)], cells)
    if any(row.is_beyond(n) for row in rows for n in contexts):
        say("* beyond the context the model was trained for")
    if len({row.vocabulary_size for row in rows}) > 1:
        say("The models have different vocabularies: their perplexities cannot be compared.")


def _score(row: "BenchRow", n_ctx: int, *, with_error: bool = False) -> str:
    for found in row.perplexities:
        if found.n_ctx == n_ctx:
            error = f" ±{_number(found.error)}" if with_error else ""
            return f"{_number(found.value)}{error}{'*' if row.is_beyond(n_ctx) else ''}"
    return "-"


def _number(value: float) -> str:
    return f"{value:.4f}" if value < 1e4 else f"{value:.3e}"  # a model of noise has millions


def _ctx(n: int) -> str:
    return f"{n // 1024}K" if n % 1024 == 0 else str(n)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column(translated(columns[0]), overflow="fold", min_width=12)
    for name in columns[1:]:
        table.add_column(translated(name), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console().print(table)
