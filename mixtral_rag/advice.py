"""What would make things better here, one line each, and only where it applies."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixtral_rag.doctor import Diagnosis
    from mixtral_rag.speed import Speed
    from mixtral_rag.weights.inspect import ModelReport

_REBUILD = 'CMAKE_ARGS="{}" pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python'
_CPU = {"AVX2": "AVX2", "AVX-512": "AVX512", "NEON": "NEON"}  # ours: llama.cpp's spelling
_SLOW_DISK = 200e6  # bytes a second; an SSD gives at least twice that
_LITTLE_DISK = 2e9
_PATIENCE = 60.0  # seconds to wait for the first word


def advice(
    diagnosis: "Diagnosis", *, n_threads: int | None = None, n_gpu_layers: int = -1
) -> Iterator[str]:
    """Lines that apply to `diagnosis`, with the settings the model runs with."""
    yield from _build(diagnosis, n_gpu_layers)
    if diagnosis.model is not None:
        yield from _model(diagnosis, diagnosis.model)
        yield from _memory(diagnosis, diagnosis.model, n_gpu_layers)
    if n_threads is not None and n_threads > diagnosis.machine.n_cpus:
        yield (
            f"{n_threads} threads are more than the {diagnosis.machine.n_cpus} cores this process "
            "may use, and llama.cpp's threads wait for each other; leave out --n-threads"
        )
    if diagnosis.speed is not None and diagnosis.model is not None:
        yield from _busy(diagnosis.speed, diagnosis.machine.n_cpus)
        yield from _speed(diagnosis.speed, diagnosis.model)
    if 0 < diagnosis.store.disk_free < _LITTLE_DISK:
        yield (
            f"only {diagnosis.store.disk_free / 1e9:.1f} GB of disk are free for the store at "
            f"{diagnosis.store.path}; free some, or choose another folder with --store"
        )


def _build(diagnosis: "Diagnosis", n_gpu_layers: int) -> Iterator[str]:
    llama, gpus = diagnosis.llama, diagnosis.machine.gpus
    if llama is None:
        return
    if gpus and not llama.has_gpu:
        if gpus[0].kind == "Metal":
            flag, needs = "-DGGML_METAL=on", ""
        else:
            flag, needs = "-DGGML_CUDA=on", " (with the CUDA toolkit installed)"
        yield (
            f"llama.cpp was built without the {gpus[0].name} of this machine; build it again"
            f"{needs}: {_REBUILD.format(flag)}"
        )
    elif gpus and n_gpu_layers == 0:
        yield f"the {gpus[0].name} is not used, for n_gpu_layers is 0; leave out --n-gpu-layers"
    elif llama.has_gpu and not gpus:
        yield (
            "llama.cpp was built for a GPU and none is seen; look at the driver, or at what the "
            "container is given"
        )
    missing = [
        name
        for name, theirs in _CPU.items()
        if name in diagnosis.machine.cpu_features and theirs not in llama.cpu_features
    ]
    if missing:
        yield (
            f"llama.cpp was built without {' and '.join(missing)}, which this processor has; build "
            f"it again: {_REBUILD.format('-DGGML_NATIVE=on')}"
        )


def _model(diagnosis: "Diagnosis", model: "ModelReport") -> Iterator[str]:
    if diagnosis.is_demonstration:
        yield (
            "the model is SmolLM2-135M, for trying the plumbing; for real answers: "
            "mixtral-rag pull chinese-mixtral-instruct"
        )
    if not model.is_instruct:
        yield (
            f"{model.path.name} seems to be a base model, which continues texts; questions need "
            "an Instruct model"
        )
    if model.context_length and model.n_ctx > model.context_length:
        yield (
            f"n_ctx is {model.n_ctx:,} and the model was trained for {model.context_length:,}; "
            "answers that need more than that get worse"
        )


def _memory(diagnosis: "Diagnosis", model: "ModelReport", n_gpu_layers: int) -> Iterator[str]:
    memory, needed = diagnosis.machine.memory, model.needed_bytes
    if needed is None:
        return
    uses_gpu = bool(
        diagnosis.machine.gpus
        and diagnosis.llama is not None
        and diagnosis.llama.has_gpu
        and n_gpu_layers != 0
    )
    free = sum(g.free_bytes for g in diagnosis.machine.gpus) if uses_gpu else memory.available
    where = "GPU memory" if uses_gpu else "memory"
    if needed > free and (uses_gpu or needed <= memory.total):
        ways = ["choose a smaller quantisation"]
        if model.kv_type in ("f16", "bf16", "f32"):
            ways.append("use --kv-type q8_0 (about half of the KV cache)")
        if model.n_ctx > 4096:
            ways.append("use a smaller --n-ctx")
        ways.append("put fewer layers on it with --n-gpu-layers" if uses_gpu else "close programs")
        yield (
            f"the model needs {needed / 1e9:.1f} GB of {where} and {free / 1e9:.1f} GB are free; "
            + ", ".join(ways[:-1])
            + f" or {ways[-1]}"
        )
    if memory.swap_used > 1e9 and memory.available < 0.1 * memory.total:
        yield (
            f"{memory.swap_used / 1e9:.1f} GB are swapped out to disk, which makes all slow; close "
            "programs"
        )


def _busy(speed: "Speed", n_cpus: int) -> Iterator[str]:
    if speed.others_cores > 0.2 * n_cpus:
        yield (
            f"other programs used {speed.others_cores:.1f} of the {n_cpus} cores while the speed "
            "was measured, which can slow a model down ten times; measure again when they rest"
        )


def _speed(speed: "Speed", model: "ModelReport") -> Iterator[str]:
    rate = model.file_bytes / speed.load_seconds if speed.load_seconds else _SLOW_DISK
    if speed.load_seconds > 10 and rate < _SLOW_DISK:
        yield (
            f"the model was read at {rate / 1e6:.0f} MB/s and took {speed.load_seconds:.0f} s to "
            "load; a file on a local SSD loads faster"
        )
    if speed.predicted(4096, 0).first_token_seconds > _PATIENCE:
        fits = max((n for n in range(256, 4097, 256) if _first(speed, n) <= _PATIENCE), default=0)
        budget = f"--context-tokens {fits}" if fits else "a smaller --context-tokens"
        yield (
            f"a prompt of 4,096 tokens takes {_first(speed, 4096):.0f} s before the first word; "
            f"{budget} or a GPU shortens the wait"
        )


def _first(speed: "Speed", prompt_tokens: int) -> float:
    return speed.predicted(prompt_tokens, 0).first_token_seconds
