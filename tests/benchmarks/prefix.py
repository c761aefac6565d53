"""Time to the first token when a prompt begins as one before did.

    .venv/bin/python tests/benchmarks/prefix.py [MODEL.gguf] [--sizes 2000 4000] [--plot prefix.png]

Passages of a real manual and questions about them, the same text for all, one run. Each engine has
two processes: the first is asked (a) a first question, (b) a second about the same passages, (d)
a chat's second to fifth turn, the fifth of which counts, and (e) a question about the same passages
found in another order; the second process is asked (c) another question about the same passages.
What keeping the first prompt costs is the time from the last piece of its text to its end.

`bare` is llama-cpp-python, which goes on from its last prompt; `langchain` is LlamaCpp of
langchain-community over it; `its disk cache` is llama-cpp-python with LlamaDiskCache. In (e) the
others read passages as they were found, best first, and mixtral_rag in the order of documents.
`read apart` is mixtral_rag with each passage computed on its own, in the order they were found.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ENGINES = ("mixtral_rag", "read apart", "bare", "langchain", "its disk cache")
CASES = {
    "a": "first question", "b": "second question", "c": "new process", "d": "chat, fifth turn",
    "e": "other order",
}  # fmt: skip
_QUESTIONS = (
    "What does a maintainer check before uploading?", "Which file lists the changes?",
    "How is a package built again?", "Where are bugs reported?", "Who signs the upload?",
    "What is a patch good for?", "Which tool checks a package for mistakes?",
)  # fmt: skip
_ANSWER = "It is described in the passages above; see the section on it [2]."
_N_PASSAGES, _MORE_CTX = 8, 512
_INSTRUCTIONS = "Answer the question from the numbered passages below, with their numbers."


def manual() -> str:
    """The text of a manual of 50 pages."""
    folder = os.environ.get("MIXTRAL_RAG_TEST_DATA")
    if not folder:
        sys.exit("set MIXTRAL_RAG_TEST_DATA to the folder that holds docs/maint-guide.en.pdf")
    import pypdf

    pages = pypdf.PdfReader(Path(folder) / "docs" / "maint-guide.en.pdf").pages
    return " ".join(" ".join(page.extract_text() for page in pages).split())


def passages(text: str, n_tokens: int, count: Callable[[str], int]) -> list[str]:
    """The beginning of a text in numbered parts, of about so many tokens together."""
    text *= 1 + 6 * n_tokens // len(text)
    n_characters = 4 * n_tokens
    for _ in range(3):
        n_characters = n_characters * n_tokens // count(text[:n_characters])
    size = n_characters // _N_PASSAGES
    return [f"[{i + 1}] {text[i * size : (i + 1) * size].strip()}" for i in range(_N_PASSAGES)]


def prompt(parts: list[str], question: str) -> str:
    return "\n\n".join([_INSTRUCTIONS, *parts, f"Question: {question}\nAnswer:"])


def questions(parts: list[str], other: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What the first process is asked and what the second; other keys are not shown."""
    first = prompt(parts, _QUESTIONS[0])
    asked = {"a": first, "b": prompt(parts, _QUESTIONS[1])}
    talk = first
    for turn, question in enumerate(_QUESTIONS[2:6], start=2):
        talk += f" {_ANSWER}\n\nQuestion: {question}\nAnswer:"
        asked["d" if turn == 5 else f"turn {turn}"] = talk
    asked["e"] = prompt(other, _QUESTIONS[6])
    return asked, {"c": prompt(parts, _QUESTIONS[3])}


# --- the engines: each gives a function from a prompt to its pieces ------------------------------


def ours(model: str, n_ctx: int, folder: Path) -> Callable[[str], Iterator[Any]]:
    from mixtral_rag.engines.llamacpp import LlamaCppEngine
    from mixtral_rag.types import SamplingOptions

    engine = LlamaCppEngine(model, n_ctx=n_ctx, kv_folder=folder)
    options = SamplingOptions(temperature=0, repeat_penalty=1, max_tokens=4)
    return lambda text: engine.generate(engine.tokenizer.encode(text), options)


def apart(model: str, n_ctx: int, folder: Path, parts: list[str]) -> Callable[[str], Iterator[Any]]:
    from mixtral_rag.engines import PassagePrompt
    from mixtral_rag.engines.llamacpp import LlamaCppEngine
    from mixtral_rag.prompts import text_spans
    from mixtral_rag.types import SamplingOptions

    engine = LlamaCppEngine(model, n_ctx=n_ctx, kv_folder=folder)
    options = SamplingOptions(temperature=0, repeat_penalty=1, max_tokens=4)

    def ask(text: str) -> Iterator[Any]:
        ids = engine.tokenizer.encode(text)
        texts = sorted((f"{part}\n\n" for part in parts), key=text.find)
        spans = text_spans(ids, engine.tokenizer, texts) if texts[0] in text else []
        return engine.generate(PassagePrompt(ids, spans) if spans else ids, options)

    return ask


