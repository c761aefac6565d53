"""`upgrade` beside a plain file copy: seconds, rate and memory on a file of several gigabytes.

    .venv/bin/python tests/benchmarks/upgrade.py [--folder DIR] [--rounds 3]

Both end with an fsync and take turns. Upgrading is timed as users run it, that is with the byte for
byte comparison at the end, and without it, which is the copy alone.
"""

import argparse
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny_mixtral import write_tiny_mixtral

from mixtral_rag.weights import upgrade as module


def plain_copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def without_comparison(source: Path, target: Path) -> None:
    verify, module._verify = module._verify, lambda *_: None
    try:
        module.upgrade(source, target)
    finally:
        module._verify = verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ways = {
        "plain copy": plain_copy,
        "upgrade, copy alone": without_comparison,
        "upgrade, compared": module.upgrade,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        old, new = Path(folder, "old.gguf"), Path(folder, "new.gguf")
        shape = {"n_layer": 6, "n_embd": 1024, "n_head": 8, "n_ff": 3584}
        if os.fork() == 0:  # writing needs memory that must not count
            write_tiny_mixtral(old, old_layout=True, **shape)
            os._exit(0)
        os.wait()
        size = old.stat().st_size
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                new.unlink(missing_ok=True)
                os.sync()
                started = time.perf_counter()
                way(old, new)
                seconds[name].append(time.perf_counter() - started)
    print(f"{size / 1e9:.2f} GB, {arguments.rounds} rounds, medians\n")
    base = seconds["plain copy"]
    for name, values in seconds.items():
        ratio = statistics.median(b / v for b, v in zip(base, values, strict=True))
        rate = size / statistics.median(values) / 1e6
        print(f"{name:22} {statistics.median(values):6.2f} s {rate:7.0f} MB/s {ratio:6.2f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of this process: {peak:.0f} MB")


if __name__ == "__main__":
    main()
