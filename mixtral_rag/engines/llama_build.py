"""What the installed build of llama.cpp can do on this machine."""

import functools
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from mixtral_rag.engines.llama_library import load


@dataclass(frozen=True, slots=True)
class LlamaBuild:
    """Version of llama-cpp-python and what its library was compiled with.

    Args:
        backends: what can compute, such as `CPU`, `CUDA`, `Metal`.
        cpu_features: instructions it uses on this processor, in llama.cpp's spelling.
        has_gpu: whether layers can be put on a GPU.
        identity: changes when the library is compiled again with other options.
    """

    version: str
    backends: tuple[str, ...]
    cpu_features: tuple[str, ...]
    has_gpu: bool
    identity: str


@functools.cache
def llama_build() -> LlamaBuild:
    """Look at the library; loads it, but no model.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        ModelError: it is installed, and its library cannot be loaded.
    """
    lib = load()
    info = lib.llama_print_system_info().decode("utf-8", errors="replace")
    backends: list[str] = []
    features: list[str] = []
    for part in info.split("|"):  # "CUDA : ARCHS = 900 | CPU : SSE3 = 1 | AVX2 = 1 | "
        name, colon, rest = part.partition(" : ")
        if colon:
            backends.append(name.strip())
        feature, _, value = (rest if colon else part).partition("=")
        if backends and backends[-1] == "CPU" and value.strip() == "1":
            features.append(feature.strip())
    try:
        number = version("llama-cpp-python")
    except PackageNotFoundError:  # a build of one's own, without metadata
        number = str(getattr(lib, "__version__", "unknown"))
    return LlamaBuild(
        version=number,
        backends=tuple(backends),
        cpu_features=tuple(features),
        has_gpu=bool(lib.llama_supports_gpu_offload()),
        identity=f"llama-cpp-python {number}: {info.strip()}",
    )
