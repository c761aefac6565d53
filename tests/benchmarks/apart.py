"""Passages read together and each on its own: quality and time to the first token on CMRC 2018.

    .venv/bin/python tests/benchmarks/apart.py MODEL.gguf [--questions 300] [--passages 3 8 20]

Paragraphs that are like each other (they share rare pairs of characters) stand together in sets of
3, 8 and 20, and questions are asked about each paragraph of a set; a third of them are two in one,
whose answers stand in two of its paragraphs. Each prompt is answered greedily in several ways:

- together: all tokens computed in one prefill, by the first question about a set; and with the best
  passage last, where each question computes what it shares with no other;
- apart: every passage known and placed;
- apart, 8 again: and the first 8 tokens of each computed again where it stands (EPIC,
  arXiv:2410.15332, found that the first are the ones that matter);
- apart, best last: the best passage, which shares most rare pairs of characters with the question,
  stands last;
- apart, best again: and it is computed after all others, where it stands.

Printed: exact match and F1 as the CMRC evaluation counts, the share of answers that hold the known
one, the share that equals `together`, and the median time to the first token, of `together` that of
the first question. The error of a difference is that of means over the sets. Needs
MIXTRAL_RAG_TEST_DATA.

`--save FILE` only writes the prompts as token IDs; `--prompts FILE` reads them, so that a machine
with nothing but llama.cpp can answer them. `--part 0/4` takes each fourth set, for several
processes; `--rows` puts together what several have written.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from answers import cmrc, f1, plain

SEED = 5
N_PARAGRAPHS = 160
WAYS = (
    "together", "together, best last", "apart", "apart, 8 again", "apart, best last",
    "apart, best again",
)  # fmt: skip
SHORT = "（请只写出答案本身，尽量简短。）"


def pairs(text: str) -> set[str]:
    return {text[i : i + 2] for i in range(len(text) - 1)}


def rarity(paragraphs: list[Any]) -> Counter[str]:
    return Counter(p for one in paragraphs for p in pairs(one["context"]))


def alike(paragraphs: list[Any], n: int, together: int, chance: random.Random) -> list[int]:
    """`n` paragraphs in runs of `together`, each run of one by chance and those most like it."""
    found = [pairs(p["context"]) for p in paragraphs]
    frequency = rarity(paragraphs)
    free, chosen = set(range(len(found))), []
    while len(chosen) < n:
        seed = chance.choice(sorted(free))
        score = {i: sum(1 / frequency[p] for p in found[seed] & found[i]) for i in free}
        run = sorted(free, key=lambda i: (i != seed, -score[i]))[:together]
        free -= set(run)
        chosen += run
    return chosen[:n]


def questions(among: list[int], chance: random.Random) -> Iterator[list[int]]:
    """Which paragraphs a question is about, without end: one, one, then two."""
    queue: list[int] = []
    for number in range(sys.maxsize):
        n = 2 if number % 3 == 2 else 1
        while len(queue) < n:
            queue += chance.sample([i for i in among if i not in queue], len(among) - len(queue))
        yield [queue.pop(0) for _ in range(n)]


def make_prompts(model: str, n_questions: int, sizes: list[int]) -> list[dict[str, Any]]:
    """The prompts as token IDs with the places of their passages, set after set."""
    from mixtral_rag import ChatChineseMixtral
    from mixtral_rag.types import Passage

    chat, paragraphs, prompts = ChatChineseMixtral(model=model), cmrc(), []
    frequency = rarity(paragraphs)
    passages = [Passage(str(i), f"{i}.txt", "", p["context"], i) for i, p in enumerate(paragraphs)]
    chosen = alike(paragraphs, N_PARAGRAPHS, max(sizes), random.Random(SEED))
    for size in sizes:
        chance = random.Random(SEED)
        sets = [chosen[i : i + size] for i in range(0, len(chosen) - size + 1, size)]
        for number, among in enumerate(sets):
            chance.shuffle(among)
            about = questions(among, chance)
            for n, _ in enumerate(range(number, n_questions, len(sets))):
                asked = [chance.choice(paragraphs[i]["qas"]) for i in next(about)]
                question = "另外，".join(q["question"] for q in asked) + SHORT
                asks = pairs(question)
                score = {
                    i: sum(1 / frequency[p] for p in asks & pairs(passages[i].text)) for i in among
                }
                best = max(among, key=score.__getitem__)
                record = {
                    "size": size, "set": number, "n": n,
                    "known": [[a["text"] for a in q["answers"]] for q in asked],
                }  # fmt: skip
                for key, order in ("", among), ("last ", [*(i for i in among if i != best), best]):
                    ids = prompt_of(chat, question, [passages[i] for i in order])
                    record |= {f"{key}ids": list(ids), f"{key}spans": ids.spans}
                prompts.append(record)
    return prompts


def prompt_of(chat: Any, question: str, passages: list[Any]) -> Any:
    """The prompt for a question about passages, with the place of each."""
    from mixtral_rag.prompts import PART_END, lasting_numbers, qa_messages, qa_passage

    numbers = lasting_numbers(passages)
    texts = [qa_passage(n, p) + PART_END for n, p in zip(numbers, passages, strict=True)]
    messages = qa_messages(question, passages, language="zh", numbers=numbers)
    return chat.prompt(messages, apart=texts)


def answer(engine: Any, prompt: Any, options: Any) -> tuple[str, float]:
    """The text, and seconds to its first token."""
    started, first, said = time.perf_counter(), 0.0, ""
    for piece in engine.generate(prompt, options):
        first = first or time.perf_counter() - started
        said += piece.text
    return said.strip(), first


def run(
    model: str, sets: list[list[dict[str, Any]]], ways: list[str], out: Any, **options: Any
) -> None:
    from mixtral_rag.engines.llamacpp import LlamaCppEngine
    from mixtral_rag.types import SamplingOptions

    n_ctx = max(len(p["ids"]) for prompts in sets for p in prompts) + 1024
    engine = LlamaCppEngine(model, n_ctx=n_ctx, kv_memory=3 << 30, **options)
    greedy = SamplingOptions(temperature=0.0, repeat_penalty=1.0, max_tokens=32)
    one = SamplingOptions(temperature=0.0, max_tokens=1)
    nothing = engine.tokenizer.encode("无")
    for prompts in sets:
        keys = ("size", "set", "n", "known")
        rows = [{key: p[key] for key in keys} | {"tokens": len(p["ids"])} for p in prompts]
        is_known = False
        for way in ways:
            engine.n_again = 8 if "8" in way else 0
            for row, prompt in zip(rows, prompts, strict=True):
                ids = asked(prompt, way)
                if "apart" in way and not is_known:
                    answer(engine, asked(prompt, "apart"), one)
                    is_known = True
                if "apart" in way or row is rows[0]:
                    answer(engine, nothing, one)  # leave what is held
                row[way] = answer(engine, ids, greedy)
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        out.flush()


def asked(prompt: dict[str, Any], way: str) -> Any:
    """The prompt as the engine gets it for one way of reading."""
    from mixtral_rag.engines import PassagePrompt

    key = "last " if "best" in way else ""
    if "together" in way:
        return prompt[f"{key}ids"]
    spans = prompt[f"{key}spans"]
    return PassagePrompt(prompt[f"{key}ids"], spans[:-1] if way.endswith("best again") else spans)


# --- the figures ---------------------------------------------------------------------------------


def scored(said: str, known: list[list[str]]) -> tuple[float, float, float]:
    """Exact match, F1 and whether each known answer stands there, means over the questions."""
    parts = [
        (plain(said) in map(plain, answers), f1(said, answers),
         any(plain(a) in plain(said) for a in answers))
        for answers in known
    ]  # fmt: skip
    return tuple(statistics.mean(column) for column in zip(*parts, strict=True))


def error_of_mean(differences: list[tuple[int, float]]) -> float:
    """Standard error of the mean of values that belong to sets, which may be alike in a set."""
    mean = statistics.mean(d for _, d in differences)
    sums: Counter[int] = Counter()
    for number, d in differences:
        sums[number] += d - mean
    n = len(sums)
    return (sum(s * s for s in sums.values()) * n / max(1, n - 1)) ** 0.5 / len(differences)


def together(paths: list[Path]) -> list[dict[str, Any]]:
    """The rows of files, those about the same question as one."""
    rows: dict[tuple[int, int, int], dict[str, Any]] = {}
    for path in paths:
        for line in path.open(encoding="utf-8"):
            row = json.loads(line)
            rows.setdefault((row["size"], row["set"], row["n"]), {}).update(row)
    return list(rows.values())


def table(rows: list[dict[str, Any]]) -> None:
    print("passages  asked    way                 EM     F1  difference    holds   same"
          "  first token  of together")  # fmt: skip
    for size in sorted({r["size"] for r in rows}):
        sized = [r for r in rows if r["size"] == size and "together" in r]
        base = statistics.median(r["together"][1] for r in sized if r["n"] == 0)
        for n_known in (1, 2, 0):
            for way in WAYS:
                chosen = [r for r in sized if n_known in (0, len(r["known"])) and way in r]
                if not chosen:
                    continue
                marks = [scored(r[way][0], r["known"]) for r in chosen]
                em, f, holds = (statistics.mean(c) for c in zip(*marks, strict=True))
                differences = [
                    (r["set"], m[1] - scored(r["together"][0], r["known"])[1])
                    for m, r in zip(marks, chosen, strict=True)
                ]
                more, error = statistics.mean(d for _, d in differences), error_of_mean(differences)
                same = statistics.mean(r[way][0] == r["together"][0] for r in chosen)
                first = base if way == "together" else statistics.median(r[way][1] for r in chosen)
                print(
                    f"{size:8}  {n_known or 'all'} x {len(chosen):4} {way:17} {em:6.3f} {f:6.3f}"
                    f" {more:+.3f} ±{error:.3f} {holds:6.3f} {same:6.3f} {first * 1000:9.0f} ms"
                    f" {first / base:8.3f}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--questions", type=int, default=300, help="of each size")
    parser.add_argument("--passages", type=int, nargs="+", default=[3, 8, 20])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--save", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="results to tabulate")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--n-threads", type=int)
    arguments = parser.parse_args()
    if arguments.rows:
        return table(together(arguments.rows))
    if arguments.prompts:
        prompts = json.loads(gzip.decompress(arguments.prompts.read_bytes()))
    else:
        prompts = make_prompts(arguments.model, arguments.questions, arguments.passages)
    if arguments.save:
        arguments.save.write_bytes(gzip.compress(json.dumps(prompts).encode()))
        return print(f"{len(prompts)} prompts of {min(len(p['ids']) for p in prompts)} to "
                     f"{max(len(p['ids']) for p in prompts)} tokens: {arguments.save}")  # fmt: skip
    sets: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for prompt in prompts:
        sets.setdefault((prompt["size"], prompt["set"]), []).append(prompt)
    part, parts = map(int, arguments.part.split("/"))
    out = arguments.out or Path("apart.jsonl")
    with contextlib.closing(out.open("w", encoding="utf-8")) as file:
        run(arguments.model, list(sets.values())[part::parts], arguments.ways, file,
            n_threads=arguments.n_threads)  # fmt: skip
    return table(together([out]))


if __name__ == "__main__":
    main()