def bare(model: str, n_ctx: int, folder: Path | None = None) -> Callable[[str], Iterator[Any]]:
    import llama_cpp

    llama = llama_cpp.Llama(model, n_ctx=n_ctx, n_batch=512, verbose=False)
    if folder is not None:
        llama.set_cache(llama_cpp.LlamaDiskCache(str(folder)))
    return lambda text: llama.create_completion(text, max_tokens=4, temperature=0, stream=True)


def langchain(model: str, n_ctx: int, _: Path) -> Callable[[str], Iterator[Any]]:
    from langchain_community.llms import LlamaCpp

    llm = LlamaCpp(
        model_path=model, n_ctx=n_ctx, n_batch=512, max_tokens=4, temperature=0, verbose=False
    )
    return llm.stream


def open_one(
    name: str, model: str, n_ctx: int, folder: Path, parts: list[str]
) -> Callable[[str], Iterator[Any]]:
    if name == "read apart":
        return apart(model, n_ctx, folder, parts)
    if name == "bare":
        return bare(model, n_ctx)
    return {"mixtral_rag": ours, "langchain": langchain, "its disk cache": bare}[name](
        model, n_ctx, folder
    )


def session(
    name: str,
    model: str,
    n_ctx: int,
    folder: Path,
    parts: list[str],
    asked: dict[str, str],
    out: Any,
):
    """In a process of its own: seconds to the first piece of each answer, and from text to end."""
    if name == "its disk cache":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it prints whatever it does
    ask = open_one(name, model, n_ctx, folder, parts)
    list(ask("Hello"))
    taken = {}
    for case, text in asked.items():
        started, times = time.perf_counter(), []
        for _ in ask(text):
            times.append(time.perf_counter() - started)
        taken[case] = (times[0], times[-1] - times[-2])
    out.send(taken)


def measured(
    name: str, model: str, n_ctx: int, folder: Path, parts: list[str], asked: dict[str, str]
):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=session, args=(name, model, n_ctx, folder, parts, asked, theirs)
    )
    process.start()
    theirs.close()
    taken = ours.recv()
    process.join()
    return taken


def compared(model: str, n_tokens: int, text: str, engines: list[str]) -> dict[str, Any]:
    """Of each engine: seconds to the first token by case, and bytes on disk."""
    from mixtral_rag.engines.llamacpp import LlamaCppEngine

    tokenizer = LlamaCppEngine(model).tokenizer
    parts = passages(text, n_tokens, lambda t: len(tokenizer.encode(t)))
    rows = {}
    for name in engines:
        found = parts if name == "mixtral_rag" else parts[1:] + parts[:1]
        asked, later = questions(parts, found)
        with tempfile.TemporaryDirectory(prefix="prefix-") as folder:
            taken = measured(name, model, n_tokens + _MORE_CTX, Path(folder), parts, asked)
            on_disk = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
            taken |= measured(name, model, n_tokens + _MORE_CTX, Path(folder), parts, later)
        rows[name] = {case: taken[case][0] for case in CASES} | {
            "bytes": on_disk, "keeping": taken["a"][1]
        }  # fmt: skip
        show(n_tokens, name, rows[name], rows[engines[0]])
    return rows


def show(n_tokens: int, name: str, row: dict[str, float], first: dict[str, float]) -> None:
    cells = "  ".join(f"{case} {row[case]:7.2f}" for case in CASES)
    times = "" if row is first else "  " + ", ".join(
        f"{case} {row[case] / first[case]:.1f}x" for case in CASES
    )  # fmt: skip
    kept = f"{row['bytes'] / 1e6:7.0f} MB, keeping {row['keeping'] / row['a']:.1%} of a"
    print(f"{n_tokens:6,}  {name:15}{cells} s  {kept}{times}", flush=True)


def plot(results: dict[int, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(results), figsize=(4.2 * len(results), 3.6), sharey=True, layout="constrained"
    )
    colours = ("#4477aa", "#66ccee", "#ee6677", "#ccbb44", "#aa3377")
    for axis, (n_tokens, rows) in zip([axes] if len(results) == 1 else axes, results.items(),
                                      strict=True):  # fmt: skip
        width = 0.8 / len(rows)
        for i, (name, row) in enumerate(rows.items()):
            places = [n + (i - (len(rows) - 1) / 2) * width for n in range(len(CASES))]
            axis.bar(places, [row[c] for c in CASES], width, label=name, color=colours[i])
        axis.set(yscale="log", title=f"{n_tokens:,} tokens")
        axis.set_xticks(range(len(CASES)), [t.replace(" ", "\n", 1) for t in CASES.values()])
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set(ylabel="seconds to the first token")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a GGUF file; default: the demonstration model")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 4000, 8000, 16000])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    from mixtral_rag.settings import Settings, find_model

    model, text, results = arguments.model or str(find_model(Settings())[0]), manual(), {}
    print(f"{Path(model).name}: seconds to the first token, "
          + ", ".join(f"{case} {name}" for case, name in CASES.items()))  # fmt: skip
    for n_tokens in arguments.sizes:
        results[n_tokens] = compared(model, n_tokens, text, arguments.engines)
    if arguments.json:
        arguments.json.write_text(json.dumps(results))
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
