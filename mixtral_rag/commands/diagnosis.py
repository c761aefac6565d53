"""What `doctor` prints: facts, estimates, advice, and what is still missing."""

import dataclasses
from typing import TYPE_CHECKING, Any

from mixtral_rag.console import duration, many, plain, say, size
from mixtral_rag.translation import listed, padded, translated

if TYPE_CHECKING:
    from mixtral_rag.doctor import Diagnosis


def diagnosis_json(diagnosis: "Diagnosis") -> dict[str, Any]:
    """The whole diagnosis for programs; `ok` is what the exit code says."""
    facts = dataclasses.asdict(diagnosis)
    facts["ok"] = not diagnosis.problems
    if diagnosis.speed is not None:
        facts["speed"] |= {
            "prefill_tokens_per_s": diagnosis.speed.prefill_rate(),
            "decode_tokens_per_s": diagnosis.speed.decode_rate(),
        }
    return facts


def print_diagnosis(diagnosis: "Diagnosis") -> None:
    """Facts, one a line, then what is wrong and what would help."""
    for name, value in {**_machine_facts(diagnosis), **_model_facts(diagnosis)}.items():
        print(plain(padded(translated(name), 14) + translated(value)))
    if diagnosis.estimates:
        say("\nA question with an answer of 256 tokens, estimated:")
        for e in diagnosis.estimates:
            note = "" if e.fits else "  (longer than this model's window)"
            say(
                f"{e.prompt_tokens:>8,} prompt tokens: first word after "
                f"{duration(e.first_token_seconds)}, done after {duration(e.total_seconds)}{note}"
            )
        say(_how_estimated(diagnosis))
    if diagnosis.advice:
        say("\nAdvice:")
        for line in diagnosis.advice:
            print(plain(f"- {translated(line)}"))
    if diagnosis.problems:
        say("\nNo question can be answered yet:")
        for line in diagnosis.problems:
            print(plain(f"- {translated(line)}"))
    else:
        say("\nAll is well: questions can be answered.")


def _machine_facts(diagnosis: "Diagnosis") -> dict[str, str]:
    here, llama, store = diagnosis.machine, diagnosis.llama, diagnosis.store
    used = llama is not None and llama.has_gpu
    gpus = [
        f"{g.name} ({g.kind}, {size(g.free_bytes)} of {size(g.memory_bytes)} free), "
        + ("used by llama.cpp" if used else "not used by llama.cpp")
        for g in here.gpus
    ]
    limit = ", the container's limit" if here.memory.limit else ""
    swap = f", {size(here.memory.swap_used)} swapped out" if here.memory.swap_used else ""
    installed = [f"{name} {number}" for name, number in diagnosis.packages.items() if number]
    absent = [name for name, number in diagnosis.packages.items() if not number]
    documents, passages = many(store.n_documents, "document"), many(store.n_passages, "passage")
    free = size(store.disk_free)
    features = ", ".join(here.cpu_features) or "no vector instructions"
    return {
        "system": here.system,
        "processor": listed([here.cpu, many(here.n_cpus, "usable core"), features]),
        "memory": f"{size(here.memory.available)} of {size(here.memory.total)} available"
        f"{limit}{swap}",
        "GPU": "; ".join(map(translated, gpus)) or "none seen",
        "installed": ", ".join(installed),
        "not installed": ", ".join(absent) or "nothing is missing",
        "llama.cpp": "none"
        if llama is None
        else f"{', '.join(llama.backends)}; {', '.join(llama.cpu_features)}; "
        f"{'with' if llama.has_gpu else 'without'} GPU",
        "store": f"{store.path}: {documents}, {passages}, {free} of disk free"
        if store.exists
        else f"{store.path}: none yet, {free} of disk free",
    }


def _model_facts(diagnosis: "Diagnosis") -> dict[str, str]:
    facts: dict[str, str] = {}
    if diagnosis.models_on_disk:
        facts["pulled"] = ", ".join(diagnosis.models_on_disk)
    report, speed = diagnosis.model, diagnosis.speed
    if report is None:
        return facts | {"model": "none"}
    demonstration = " (the demonstration model)" if diagnosis.is_demonstration else ""
    template = "its own chat template" if report.has_chat_template else "no chat template"
    prompts = ["Mixtral"] if report.is_mixtral else []
    prompts.append("instruct" if report.is_instruct else "base")
    prompts.append("[INST] format" if report.is_mixtral else template)
    prompts.append(f"{report.tokenizer} vocabulary of {report.vocabulary_size:,}")
    facts |= {
        "model": f"{report.path}{demonstration}",
        "health": report.problem
        or f"complete, {report.layout}, {report.bits_per_weight:.2f} bits a weight"
        + (", loads and generates" if diagnosis.generates else ""),
        "prompts": listed(prompts),
        "needs": "unknown"
        if report.needed_bytes is None
        else f"{size(report.needed_bytes)} with a window of {report.n_ctx:,} in {report.kv_type}",
    }
    if speed is None:
        facts["speed"] = f"not measured: {diagnosis.not_measured or 'it failed'}"
    else:
        when = "" if diagnosis.measured else ", measured before"
        facts["speed"] = (
            f"prompt {speed.prefill_rate():.1f} tokens/s (512 tokens), answer "
            f"{speed.decode_rate():.1f} tokens/s{when}"
        )
    return facts


def _how_estimated(diagnosis: "Diagnosis") -> str:
    speed = diagnosis.speed
    assert speed is not None
    slope = "a line fitted to" if speed.slopes_are_measured else "attention's share added to"
    return (
        "  A token after d others takes base + slope x d seconds, summed over prompt and answer: "
        f"{slope} what\n  was measured down to {speed.depth:,} tokens; deeper is extrapolated. "
        f"Prompt: {speed.prefill_base:.3g} + {speed.prefill_slope:.3g} d,\n  answer: "
        f"{speed.decode_base:.3g} + {speed.decode_slope:.3g} d. Loading the model "
        f"({duration(speed.load_seconds)}) comes on top, once."
    )
