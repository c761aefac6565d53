"""Damaged and hostile documents, by the thousand, read by the real pool.

    .venv/bin/python tests/fuzz_readers.py [--count 500] [--seed 0] [--format .pdf ...]

Each format's sample is damaged `--count` times; then come documents made to do harm. After every
one a good neighbour is read. It fails if this process meets anything but a document or one of our
errors, a neighbour is lost, a process or temporary file stays behind, a reader goes beyond its
limits of time or memory, or the content of a local file turns up in a text.
"""

import argparse
import contextlib
import os
import re
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

sys.path.insert(0, str(Path(__file__).parent))

from mutations import mutated
from samples import SAMPLES
from tricks import paths, tricks

from mixtral_rag.errors import DocumentError
from mixtral_rag.ingest.pool import ReaderPool
from mixtral_rag.ingest.readers import SUFFIXES

KINDS = ("read", "refused", "stumbled", "time", "memory", "crash")
ENDS = {
    "took its reader": "time",
    "of memory to read": "memory",
    "more text than can": "memory",
    "crashed its reader": "crash",
    "cannot be read, it may be damaged (": "stumbled",
}


@dataclass
class Row:
    """What became of one format's files."""

    files: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0
    messages: Counter[str] = field(default_factory=Counter)


class Campaign:
    """Reads bad files and their neighbours, and counts.

    Args:
        folder: empty, for the files.
        timeout, memory: the limits of a reader, seconds and bytes.
    """

    def __init__(self, folder: Path, *, timeout: float, memory: int) -> None:
        self.folder, self.timeout, self.memory = folder, timeout, memory
        self.rows: dict[str, Row] = {}
        self.faults: list[str] = []
        self.secret = folder / "secret.txt"
        self._token = secrets.token_hex(16)
        self.secret.write_text(self._token)
        self.good = folder / "good.txt"
        self.good.write_text("a good neighbour")
        self.inside = folder / "inside" / "deep"
        self.inside.mkdir(parents=True)
        self.peak = 0
        self._leaders: set[int] = set()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        self._pool = ReaderPool(n_workers=1, timeout=timeout, memory=memory)

    def _watch(self) -> None:
        """Note the readers and the most memory each has taken.

        What the system keeps of ended processes will not do: it counts this one's memory in.
        """
        while not self._closed.wait(0.05):
            for process in psutil.Process().children():
                self._leaders.add(process.pid)
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    is_reader = "reader_process" in Path(f"/proc/{process.pid}/cmdline").read_text()
                    if is_reader and (found := re.search(r"VmHWM:\s*(\d+)", status)):
                        self.peak = max(self.peak, int(found[1]) << 10)

    def read(self, path: Path, row: str) -> str:
        """Read one bad file and its neighbour; returns what became of it."""
        counts, started = self.rows.setdefault(row, Row()), time.monotonic()
        kind, message = self._outcome(path)
        took = time.monotonic() - started
        if took > 2 * self.timeout + 10:  # a file that crashes a used process is tried once more
            self.faults.append(f"{path.name} took {took:.0f} seconds")
        counts.files += 1
        counts.kinds[kind] += 1
        counts.seconds += took
        counts.slowest = max(counts.slowest, took)
        counts.messages[message] += 1
        try:
            if self._pool.submit(self.good).result().blocks[0].text != "a good neighbour":
                self.faults.append(f"the neighbour of {path.name} was read wrongly")
        except DocumentError as error:
            self.faults.append(f"the neighbour of {path.name} was lost: {error}")
        return kind

    def _outcome(self, path: Path) -> tuple[str, str]:
        try:
            parsed = self._pool.submit(path).result()
        except DocumentError as error:
            message = str(error)
            if str(path) not in message:
                self.faults.append(f"the error for {path.name} does not name it: {message}")
            kind = next((k for part, k in ENDS.items() if part in message), "refused")
            return kind, re.sub(r"\d+", "#", message.replace(str(path), "FILE"))[:200]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
            self.faults.append(f"{path.name}: {type(error).__name__}: {error}")
            return "stumbled", ""
        if self._token in parsed.title or any(self._token in b.text for b in parsed.blocks):
            self.faults.append(f"{path.name} shows the content of another file")
        return "read", ""

    def close(self) -> None:
        """End the pool and look for what it left behind."""
        self._pool.close()
        self._closed.set()
        time.sleep(0.5)
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) in self._leaders:
                    self.faults.append(f"left running: {process}")
        left = {p.name for p in self.folder.rglob("*") if "escaped" in p.name}
        left |= {p.name for p in Path(tempfile.gettempdir()).glob("mixtral-rag-reader-*")}
        self.faults += [f"left behind: {name}" for name in left]
        if self.peak > self.memory:
            self.faults.append(f"a reader took {self.peak >> 20} MiB")


