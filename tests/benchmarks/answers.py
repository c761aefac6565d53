"""Answers on CMRC 2018 dev, end to end, with whatever model is given.

    .venv/bin/python tests/benchmarks/answers.py [MODEL.gguf] [--questions 40] [--plot answers.png]

A sample of questions is asked of all 848 paragraphs: exact match and F1 with the known answers (as
the CMRC evaluation counts: characters, longest common part), how many of the cited passages are
from the right paragraph (precision), how many questions have it cited (recall), how many sentences
passed the check of claims. Then the sample's paragraphs are removed and the same questions asked
again: how many are declined. Without a model SmolLM2-135M answers, which knows no Chinese: the
plumbing only.
"""

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DECLINED = re.compile(
    r"没有(?:答案|提到|提及|相关|说明|找到)|无法(?:回答|确定)|do(?:es)? not (?:answer|contain|hold)"
)
MARKS = re.compile(r"[\[［【]\d[\d,，、; ]*[\]］】]")


def cmrc() -> list[dict[str, Any]]:
    folder = os.environ.get("MIXTRAL_RAG_TEST_DATA")
    if not folder:
        sys.exit("set MIXTRAL_RAG_TEST_DATA to the folder that holds cmrc2018/cmrc2018_dev.json")
    text = (Path(folder) / "cmrc2018" / "cmrc2018_dev.json").read_text("utf-8")
    return [p for article in json.loads(text)["data"] for p in article["paragraphs"]]


def plain(text: str) -> str:
    """Letters, digits and Chinese characters alone."""
    return "".join(re.findall(r"[^\W_]", MARKS.sub("", text).lower()))


def common(a: str, b: str) -> int:
    """Length of the longest part that stands in both."""
    best, row = 0, [0] * (len(b) + 1)
    for x in a:
        previous = 0
        for j, y in enumerate(b, start=1):
            previous, row[j] = row[j], previous + 1 if x == y else 0
            best = max(best, row[j])
    return best


def f1(said: str, known: list[str]) -> float:
    scores = [0.0]
    for answer in map(plain, known):
        shared = common(plain(said), answer)
        if shared:
            precision, recall = shared / len(plain(said)), shared / len(answer)
            scores.append(2 * precision * recall / (precision + recall))
    return max(scores)


def asked(qa: Any, paragraphs: list[dict[str, Any]], chosen: list[int]) -> dict[str, float]:
    rows: list[tuple[float, ...]] = []
    seconds = []
    for number in chosen:
        question = paragraphs[number]["qas"][0]
        known = [a["text"] for a in question["answers"]]
        started = time.perf_counter()
        answer = qa.ask(question["question"])
        seconds.append(time.perf_counter() - started)
        cited = [c.passage.path == str(number) for c in answer.citations]
        rows.append((
            plain(answer.text) in map(plain, known), f1(answer.text, known),
            sum(cited) / len(cited) if cited else 0.0, any(cited),
            statistics.mean(c.is_supported for c in answer.claims) if answer.claims else 0.0,
        ))  # fmt: skip
    names = ("exact match", "F1", "citation precision", "citation recall", "claims supported")
    means = {n: statistics.mean(c) for n, c in zip(names, zip(*rows, strict=True), strict=True)}
    return means | {"seconds": statistics.median(seconds)}


def declined(qa: Any, paragraphs: list[dict[str, Any]], chosen: list[int]) -> float:
    answers = [qa.ask(paragraphs[number]["qas"][0]["question"]) for number in chosen]
    return statistics.mean(not a.found or bool(DECLINED.search(a.text)) for a in answers)


def plot(values: dict[str, float], model: str, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = [n for n in values if n != "seconds"]
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    bars = axes.barh(names[::-1], [values[n] for n in names[::-1]], color="#4477aa")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlim=(0, 1.08), xlabel="share of 1", title=f"CMRC 2018 dev, {model}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--context-tokens", type=int, default=2048)
    parser.add_argument("--reading", choices=("together", "apart"), default="together")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    from langchain_core.documents import Document

    from mixtral_rag import open_qa
    from mixtral_rag.settings import Settings, find_model

    model = arguments.model or str(find_model(Settings())[0])
    paragraphs = cmrc()
    chosen = list(range(0, len(paragraphs), max(1, len(paragraphs) // arguments.questions)))
    chosen = chosen[: arguments.questions]
    with tempfile.TemporaryDirectory() as folder:
        qa = open_qa(
            store=folder, model=model, max_tokens=arguments.max_tokens,
            context_tokens=arguments.context_tokens, qa_options={"reading": arguments.reading},
        )  # fmt: skip
        qa.ingest_documents(
            Document(page_content=p["context"], metadata={"source": str(i)})
            for i, p in enumerate(paragraphs)
        )
        values = asked(qa, paragraphs, chosen)
        with qa.store.writing(), qa.store.step() as step:
            step.remove([Path(str(i)) for i in chosen])
        values["declined without paragraph"] = declined(qa, paragraphs, chosen)
        qa.close()
    print(f"{Path(model).name}, {len(chosen)} questions, {arguments.context_tokens} tokens, "
          f"passages read {arguments.reading}")  # fmt: skip
    for name, value in values.items():
        print(f"  {name:28} {value:6.3f}")
    if arguments.plot:
        plot(values, Path(model).name, arguments.plot)


if __name__ == "__main__":
    main()
