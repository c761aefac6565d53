"""What this machine offers: memory, processor, GPU and disk, within the limits of a container."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CGROUP, PROC = Path("/sys/fs/cgroup"), Path("/proc")
_UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2**63 for "no limit"
_PATIENCE = 5.0  # seconds nvidia-smi may take; a broken driver can hang it
# What Linux calls a feature and what people call it; those that llama.cpp has kernels for.
_FEATURES = {
    "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI", "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX", "amx_int8": "AMX INT8", "asimd": "NEON", "asimddp": "dot product",
    "i8mm": "I8MM", "bf16": "BF16", "sve": "SVE", "sve2": "SVE2", "sme": "SME",
}  # fmt: skip
_APPLE = {"FEAT_DotProd": "dot product", "FEAT_I8MM": "I8MM", "FEAT_BF16": "BF16",
          "FEAT_SME": "SME"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of memory.

    Args:
        total: what a process here may use at most; a container's limit where there is one.
        available: what is free or can be freed at once, such as cached files.
        limit: the container's limit, None without one.
        swap_used: bytes that were moved out to disk.
    """

    total: int
    available: int
    limit: int | None
    swap_used: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU; `kind` is `CUDA` or `Metal`. Metal shares the machine's memory."""

    name: str
    kind: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Processor, memory and GPUs; `n_cpus` is how many cores this process may use."""

    system: str
    cpu: str
    cpu_features: tuple[str, ...]
    n_cpus: int
    memory: Memory
    gpus: tuple[Gpu, ...]


def look() -> Machine:
    """Everything about this machine but its disks; takes a moment where there is an NVIDIA GPU."""
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_model(),
        cpu_features=cpu_features(),
        n_cpus=usable_cpus(),
        memory=memory(),
        gpus=gpus(),
    )


def memory() -> Memory:
    """Memory of this machine, or of the container this process runs in."""
    import psutil

    machine = psutil.virtual_memory()
    total, available, limit = int(machine.total), int(machine.available), None
    for folder, is_v2 in _control_groups("memory"):
        most = _number(folder / ("memory.max" if is_v2 else "memory.limit_in_bytes"))
        if most is None or most >= min(_UNLIMITED, machine.total):
            continue
        limit = most if limit is None else min(limit, most)
        available = min(available, max(0, most - _in_use(folder, is_v2=is_v2)))
    total = total if limit is None else min(total, limit)
    return Memory(total, min(available, total), limit, int(psutil.swap_memory().used))


def model_memory(needed: int | None = None) -> int:
    """Bytes that weights and KV cache may take: memory, and what CUDA GPUs have beside it.

    llama.cpp puts some layers on the GPU and leaves the rest in memory. The GPUs are asked, which
    takes a moment, unless memory alone has the `needed` bytes.
    """
    total = memory().total
    if needed is not None and needed <= total:
        return total
    return total + sum(gpu.memory_bytes for gpu in gpus() if gpu.kind == "CUDA")


def usable_cpus() -> int:
    """Cores this process may keep busy: its affinity, and its container's share of time.

    A share of one and a half cores counts as one: llama.cpp's threads wait for each other, so one
    that is held back holds back all.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    for folder, is_v2 in _control_groups("cpu"):
        if is_v2:
            quota, _, period = _text(folder / "cpu.max").partition(" ")
        else:
            quota = _text(folder / "cpu.cfs_quota_us")
            period = _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def others_cpu_seconds() -> float:
    """Processor time that other programs have had so far, or that the host kept from this machine.

    The difference of two calls, over the time between them, is how many cores were not ours.
    """
    import psutil

    times = psutil.cpu_times()._asdict()
    busy = sum(times.get(name, 0.0) for name in ("user", "system", "nice", "irq", "softirq",
                                                 "steal"))  # fmt: skip
    ours = psutil.Process().cpu_times()
    return float(busy - ours.user - ours.system)


def cpu_model() -> str:
    """Name of the processor."""
    if platform.system() == "Darwin":
        return _said("sysctl", "-n", "machdep.cpu.brand_string").strip() or platform.processor()
    for key in ("model name", "Model", "Hardware"):
        if name := _cpuinfo(key):
            return name
    return platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """The vector instructions that matter to a model on the processor, such as `AVX2`."""
    if platform.system() == "Darwin":
        if platform.machine() != "arm64":
            words = _said("sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features")
            named = {word.lower().replace(".", "_") for word in words.split()}
            return tuple(
                name for key, name in _FEATURES.items() if key in named or f"{key}_0" in named
            )
        lines = _said("sysctl", "hw.optional.arm").splitlines()
        seen = {line.split(":")[0].rsplit(".", 1)[-1] for line in lines if line.endswith(" 1")}
        return ("NEON", *(name for key, name in _APPLE.items() if key in seen))
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return tuple(name for flag, name in _FEATURES.items() if flag in flags)


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs as nvidia-smi names them, or the GPU of an Apple chip."""
    if platform.system() == "Darwin":
        if platform.machine() != "arm64":
            return ()
        shared = memory()
        return (Gpu(cpu_model(), "Metal", shared.total, shared.available),)
    fields = "name,memory.total,memory.free"
    out = _said("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    found = []
    for line in out.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 2)]
        if len(parts) == 3:
            sizes = [int(part) << 20 if part.isdecimal() else 0 for part in parts[1:]]
            found.append(Gpu(parts[0], "CUDA", *sizes))
    return tuple(found)


def disk_free(path: Path) -> int:
    """Bytes free where `path` is or would be made; 0 when that cannot be told."""
    for place in (path.absolute(), *path.absolute().parents):
        if place.exists():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return 0
    return 0


# --- control groups ----------------------------------------------------------------------------


def _control_groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's control group and those above it, and whether they are version 2.

    Inside a container the path in /proc may be the host's; then only the topmost folder exists,
    and it is the container's own.
    """
    for line in _text(PROC / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        group = PurePosixPath(path)
        if names and controller not in names.split(","):
            continue
        roots = (CGROUP / controller, CGROUP / names) if names else (CGROUP, CGROUP / "unified")
        for root in dict.fromkeys(roots):
            for place in (group, *group.parents):
                folder = root / str(place).lstrip("/")
                if ".." not in place.parts and folder.is_dir():
                    yield folder, not names


def _in_use(folder: Path, *, is_v2: bool) -> int:
    """Bytes a control group uses, without cached files, which are given up when needed."""
    used = _number(folder / ("memory.current" if is_v2 else "memory.usage_in_bytes")) or 0
    prefix = "" if is_v2 else "total_"
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in (f"{prefix}active_file", f"{prefix}inactive_file") and value.isdecimal():
            used -= int(value)
    return max(0, used)


# --- reading -----------------------------------------------------------------------------------


def _text(path: Path) -> str:
    """A small file of the system; empty when it cannot be read."""
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _cpuinfo(key: str) -> str:
    """The first value of `key` in /proc/cpuinfo; empty without one."""
    for line in _text(PROC / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _said(*command: str) -> str:
    """What a program printed; empty when it is missing, fails or takes too long."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        out = subprocess.run(  # noqa: S603 - our own fixed commands
            [program, *command[1:]], capture_output=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return out.stdout.decode("utf-8", errors="replace") if out.returncode == 0 else ""
