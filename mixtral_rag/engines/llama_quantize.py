"""Quantise a GGUF file with llama.cpp, in a process of its own.

`llama_model_quantize` is one long C call that cannot be interrupted and ends the program when it
fails an assertion. In a child process both cost nothing: the child is killed, or its end is an
error.
"""

import difflib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mixtral_rag.engines.llama_library import refuse_old_layout
from mixtral_rag.engines.llamacpp import default_threads
from mixtral_rag.errors import MissingExtraError, ModelFileError, SettingsError
from mixtral_rag.weights.disk import Progress, check_room, made_whole
from mixtral_rag.weights.gguf import (
    GGML_TYPES,
    GGUFHeader,
    check_complete,
    read_header,
    refuse_split,
)
from mixtral_rag.weights.imatrix import read_imatrix

# Type names of llama.cpp's own tool and their file types (enum llama_ftype). Ternary types are left
# out: they are for models trained with three values.
QUANTIZE_TYPES = {
    "Q2_K": 10, "Q2_K_S": 21, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_0": 2, "Q4_1": 3,
    "Q4_K_S": 14, "Q4_K_M": 15, "Q5_0": 8, "Q5_1": 9, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
    "Q8_0": 7, "IQ1_S": 24, "IQ1_M": 31, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ2_S": 28, "IQ2_M": 29,
    "IQ3_XXS": 23, "IQ3_XS": 22, "IQ3_S": 26, "IQ3_M": 27, "IQ4_NL": 25, "IQ4_XS": 30,
    "MXFP4_MOE": 38, "F16": 1, "BF16": 32, "F32": 0,
}  # fmt: skip
_SHORT = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_FULL = ("F32", "F16", "BF16")
_HEADROOM = 8 << 20  # metadata and padding, which llama.cpp's forecast leaves out


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """What was written: the file, its type, its size and how many bits a weight takes."""

    path: Path
    type: str
    file_bytes: int
    bits_per_weight: float


def quantize(
    source: Path,
    target: Path | None = None,
    *,
    type: str,
    imatrix: Path | None = None,
    allow_requantize: bool = False,
    replace: bool = False,
    n_threads: int | None = None,
    on_progress: Progress = lambda done, total: None,
) -> QuantizeReport:
    """Write `source` in a smaller type.

    The new file appears whole or not at all.

    Args:
        source: a GGUF in f32, f16 or bf16.
        target: the new file; None puts the type into the name.
        type: a type of llama.cpp such as Q4_K_M; Q4_K means Q4_K_M.
        imatrix: importance matrix of this model, made by `llama-imatrix`; the smallest types need
            one and all gain by it.
        allow_requantize: take a source that is quantised already, which loses quality twice.
        replace: overwrite an existing target.
        n_threads: None takes the usable cores.
        on_progress: gets bytes of the source done and bytes to do.

    Raises:
        SettingsError: unknown type, one that needs an importance matrix, or n_threads below 1.
        ModelNotFoundError: there is no such file.
        ModelFileError: not a GGUF, truncated, split, quantised already, in the old expert layout,
            no room, the target exists, or llama.cpp failed or crashed.
        MissingExtraError: llama-cpp-python is not installed.
    """
    name = _type_name(type)
    if n_threads is not None and n_threads < 1:
        raise SettingsError(f"n_threads is {n_threads}; it must be at least 1")
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingExtraError("llama-cpp-python", "llamacpp")
    header = read_header(source)
    _check(header, allow_requantize)
    goal = target or source.with_name(f"{_stem(source)}-{name}.gguf")
    if goal.exists() and (not replace or goal.samefile(source)):
        raise ModelFileError(f"{goal} exists already; remove it or choose another name")
    if imatrix is not None:
        _check_imatrix(imatrix, header)
    job = {
        "source": str(source), "type": QUANTIZE_TYPES[name],
        "imatrix": imatrix and str(imatrix), "requantize": allow_requantize,
        "threads": n_threads or default_threads(),
    }  # fmt: skip
    _forecast(job, header, name, goal)
    with made_whole(goal) as partial:
        _work(job | {"target": str(partial)}, header, on_progress)
        _check_written(partial, header, QUANTIZE_TYPES[name])
    return _report(goal, name)


