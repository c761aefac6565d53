"""What the machine offers, and that a container's limits are kept to."""

import sys

import psutil
import pytest

from mixtral_rag import machine
from mixtral_rag.weights.inspect import inspect

GB = 1_000_000_000


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A made-up /proc and /sys/fs/cgroup; returns a function that writes their files."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")

    def write(membership, files):
        proc = tmp_path / "proc" / "self" / "cgroup"
        proc.parent.mkdir(parents=True)
        proc.write_text(membership)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


V2 = {
    "pod/memory.max": f"{2 * GB}\n",
    "pod/memory.current": f"{1_500_000_000}\n",
    "pod/memory.stat": "anon 500000000\nactive_file 300000000\ninactive_file 600000000\n",
    "pod/app/memory.max": "max\n",
    "pod/app/cpu.max": "max 100000\n",
    "pod/cpu.max": "100000 100000\n",
}
V1 = {
    "memory/memory.limit_in_bytes": f"{2 * GB}\n",
    "memory/memory.usage_in_bytes": f"{1_500_000_000}\n",
    "memory/memory.stat": "active_file 1\ntotal_active_file 300000000\n"
    "total_inactive_file 600000000\n",
    "cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
    "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
}
V1_MEMBERSHIP = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/x\n"


@pytest.mark.parametrize(
    ("membership", "files"),
    [("0::/pod/app\n", V2), (V1_MEMBERSHIP, V1)],
    ids=["version 2, limit on a group above", "version 1, the path is the host's"],
)
def test_a_container_has_what_its_limit_leaves(container, smollm, membership, files):
    container(membership, files)
    memory = machine.memory()
    assert memory.limit == memory.total == 2 * GB
    assert memory.available == min(1_400_000_000, psutil.virtual_memory().available)
    assert machine.usable_cpus() == 1
    # and a model that the machine could run, but not the container, is told so
    report = inspect(smollm, n_ctx=131_072)
    assert report.memory_bytes == 2 * GB
    assert "it needs" in report.problem
    assert "2.0 GB" in report.problem


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/\n", {"memory.max": "max\n", "cpu.max": "max 100000\n"}),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}),
        ("0::/../../x\n", {"memory.max": "gibberish\n", "cpu.max": "\n"}),
        ("what is this", {}),
    ],
)
def test_no_limit_means_the_whole_machine(container, membership, files):
    whole = machine.usable_cpus()
    container(membership, files)
    memory = machine.memory()
    assert memory.limit is None
    assert memory.total == psutil.virtual_memory().total
    assert 0 < memory.available <= memory.total
    assert machine.usable_cpus() >= whole


def program(folder, text):
    folder.mkdir(exist_ok=True)
    path = folder / "nvidia-smi"
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has Metal and no nvidia-smi")
def test_gpus_are_what_nvidia_smi_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == ()
    program(tmp_path, "print('NVIDIA H200, 143771, 143165\\nNVIDIA GB10, [N/A], [N/A]')")
    h200, shared = machine.gpus()
    assert (h200.name, h200.kind) == ("NVIDIA H200", "CUDA")
    assert h200.memory_bytes == 143_771 << 20
    assert shared.memory_bytes == 0
    program(tmp_path, "print('NVIDIA-SMI has failed because it could not'); raise SystemExit(9)")
    assert machine.gpus() == ()
    monkeypatch.setattr(machine, "_PATIENCE", 0.5)
    program(tmp_path, "import time; time.sleep(60)")
    assert machine.gpus() == ()


def test_this_machine_is_described(tmp_path):
    here = machine.look()
    assert here.cpu
    assert here.n_cpus >= 1
    assert 0 < here.memory.available <= here.memory.total
    assert here.system.split()[0] in ("Linux", "Darwin")
    assert machine.disk_free(tmp_path / "not" / "there" / "yet") > 0


@pytest.mark.skipif(not machine.PROC.is_dir(), reason="needs Linux's /proc")
def test_cpu_features_are_those_that_linux_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PROC", tmp_path)
    (tmp_path / "cpuinfo").write_text(
        "model name\t: A Fast One\nflags\t\t: fpu sse2 avx avx2 avx512f amx_tile\n"
    )
    assert machine.cpu_model() == "A Fast One"
    assert machine.cpu_features() == ("AVX", "AVX2", "AVX-512", "AMX")
    (tmp_path / "cpuinfo").write_text("Features\t: fp asimd asimddp i8mm sve\n")
    assert machine.cpu_features() == ("NEON", "dot product", "I8MM", "SVE")
