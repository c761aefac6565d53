"""Passages read together and each on its own: quality and time to the first token on CMRC 2018.

    .venv/bin/python tests/benchmarks/apart.py MODEL.gguf [--questions 300] [--passages 3 8 20]

A third of the questions are two in one, whose answers stand in two paragraphs. Around the right
paragraph stand those that share most pairs of characters with the question, in an order by chance.
Each prompt is answered greedily in several ways: `together`, all tokens computed in one prefill;
`apart`, every passage known and placed, with the first 0, 8 and 32 tokens of each computed again
where it stands (EPIC, arXiv:2410.15332, found that these are the ones that matter). Printed: exact
match and F1 as the CMRC evaluation counts, the share of answers that hold the known one, the share
that equals `together`, and the median time to the first token. Needs MIXTRAL_RAG_TEST_DATA.

`--save FILE` only writes the prompts as token IDs; `--prompts FILE` reads them, so that a machine
with nothing but llama.cpp can answer them. `--part 0/4` takes each fourth, for several processes.
"""

import argparse
import contextlib
import gzip
import json
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from answers import cmrc, f1, plain

SEED = 5
SHORT = "（请只写出答案本身，尽量简短。）"
WAYS = ("together", "apart", "apart, 8 again", "apart, 32 again")


def pairs(text: str) -> set[str]:
    return {text[i : i + 2] for i in range(len(text) - 1)}


class Paragraphs:
    """The paragraphs of CMRC, and which share most with a question."""

    def __init__(self) -> None:
        self.all = cmrc()
        self._pairs = [pairs(p["context"]) for p in self.all]
        self._frequency = Counter(p for found in self._pairs for p in found)

    def around(self, question: str, right: list[int], n: int, chance: random.Random) -> list[int]:
        asked = pairs(question)
        scores = [sum(1 / self._frequency[p] for p in asked & found) for found in self._pairs]
        others = sorted(set(range(len(scores))) - set(right), key=lambda i: -scores[i])
        chosen = [*right, *others[: n - len(right)]]
        chance.shuffle(chosen)
        return chosen


def make_prompts(model: str, n_questions: int, sizes: list[int]) -> list[dict[str, Any]]:
    """The prompts as token IDs with the places of their passages."""
    from mixtral_rag import ChatChineseMixtral
    from mixtral_rag.asking import Asking
    from mixtral_rag.types import Passage

    chat = ChatChineseMixtral(model=model)
    paragraphs, chance = Paragraphs(), random.Random(SEED)
    texts = [p["context"] for p in paragraphs.all]
    passages = [Passage(str(i), f"{i}.txt", "", text, i) for i, text in enumerate(texts)]
    order = chance.sample(range(len(texts)), min(len(texts), 2 * n_questions))
    prompts = []
    for number in range(n_questions):
        right = [order.pop(), order.pop()] if number % 3 == 2 else [order.pop()]
        asked = [chance.choice(paragraphs.all[i]["qas"]) for i in right]
        question = "另外，".join(q["question"] for q in asked) + SHORT
        known = [[a["text"] for a in q["answers"]] for q in asked]
        for size in sizes:
            around = paragraphs.around(question, right, size, chance)
            asking = Asking(chat, question, (), is_apart=True)
            chosen = [passages[i] for i in around]
            ids = chat.prompt(asking.messages(chosen), apart=asking.apart(chosen))
            prompts.append({
                "size": size, "known": known, "ids": list(ids), "spans": ids.spans,
            })  # fmt: skip
    return prompts


def answer(engine: Any, prompt: Any, options: Any) -> tuple[str, float]:
    """The text, and seconds to its first token."""
    started, first, said = time.perf_counter(), 0.0, ""
    for piece in engine.generate(prompt, options):
        first = first or time.perf_counter() - started
        said += piece.text
    return said.strip(), first


def scored(said: str, known: list[list[str]]) -> tuple[float, float, float]:
    """Exact match, F1 and whether each known answer stands there, means over the questions."""
    parts = [
        (plain(said) in map(plain, answers), f1(said, answers),
         any(plain(a) in plain(said) for a in answers))
        for answers in known
    ]  # fmt: skip
    return tuple(statistics.mean(column) for column in zip(*parts, strict=True))


