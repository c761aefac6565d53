"""Figures of a bench: size against perplexity, and perplexity against context length."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtral_rag.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    from mixtral_rag.bench import BenchRow

_SUFFIXES = (".png", ".svg", ".pdf")
_DEFAULT = "DejaVu Sans"  # comes with matplotlib
_SANS = ("Sans", "Hei", "Gothic", "PingFang", "YaHei")  # easier to read in a figure than a serif


def check_plot(path: Path) -> None:
    """Before hours of measuring: is matplotlib here, and can it write such a file?

    Raises:
        MissingExtraError: matplotlib is not installed.
        SettingsError: the file's ending is not one of .png, .svg and .pdf.
    """
    try:
        import matplotlib  # noqa: F401, ICN001
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "bench") from error
    if path.suffix.lower() not in _SUFFIXES:
        raise SettingsError(f"a plot cannot be written as {path.name}; end it in .png, .svg, .pdf")


def plot(rows: Sequence[BenchRow], path: Path) -> list[str]:
    """Draw what was measured into `path`; return the labels of the files in the figure.

    File size against perplexity at the first context, and with two or more contexts perplexity
    against context length on a log2 axis, as the Chinese-Mixtral project's figures have them. One
    legend names the files of both; where no installed font can write one of the names, all are
    numbers, which the caller should explain.

    Raises:
        SettingsError: there is nothing to draw yet, or the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.perplexities]
    if not rows:
        raise SettingsError("no perplexity was measured, so there is nothing to draw")
    labels = [row.path.stem for row in rows]
    families = _fonts_for("".join(labels))
    if families is None:
        labels = [f"file {number}" for number in range(1, len(rows) + 1)]
    several = max(len(row.perplexities) for row in rows) > 1
    with rc_context({"font.family": families or [_DEFAULT]}):
        size = (11.5 if several else 6.5, 4.6 + 0.2 * -(-len(rows) // 2))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 2 if several else 1, squeeze=False)[0]
        points = _draw_sizes(axes[0], rows)
        if several:
            _draw_contexts(axes[1], rows)
        names = [
            f"{_short(label)}, {row.bits_per_weight:.2f} bits"
            for label, row in zip(labels, rows, strict=True)
        ]
        figure.legend(points, names, loc="outside lower center", ncols=2, fontsize=9)
        _save(figure, path)
    return labels


def _style(number: int) -> dict[str, str]:
    """Colour and marker of a file, the same in both figures."""
    return {"color": f"C{number % 10}", "marker": "osD^vPX"[number // 10 % 7]}


def _draw_sizes(axes: Any, rows: Sequence[BenchRow]) -> list[Any]:
    """One point with its standard error a file; returns them for the legend."""
    points = []
    for number, row in enumerate(rows):
        found = row.perplexities[0]
        points.append(
            axes.errorbar(
                row.file_bytes / 1e9,
                found.value,
                yerr=found.error,
                capsize=3,
                linestyle="none",
                **_style(number),
            )
        )
    axes.margins(0.1, 0.1)
    axes.set_xlabel("file size (GB)")
    axes.set_ylabel(f"perplexity, context {rows[0].perplexities[0].n_ctx:,}")
    axes.set_title("Size and perplexity")
    axes.grid(alpha=0.3)
    return points


def _draw_contexts(axes: Any, rows: Sequence[BenchRow]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for number, row in enumerate(rows):
        style = _style(number)
        found = sorted(row.perplexities, key=lambda p: p.n_ctx)
        axes.plot([p.n_ctx for p in found], [p.value for p in found], "-", **style)
        beyond = [p for p in found if row.is_beyond(p.n_ctx)]
        hollow = {"linestyle": "none", "mfc": "white", **style}
        axes.plot([p.n_ctx for p in beyond], [p.value for p in beyond], **hollow)
    axes.set_xscale("log", base=2)
    ticks = sorted({p.n_ctx for row in rows for p in row.perplexities})
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda n, _: f"{n / 1024:g}K" if n >= 1024 else f"{n:g}")
    )
    some_beyond = any(row.is_beyond(p.n_ctx) for row in rows for p in row.perplexities)
    axes.set_xlabel(f"context (tokens{'; hollow: beyond training' if some_beyond else ''})")
    axes.set_ylabel("perplexity")
    axes.set_title("Context and perplexity")
    axes.grid(alpha=0.3)


def _short(label: str, most: int = 44) -> str:
    """A label that is not too long, and that matplotlib takes for plain text."""
    if len(label) > most:
        label = f"{label[: most // 2 - 1]}...{label[-most // 2 + 2 :]}"
    return label.lstrip("_").replace("$", r"\$") or "model"


def _fonts_for(text: str) -> list[str] | None:
    """Font families that have every character of `text` between them; None where none has."""
    from matplotlib.font_manager import fontManager, get_font

    def characters(file: str) -> Mapping[int, int]:
        try:
            found: Mapping[int, int] = get_font(file).get_charmap()
        except (OSError, RuntimeError):  # a font file that went away or is damaged
            return {}
        # Matplotlib's own last resort "has" every character, as the same few boxes.
        return found if found.get(ord("a")) != found.get(ord("b")) else {}

    missing = {ord(c) for c in text} - characters(fontManager.findfont(_DEFAULT)).keys()
    if not missing:
        return [_DEFAULT]
    fonts = sorted(
        fontManager.ttflist,
        key=lambda f: (not any(w in f.name for w in _SANS), f.style != "normal", f.name),
    )
    seen: set[str] = set()
    for font in fonts:
        if font.name not in seen and missing <= characters(font.fname).keys():
            return [_DEFAULT, str(font.name)]
        seen.add(font.name)
    return None


def _save(figure: Any, path: Path) -> None:
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        figure.savefig(partial, dpi=150)
        partial.replace(path)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
