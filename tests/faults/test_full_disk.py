"""The disk fills at any moment of an ingest: it is told, and nothing that was stored is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checks import check
from places import Place

UNSHARE = ["unshare", "--map-root-user", "--mount"]
N_SIZES = 20


def may_mount(folder):
    if sys.platform != "linux" or not shutil.which("unshare"):
        return False
    command = [*UNSHARE, "mount", "-t", "tmpfs", "none", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    if not may_mount(folder):
        pytest.skip("this user may not mount a small disk, not even in a namespace of its own")
    return Place(folder)


def kib(folder):
    return sum(-(-p.stat().st_size // 4096) * 4 for p in folder.rglob("*") if p.is_file())


def test_a_full_disk_loses_nothing(place):
    least = kib(place.store) + 64
    most = least + 2 * kib(place.fresh)
    sizes = [least + (most - least) * n // (N_SIZES - 1) for n in range(N_SIZES)]
    command = [*UNSHARE, sys.executable, str(Path(__file__).parent / "full_disk.py"),
               str(place.folder), *map(str, sizes)]  # fmt: skip
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr[-3000:]
    rows = [json.loads(line) for line in out.stdout.splitlines()]
    assert len(rows) == N_SIZES
    full = [row for row in rows if row["told"]]
    assert len(full) >= N_SIZES // 3, "the disks were large enough"
    assert not rows[-1]["told"], "no disk was large enough"
    for row in rows:
        assert "disk" in row["told"] or not row["told"], row
        assert "disk" in row["answered"] or not row["answered"], row
        store = place.folder / f"full-{row['kib']}"
        check(store, place.before, place.corpus, row["acknowledged"], every=5)
        place.finish(store)
