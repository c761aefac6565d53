"""Restored prompts against cold ones: random splits, and kills while states are written.

    python tests/engines/kv_faults.py [MODEL.gguf] --splits 300 --kills 100 --longest 32000

A prompt is cut at random; a first process computes the beginning, another one the whole prompt from
the kept state, and its greedy tokens must be those of a run without states. Without a model it
takes a random Mixtral, whose every number tells.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from tiny_mixtral import write_tiny_mixtral

from mixtral_rag import kvstore
from mixtral_rag.engines.llamacpp import LlamaCppEngine
from mixtral_rag.kvstore import BLOCK
from mixtral_rag.types import SamplingOptions

_OPTIONS = SamplingOptions(temperature=0, repeat_penalty=1, max_tokens=8)
_FRESH = 64  # tokens that are computed again at least
_LEAST = 128  # tokens worth restoring
KV_TYPES = ("f16", "q8_0")


def write_model(path):
    """A random Mixtral with heads that a q8_0 cache can hold."""
    return write_tiny_mixtral(path, n_layer=4, n_embd=128, n_ff=128)


class Cold:
    """Engines that keep nothing, one for each type of cache."""

    def __init__(self, model, n_ctx):
        self._engines = {
            kv_type: LlamaCppEngine(model, n_ctx=n_ctx, kv_type=kv_type, kv_memory=0)
            for kv_type in KV_TYPES
        }

    def answer(self, kv_type, ids):
        engine = self._engines[kv_type]
        answer(engine, [engine.tokenizer.bos_id])  # forgets what it held
        return answer(engine, ids)[0]


def answer(engine, ids):
    """Greedy text, and how many tokens of the prompt were not computed."""
    last = list(engine.generate(list(ids), _OPTIONS, whole=True))[-1]
    return last.text, last.usage.cached_tokens


def settle():
    """Wait until states are written."""
    for thread in threading.enumerate():
        if thread.name == "kv-save":
            thread.join()


def prompt(tokenizer, rng, n):
    """Tokens of random words, the first always the same."""
    ids = tokenizer.encode("".join(rng.choice(_WORDS) for _ in range(n)))
    return [tokenizer.bos_id, *ids][:n]


_WORDS = tuple(
    f" {a}{b}" for a in ("re", "in", "con", "de", "a", "the", "my") for b in
    ("port", "form", "sist", "sign", "day", "tree", "lake", "house", "北京", "1998", "file.txt")
)  # fmt: skip


def check_split(model, cold, n_ctx, rng, longest, *, kv_type):
    """One prompt, cut once; how many tokens came from the state."""
    n = int(longest ** rng.uniform(0.75, 1.0))
    with tempfile.TemporaryDirectory(prefix="splits-") as folder:
        options = {"n_ctx": n_ctx, "kv_type": kv_type, "kv_folder": folder}
        one, two = (LlamaCppEngine(model, **options) for _ in range(2))
        ids = prompt(one.tokenizer, rng, n)
        split = rng.randrange(len(ids) // 4, len(ids))
        answer(one, ids[:split])
        settle()
        rest = ids[split:]
        if rng.random() < 0.5:  # another continuation than that of the same text
            rest = prompt(one.tokenizer, rng, rng.randrange(2, 2 + len(ids) - split))[1:]
        whole = ids[:split] + rest
        restored, cached = answer(two, whole)
        expected = cold.answer(kv_type, whole)
    least = min(split, len(whole) - _FRESH) - BLOCK
    assert cached > least or least <= _LEAST + BLOCK, (kv_type, split, len(whole), cached)
    assert restored == expected, (kv_type, split, len(whole), cached)
    return cached


def write_on(model, folder, seed):
    """Compute prompts without end, and keep their states; for a process that is killed."""
    kvstore.PATIENCE = 0.0
    engine, rng = LlamaCppEngine(model, n_ctx=2048, kv_folder=folder), random.Random(seed)
    known = prompt(engine.tokenizer, random.Random(0), 300)
    while True:
        answer(engine, known + prompt(engine.tokenizer, rng, 200))


def check_kill(model, cold, folder, rng):
    """Kill a process while it writes states; what is left must do no harm. True if one was used."""
    process = multiprocessing.get_context("spawn").Process(
        target=write_on, args=(model, str(folder), rng.randrange(1000))
    )
    process.start()
    changes, seen = rng.randrange(1, 8), None
    while changes and process.is_alive():
        now = sorted((p.name, p.stat().st_size) for p in _files(folder))
        changes, seen = changes - (now != seen), now
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, 0.01))
    process.kill()
    process.join()
    engine = LlamaCppEngine(model, n_ctx=2048, kv_folder=folder)
    ids = prompt(engine.tokenizer, random.Random(0), 300) + prompt(engine.tokenizer, rng, 100)
    restored, cached = answer(engine, ids)
    settle()
    assert restored == cold.answer("f16", ids), cached
    return cached > 0


def _files(folder):
    for path in folder.glob("*"):
        try:
            path.stat()
        except FileNotFoundError:
            continue
        yield path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--splits", type=int, default=300)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=int, default=1500, help="tokens of a prompt")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kvstore.PATIENCE = 0.0  # nobody waits for an answer here
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        check(options, options.model or str(write_model(Path(folder) / "tiny.gguf")))


def check(options, model):
    """Splits, then kills."""
    rng, started = random.Random(options.seed), time.monotonic()
    n_ctx = options.longest + options.longest // 2
    cold, cached, n_restored = Cold(model, n_ctx), 0, 0
    for i in range(options.splits):
        n = check_split(model, cold, n_ctx, rng, options.longest, kv_type=KV_TYPES[i % 2])
        cached, n_restored = cached + n, n_restored + (n > 0)
        print(f"{i + 1} splits", end="\r", file=sys.stderr)
    print(f"{options.splits} splits held in {time.monotonic() - started:.0f} s: {n_restored} "
          f"restored, {cached:,} tokens")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        used = sum(check_kill(model, cold, Path(folder), rng) for _ in range(options.kills))
    print(f"{options.kills} kills held; {used} times a state was used afterwards")


if __name__ == "__main__":
    main()
