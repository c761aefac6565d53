"""The row of a quantisation table for each model file: size, perplexity, speed on this machine."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mixtral_rag.engines import LARGEST_CTX
from mixtral_rag.engines.llama_measure import MeasuredModel
from mixtral_rag.engines.llama_perplexity import Perplexity, count_chunks, tokens_for_perplexity
from mixtral_rag.engines.llama_vocab import LlamaVocabulary
from mixtral_rag.errors import ModelFileError, SettingsError
from mixtral_rag.weights.gguf import read_header
from mixtral_rag.weights.inspect import ModelReport, inspect

Progress = Callable[[str, int, int], None]
_COLUMNS = (
    "file", "size_gb", "bits_per_weight", "n_ctx", "beyond_training", "perplexity",
    "standard_error", "n_scored", "decode_ms_per_token", "prefill_tokens_per_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BenchRow:
    """What was measured of one file. Contexts that were not reached are not in `perplexities`.

    Args:
        bits_per_weight: all tensor bytes over all weights.
        context_length: what the model was trained for; perplexity beyond it is an extrapolation.
        vocabulary_size: perplexities of models with different vocabularies cannot be compared.
        prefill_rate: prompt tokens a second over 512 tokens.
        decode_milliseconds: for one token of an answer after 512 tokens.
    """

    path: Path
    file_bytes: int
    bits_per_weight: float
    context_length: int
    vocabulary_size: int
    prefill_rate: float
    decode_milliseconds: float
    perplexities: tuple[Perplexity, ...] = ()

    def is_beyond(self, n_ctx: int) -> bool:
        """Whether a context is longer than the model was trained for."""
        return 0 < self.context_length < n_ctx


@dataclass(frozen=True, slots=True)
class _Job:
    report: ModelReport
    ids: list[int]
    chunks: dict[int, int]  # by context

    @property
    def n_tokens(self) -> int:
        return sum(n_ctx * n for n_ctx, n in self.chunks.items())


def bench(
    files: Sequence[Path],
    text: str,
    *,
    contexts: Sequence[int] = (4096,),
    n_chunks: int | None = None,
    kv_type: str = "f16",
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    seconds: float = 20.0,
    on_progress: Progress | None = None,
) -> Iterator[BenchRow]:
    """Measure each file; every file is checked, and the text counted, before the first is loaded.

    Yields a file's row when its speed is known, and again with every perplexity, so that whoever
    stops early has what was finished. One file is in memory at a time.

    Args:
        files: GGUF files.
        text: what to predict.
        contexts: window sizes in tokens, each at most 131,072.
        n_chunks: most windows of the text to score, None for all.
        kv_type: type of the KV cache.
        n_threads: threads, None for the usable cores.
        n_gpu_layers: layers on the GPU, -1 for all.
        seconds: time for measuring the speed of a file.
        on_progress: gets what is being done, tokens done and tokens in all.

    Raises:
        SettingsError: a context out of range, or a text too short for it.
        ModelError: a file that cannot be loaded here; the text says why.
    """
    jobs = [_job(path, text, contexts, n_chunks, kv_type) for path in dict.fromkeys(files)]
    options: dict[str, Any] = {
        "kv_type": kv_type,
        "n_threads": n_threads,
        "n_gpu_layers": n_gpu_layers,
    }
    return _run(jobs, options, seconds, on_progress or (lambda *_: None))


def _job(
    path: Path, text: str, contexts: Sequence[int], n_chunks: int | None, kv_type: str
) -> _Job:
    if max(contexts) > LARGEST_CTX:
        raise SettingsError(
            f"a context of {max(contexts):,} is too large; the most is {LARGEST_CTX:,}"
        )
    report = inspect(path, n_ctx=max(contexts), kv_type=kv_type)
    if report.problem:
        raise ModelFileError(f"{path}: {report.problem}")
    ids = tokens_for_perplexity(LlamaVocabulary(read_header(path)), text)
    chunks = {n_ctx: count_chunks(len(ids), n_ctx, n_chunks) for n_ctx in dict.fromkeys(contexts)}
    return _Job(report, ids[: max(n_ctx * n for n_ctx, n in chunks.items())], chunks)


def _run(
    jobs: Sequence[_Job], options: dict[str, Any], seconds: float, progress: Progress
) -> Iterator[BenchRow]:
    total, done = sum(job.n_tokens for job in jobs), 0
    for job in jobs:
        name = job.report.path.name
        progress(f"{name}: speed", done, total)
        with MeasuredModel(job.report.path, **options) as model:
            speed = model.speed(seconds=seconds)
            row = BenchRow(
                path=job.report.path,
                file_bytes=job.report.file_bytes,
                bits_per_weight=job.report.bits_per_weight,
                context_length=job.report.context_length,
                vocabulary_size=job.report.vocabulary_size,
                prefill_rate=speed.prefill_rate(),
                decode_milliseconds=1000 / speed.decode_rate(),
            )
            yield row
            for n_ctx, n_chunks in job.chunks.items():
                report = partial(_report, progress, f"{name}: context {n_ctx:,}", done, total)
                report(0, 0)
                found = model.perplexity(
                    job.ids,
                    n_ctx=n_ctx,
                    n_chunks=n_chunks,
                    on_progress=report,
                )
                done += n_ctx * n_chunks
                row = replace(row, perplexities=(*row.perplexities, found))
                yield row


def _report(progress: Progress, what: str, before: int, total: int, n: int, _: int) -> None:
    progress(what, before + n, total)


def write_csv(rows: Sequence[BenchRow], path: Path) -> None:
    """One line for each file and context, UTF-8; put in place only when whole.

    Raises:
        SettingsError: the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for row in rows:
                speed = (f"{row.decode_milliseconds:.2f}", f"{row.prefill_rate:.1f}")
                start = (row.path.name, f"{row.file_bytes / 1e9:.3f}", f"{row.bits_per_weight:.3f}")
                for p in row.perplexities:
                    beyond = "yes" if row.is_beyond(p.n_ctx) else "no"
                    scores = (f"{p.value:.4f}", f"{p.error:.5f}", p.n_scored)
                    writer.writerow((*start, p.n_ctx, beyond, *scores, *speed))
                if not row.perplexities:
                    writer.writerow((*start, "", "", "", "", "", *speed))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
