"""Seconds to parse PDFs: the pool of readers, and LangChain's two usual loaders.

    .venv/bin/python tests/benchmarks/parse.py [--folder FOLDER] [--rounds 5]

In every round all ways read the same files, taking turns. Printed are medians over the rounds, the
median of each way's ratio to PyPDFLoader in the same round, and the characters of text found. The
pool is started before the first round, as it is in an ingest of many files; the start is printed.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from mixtral_rag.ingest.pool import ReaderPool

Way = Callable[[list[Path]], int]  # reads files, returns how many characters it found


def pooled(pool: ReaderPool) -> Way:
    def read(files: list[Path]) -> int:
        futures = [pool.submit(path) for path in files]
        return sum(len(b.text) for future in futures for b in future.result().blocks)

    return read


def loader(name: str) -> Way:
    import warnings

    with warnings.catch_warnings(action="ignore"):  # that the package is no longer developed
        from langchain_community import document_loaders

    kind = getattr(document_loaders, name)
    return lambda files: sum(len(d.page_content) for f in files for d in kind(str(f)).load())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    data = os.environ.get("MIXTRAL_RAG_TEST_DATA", ".")
    parser.add_argument("--folder", type=Path, default=Path(data, "docs"))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    files = sorted(args.folder.rglob("*.pdf"))
    if not files:
        parser.error(f"no PDFs in {args.folder}; name another --folder")
    with ReaderPool(n_workers=1) as one, ReaderPool(n_workers=2) as two:
        ways = {name: loader(name) for name in ("PyPDFLoader", "PyPDFium2Loader")}
        ways |= {"pool, 1 process": pooled(one), "pool, 2 processes": pooled(two)}
        starts = {name: timed(way, files * 2)[0] - 2 * timed(way, files)[0]
                  for name, way in ways.items()}  # fmt: skip
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
        for round_ in range(args.rounds):
            order = list(ways)
            for name in order[round_ % 4 :] + order[: round_ % 4]:
                found[name].append(timed(ways[name], files))
    print(f"{len(files)} PDFs, {sum(f.stat().st_size for f in files) / 1e6:.1f} MB, "
          f"{os.cpu_count()} cores, {args.rounds} rounds")  # fmt: skip
    print(f"{'':20}{'seconds':>9}{'times faster':>14}{'start, s':>10}{'characters':>12}")
    for name, rounds in found.items():
        ratios = [a[0] / b[0] for a, b in zip(found["PyPDFLoader"], rounds, strict=True)]
        seconds = statistics.median(s for s, _ in rounds)
        print(f"{name:20}{seconds:9.2f}{statistics.median(ratios):14.2f}"
              f"{max(0.0, starts[name]):10.2f}{rounds[0][1]:12,}")  # fmt: skip


def timed(way: Way, files: list[Path]) -> tuple[float, int]:
    started = time.perf_counter()
    found = way(files)
    return time.perf_counter() - started, found


if __name__ == "__main__":
    main()