def run(model: str, prompts: list[dict[str, Any]], out: Any, **options: Any) -> None:
    from mixtral_rag.engines import PassagePrompt
    from mixtral_rag.engines.llamacpp import LlamaCppEngine
    from mixtral_rag.types import SamplingOptions

    n_ctx = max(len(p["ids"]) for p in prompts) + 1024
    engine = LlamaCppEngine(model, n_ctx=n_ctx, kv_memory=1 << 30, **options)
    greedy = SamplingOptions(temperature=0.0, repeat_penalty=1.0, max_tokens=48)
    nothing = engine.tokenizer.encode("无")
    for prompt in prompts:
        ids = PassagePrompt(prompt["ids"], prompt["spans"])
        row: dict[str, Any] = {"size": prompt["size"], "known": prompt["known"], "n": len(ids)}
        for way in WAYS:
            engine.n_again = int(way.split()[1]) if "again" in way else 0
            if way == "apart":
                answer(engine, ids, SamplingOptions(temperature=0.0, max_tokens=1))  # learn them
            answer(engine, nothing, SamplingOptions(temperature=0.0, max_tokens=1))  # and leave
            row[way] = answer(engine, prompt["ids"] if way == "together" else ids, greedy)
        out.write(json.dumps(row, ensure_ascii=False) + "\n")
        out.flush()
        if sys.stdout.isatty():
            print(end=".", flush=True)


def table(rows: list[dict[str, Any]]) -> None:
    print(
        "passages  asked    way               EM     F1     holds  same   first token  of together"
    )
    kinds = [(s, n) for s in sorted({r["size"] for r in rows}) for n in (1, 2)]
    for size, n_known in kinds:
        chosen = [r for r in rows if r["size"] == size and len(r["known"]) == n_known]
        if not chosen:
            continue
        base = statistics.median(r["together"][1] for r in chosen)
        for way in WAYS:
            marks = [scored(r[way][0], r["known"]) for r in chosen]
            em, f, holds = (statistics.mean(c) for c in zip(*marks, strict=True))
            differences = [
                m[1] - scored(r["together"][0], r["known"])[1]
                for m, r in zip(marks, chosen, strict=True)
            ]
            error = statistics.stdev(differences) / len(chosen) ** 0.5 if len(chosen) > 1 else 0.0
            same = statistics.mean(r[way][0] == r["together"][0] for r in chosen)
            first = statistics.median(r[way][1] for r in chosen)
            print(
                f"{size:8}  {n_known} x {len(chosen):4} {way:16} {em:6.3f} {f:6.3f} ±{error:.3f}"
                f" {holds:6.3f} {same:6.3f} {first * 1000:9.0f} ms {first / base:8.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--passages", type=int, nargs="+", default=[3, 8, 20])
    parser.add_argument("--save", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="results to tabulate")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--n-threads", type=int)
    arguments = parser.parse_args()
    if arguments.rows:
        return table([json.loads(li) for p in arguments.rows for li in p.open(encoding="utf-8")])
    if arguments.prompts:
        prompts = json.loads(gzip.decompress(arguments.prompts.read_bytes()))
    else:
        prompts = make_prompts(arguments.model, arguments.questions, arguments.passages)
    if arguments.save:
        arguments.save.write_bytes(gzip.compress(json.dumps(prompts).encode()))
        return print(f"{len(prompts)} prompts of {min(len(p['ids']) for p in prompts)} to "
                     f"{max(len(p['ids']) for p in prompts)} tokens: {arguments.save}")  # fmt: skip
    part, parts = map(int, arguments.part.split("/"))
    out = arguments.out or Path("apart.jsonl")
    with contextlib.closing(out.open("w", encoding="utf-8")) as file:
        run(arguments.model, prompts[part::parts], file, n_threads=arguments.n_threads)
    return table([json.loads(line) for line in out.open(encoding="utf-8")])


if __name__ == "__main__":
    main()