def damaged(campaign: Campaign, suffixes: Sequence[str], *, count: int, seed: int) -> None:
    """Read `count` damaged samples of each format."""
    others = [SAMPLES[suffix][0]() for suffix in suffixes]
    for suffix in suffixes:
        goods = [make() for make in SAMPLES[suffix]]
        for i, good in enumerate(goods):
            path = campaign.inside / f"sample-{i}{suffix}"
            path.write_bytes(good)
            if campaign.read(path, suffix) != "read":
                campaign.faults.append(f"the undamaged {path.name} is not read")
        for number in range(count):
            rng = Random(f"{seed} {suffix} {number}")
            path = campaign.inside / f"{seed}-{number}{suffix}"
            path.write_bytes(mutated(rng.choice(goods), rng, rng.choice(others)))
            before = len(campaign.faults)
            campaign.read(path, suffix)
            if len(campaign.faults) == before:
                path.unlink()


def hostile(
    campaign: Campaign, suffixes: Sequence[str], *, scale: float, skip: Collection[str] = ()
) -> None:
    """Read what is made to do harm, but for the names in `skip`."""
    wanted = tuple(suffixes)
    for name, make in tricks(campaign.secret, scale=scale):
        if name.endswith(wanted) and name not in skip:
            path = campaign.inside / name
            path.write_bytes(make())
            campaign.read(path, f"{path.suffix} tricks")
            path.unlink()
    for path in paths(campaign.inside):
        campaign.read(path, "links, pipes")


def table(rows: dict[str, Row]) -> str:
    """The counts as a table for a person to read."""
    lines = ["format        files " + "".join(f"{k:>9}" for k in KINDS) + "  seconds  slowest"]
    for name, row in rows.items():
        counts = "".join(f"{row.kinds[k]:9}" for k in KINDS)
        lines.append(f"{name:13}{row.files:6} {counts}{row.seconds:9.1f}{row.slowest:9.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=500, help="damaged files of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", nargs="*", help="suffixes; all by default")
    parser.add_argument("--timeout", type=float, default=20, help="seconds a file may take")
    parser.add_argument("--memory", type=int, default=1024, help="MiB a reader may use")
    parser.add_argument("--scale", type=float, default=1, help="of the bombs; 0 for none")
    parser.add_argument("--messages", type=int, default=0, help="print so many for each format")
    args = parser.parse_args()
    suffixes = [s for s in SAMPLES if s in SUFFIXES and s in (args.format or SAMPLES)]
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # of the readers' folders too
        campaign = Campaign(Path(folder), timeout=args.timeout, memory=args.memory << 20)
        damaged(campaign, suffixes, count=args.count, seed=args.seed)
        if args.scale:
            hostile(campaign, suffixes, scale=args.scale)
        campaign.close()
    print(table(campaign.rows))
    for name, row in campaign.rows.items():
        for message, n in row.messages.most_common(args.messages):
            print(f"{name:13}{n:6} {message}")
    peak = campaign.peak >> 20
    print(f"Peak memory of a reader {peak} MiB of {args.memory}; {len(campaign.faults)} faults")
    print("\n".join(campaign.faults))
    sys.exit(bool(campaign.faults))


if __name__ == "__main__":
    main()
