"""What vLLM keeps of prompts beside the GPU's memory: its connector for offloading, set up."""

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mixtral_rag.errors import SettingsError

LEAST_MEMORY = 64 << 20
"""Bytes of `kv_memory` at least; one block of Mixtral-8x7B takes 2 MiB."""
STAGING = 4 << 30
"""Bytes of main memory that everything on its way to the disk passes through."""
_N_SAMPLES, _SAMPLE = 256, 4096  # of a file of weights, and bytes of each
_WEIGHTS = (".json", ".safetensors", ".bin", ".pt")


def offloading(kv_memory: int | None, folder: Path | None) -> dict[str, Any]:
    """The arguments of vLLM's `AsyncEngineArgs` for keeping prompts in main memory and on the disk.

    With a folder vLLM's tiered store takes them there too, where they outlive the process; vLLM
    removes nothing from it. See "KV Offloading Usage Guide" in vLLM's documentation.

    Args:
        kv_memory: bytes of main memory; None and 0 take `STAGING`.
        folder: where to keep blocks as files; None keeps none there.
    """
    extra: dict[str, Any] = {"cpu_bytes_to_use": kv_memory or STAGING}
    if folder is not None:
        tier = {"type": "fs", "root_dir": str(folder)}
        extra |= {"spec_name": "TieringOffloadingSpec", "secondary_tiers": [tier]}
    transfer = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }
    return {"kv_transfer_config": transfer}


def check_platform() -> None:
    """Offloading is between a GPU's memory and the rest.

    Raises:
        SettingsError: this vLLM runs on the CPU, or is too old.
    """
    from vllm import __version__
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        raise SettingsError(
            "kv_memory and kv_folder are for vLLM on a GPU; on the CPU its cache is in main memory "
            "already, as many GiB as VLLM_CPU_KVCACHE_SPACE says"
        )
    if importlib.util.find_spec("vllm.v1.kv_offload.tiering") is None:
        raise SettingsError(
            f"kv_memory and kv_folder need vLLM 0.25 or newer; this is {__version__}"
        )


def own_folder(root: str | Path, models: Iterable[Path], *options: object) -> Path:
    """Make the folder in `root` for one set of weights, readable by its owner only.

    vLLM tells its files apart by the model's path and the tokens: with other weights under the same
    path it would go on from what the former ones computed.

    Args:
        root: the folder of all.
        models: folders of the weights and of an adapter.
        options: what else decides the numbers.

    Raises:
        SettingsError: it cannot be made.
    """
    digest = hashlib.sha256(repr(options).encode())
    for model in models:
        for file in sorted(f for f in model.iterdir() if f.suffix in _WEIGHTS):
            _sample(file, digest)
    folder = Path(root).expanduser().absolute() / digest.hexdigest()[:32]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"cannot make kv_folder {folder}: {error.strerror}") from error
    return folder


def _sample(path: Path, digest: Any) -> None:
    """Add name, size, time and samples of a file; a whole hash of 93 GB takes minutes."""
    stat = path.stat()
    size = stat.st_size
    digest.update(f"{path.name} {size} {stat.st_mtime_ns} ".encode())
    with path.open("rb") as file:
        for i in range(_N_SAMPLES):
            file.seek(max(0, size - _SAMPLE) * i // (_N_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
