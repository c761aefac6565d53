"""Kills an ingest hundreds of times, mostly while files of the index change, and checks the store.

    python tests/faults/kills.py --count 300 --seed 0
    python tests/faults/kills.py --count 60 --stock

With `--stock` the same kills hit the usual LangChain pipeline over Chroma.
"""

import argparse
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import child
from checks import check, check_equal, content, opened
from corpus import Corpus

AIMS = {"index": 35, "graph": 10, "rebuild": 15, "log": 20, "random": 20}
_DELAY = 0.012  # seconds; how long after a change the longest of aimed kills waits
_SMALL, _LARGE = 40, 420  # documents; the graph is written for every 1,000 passages


class Site:
    """A corpus and the store that follows it, through all rounds."""

    def __init__(self, folder, n_documents, seed):
        self.folder, self.store, self.acks = folder, folder / "store", folder / "acks"
        self.corpus = Corpus(folder / "docs", n_documents, seed)
        self.every = 1 if n_documents < 100 else 7
        self.content = {}
        self.seconds = 1.0  # what an undisturbed ingest takes


class Campaign:
    """Kills with `seed`; `counts` says how many, by what they were aimed at."""

    def __init__(self, folder, seed, *, start=child.start):
        self._random = random.Random(seed)
        self._start = start
        self.counts, self._n_rounds = Counter(), 0
        self._small = Site(folder / "small", _SMALL, seed)
        self._large = Site(folder / "large", _LARGE, seed + 1)

    @property
    def n_kills(self):
        return sum(self.counts[aim] for aim in AIMS)

    def round(self, n_kills):
        """Change the documents, kill some ingests of them, let one finish, compare."""
        site = self._small if self._random.random() < 0.75 else self._large
        self._n_rounds += 1
        site.corpus.change()
        for _ in range(n_kills):
            aims = [a for a in AIMS if a != "graph" or site is self._large]
            aim = self._random.choices(aims, [AIMS[a] for a in aims])[0]
            if self.kill(site, aim):
                self.counts[aim] += 1
            else:
                self.counts["ended before the kill"] += 1
            self._check(site)
        started = time.monotonic()
        child.finish(site.store, site.corpus.folder, site.acks)
        site.seconds = time.monotonic() - started
        self.compare(site)

    def kill(self, site, aim):
        """Start an ingest and kill it; False when it was quicker."""
        if aim == "rebuild":
            spoil_index(site.store, self._random)
        process = self._start(
            site.store, site.corpus.folder, site.acks, workers=self._random.random() < 0.2
        )
        killed = kill_at(process, site.store, aim, self._random, site.seconds)
        assert killed or process.exitcode == 0, f"the ingest failed: {process.exitcode}"
        return killed

    def _check(self, site):
        by_index = self._random.random() < 0.25 and bool(site.content)
        self.counts["searched by the index"] += by_index
        site.content = check(
            site.store,
            site.content,
            site.corpus,
            child.acknowledged(site.acks),
            by_index=by_index,
            every=site.every,
        )

    def compare(self, site):
        fresh = site.folder / "fresh"
        child.finish(fresh, site.corpus.folder, site.acks)
        check_equal(site.store, fresh)
        shutil.rmtree(fresh)
        store = opened(site.store)
        site.content = content(store)
        store.close()
        assert site.content == site.corpus.passages()
        self.counts["compared with an undisturbed store"] += 1


def kill_at(process, store, aim, rng, seconds):
    """Kill a process that takes about `seconds` at what `aim` says; False when it was quicker."""
    if aim == "random":
        process.join(rng.uniform(0.05, 1.2 * seconds))
    else:
        nth = rng.randint(1, 3 if aim == "graph" else 12)
        if wait_for_changes(process, store, aim, nth):
            time.sleep(rng.uniform(0, _DELAY))
    process.kill()  # which bears that it just ended
    process.join()
    return process.exitcode == -signal.SIGKILL


def wait_for_changes(process, store, aim, nth):
    """Wait until files changed `nth` times; False when the process ends before."""
    seen = _state(store, aim)
    while process.is_alive():
        now = _state(store, aim)
        if now != seen:
            seen, nth = now, nth - 1
            if nth == 0:
                return True
        time.sleep(0.0005)
    return False


def _state(store, aim):
    if aim == "log":
        return _stat(store / "ledger.db-wal")
    files = store.glob("index-*/*/*/*" if aim == "graph" else "index-*/**/*")
    try:
        return {path: _stat(path) for path in files}
    except FileNotFoundError:  # a folder was removed while it was looked through
        return {}


def _stat(path):
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def spoil_index(store, rng):
    """Leave the index as an ingest that was killed leaves it, or with a damaged file."""
    files = sorted(p for p in store.glob("index-*/**/*") if p.is_file())
    if files and rng.random() < 0.5:
        os.truncate(rng.choice(files), 0)
    elif (store / "ledger.db").exists():
        with sqlite3.connect(store / "ledger.db") as db:
            db.execute("UPDATE meta SET value = 'behind' WHERE key = 'index_state'")
        db.close()


def run(count, seed, tell=lambda _: None, *, start=child.start):
    """Kill `count` times; the counts, or the first fault."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        campaign = Campaign(Path(folder), seed, start=start)
        while campaign.n_kills < count:
            campaign.round(min(4, count - campaign.n_kills))
            tell(f"{campaign.n_kills} of {count} kills")
        return campaign.counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=300, help="how many kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stock", action="store_true", help="kill the usual pipeline too")
    options = parser.parse_args()
    started = time.monotonic()
    counts = run(options.count, options.seed, lambda text: print(text, end="\r", flush=True))
    print(f"{options.count} kills in {time.monotonic() - started:.0f} s; all checks held")
    for name, n in counts.items():
        print(f"{n:6,}  {name}")
    if options.stock:
        import stock

        stock.main(options.count, options.seed)


if __name__ == "__main__":
    main()