def _type_name(wanted: str) -> str:
    name = wanted.upper().replace("-", "_")
    name = _SHORT.get(name, name)
    if name not in QUANTIZE_TYPES:
        near = difflib.get_close_matches(name, QUANTIZE_TYPES, n=3, cutoff=0.5)
        choice = f"did you mean {' or '.join(near)}?" if near else "choose one of: "
        rest = "" if near else ", ".join(QUANTIZE_TYPES)
        raise SettingsError(f"unknown type {wanted!r}; {choice}{rest}")
    return name


def _stem(source: Path) -> str:
    """The file's name without its type, so that model-f16.gguf becomes model-Q4_K_M.gguf."""
    stem, dash, last = source.stem.rpartition("-")
    return stem if dash and last.upper() in _FULL else source.stem


def _check(header: GGUFHeader, allow_requantize: bool) -> None:
    check_complete(header)
    refuse_old_layout(header)
    refuse_split(header)
    types = {GGML_TYPES.get(t.type, (f"type {t.type}", 0, 0))[0] for t in header.tensors}
    quantised = sorted(types.difference(_FULL))
    if quantised and not allow_requantize:
        raise ModelFileError(
            f"{header.path} is quantised already ({', '.join(quantised)}); quantise the full "
            "weights instead, or accept the loss with --allow-requantize"
        )


def _check_imatrix(path: Path, header: GGUFHeader) -> None:
    known = {t.name for t in header.tensors}
    found = read_imatrix(path)
    if known.isdisjoint(found):
        raise ModelFileError(
            f"{path} belongs to another model: {header.path} has no {next(iter(found))}"
        )


def _forecast(job: dict[str, Any], header: GGUFHeader, name: str, goal: Path) -> None:
    """Let llama.cpp go through the tensors without computing: what it needs is known at once."""
    nothing = str(goal.with_name(f".{goal.name}.forecast"))  # it is not written to
    job = job | {"dry_run": True, "target": nothing}
    forecast = _work(job, header, lambda done, total: None)
    if forecast.get("needs_imatrix") and job["imatrix"] is None:
        raise SettingsError(
            f"{name} needs an importance matrix for this model; make one with llama.cpp's "
            "llama-imatrix and give it with --imatrix, or choose a larger type such as Q2_K"
        )
    check_room(goal, int(forecast.get("mib", 0) * (1 << 20)) + _HEADROOM)


def _work(job: dict[str, Any], header: GGUFHeader, on_progress: Progress) -> dict[str, Any]:
    """Run one job in a child process and return its last word."""
    sizes = {t.name: t.size or 0 for t in header.tensors}
    total, done, current = sum(sizes.values()), 0, 0
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        "from mixtral_rag.engines.llama_quantize_worker import main; main()"
    )
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-I", "-c", code, json.dumps(job)],
            stdin=subprocess.PIPE,  # it ends when this end is closed, whatever ends us
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C reaches us alone
        )
        try:
            for last in _messages(process):
                if "tensor" in last:
                    done, current = done + current, sizes.get(last["tensor"], 0)
                    on_progress(done, total)
            process.wait()
        finally:
            _kill(process)
        if last.get("code") != 0 or process.returncode != 0:
            raise ModelFileError(_reason(process.returncode, last, errors, header.path))
    on_progress(total, total)
    return last


def _messages(process: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        with suppress(json.JSONDecodeError):  # the last line of a child that crashed
            yield json.loads(line)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
    process.wait()


def _reason(code: int, last: dict[str, Any], errors: IO[bytes], source: Path) -> str:
    errors.seek(0)
    lines = errors.read().decode("utf-8", errors="replace").strip().split("\n")
    said = lines[0 if code < 0 else -1][:300]  # an assertion comes before its stack, Python's after
    if code < 0:
        with suppress(ValueError):
            said = f"{signal.Signals(-code).name}{': ' if said else ''}{said}"
        return f"llama.cpp crashed while quantising {source} ({said}); nothing was written"
    reason = last.get("error") or said or f"it ended with status {code}"
    return f"llama.cpp cannot quantise {source}: {reason}"


def _check_written(partial: Path, source: GGUFHeader, file_type: int) -> None:
    """The new file must hold every tensor of the old in its shape and say its type."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    header = read_header(partial)
    check_complete(header)
    found, wanted = ({t.name: t.shape for t in h.tensors} for h in (header, source))
    if found != wanted or header.metadata.get("general.file_type") != file_type:
        raise ModelFileError(f"{partial} is not what was asked of llama.cpp; nothing was kept")


def _report(path: Path, name: str) -> QuantizeReport:
    header = read_header(path)
    return QuantizeReport(path, name, header.file_size, header.bits_per_weight)
