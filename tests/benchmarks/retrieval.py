"""Search on CMRC 2018 dev: dense, keyword and hybrid, beside the stock LangChain retriever.

    .venv/bin/python tests/benchmarks/retrieval.py [--questions N] [--long] [--scale 100000]

848 paragraphs, 3,219 questions, one embedder, one run. `paragraphs`: each paragraph is a document,
and it counts which place the right one has. `documents of 20`: twenty paragraphs make a document.
With headings it counts which place the right section has; without, which one the first passage has
that holds the answer where it stands, or whose neighbour does: the model reads both. `stock` is
RecursiveCharacterTextSplitter (500 characters, 50 shared) and Chroma.
`traditional` asks the same questions in Traditional Chinese.

`--scale` fills stores with so many passages of shuffled sentences, with vectors made at random
around 500 topics, and times each way of searching.
"""

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

Ranks = list[int | None]
LONGEST = 10


def cmrc() -> tuple[list[tuple[str, str]], list[tuple[str, int, str]]]:
    """Titles and paragraphs; questions, numbers of paragraphs, what stands around the answers."""
    folder = os.environ.get("MIXTRAL_RAG_TEST_DATA")
    if not folder:
        sys.exit("set MIXTRAL_RAG_TEST_DATA to the folder that holds cmrc2018/cmrc2018_dev.json")
    text = (Path(folder) / "cmrc2018" / "cmrc2018_dev.json").read_text("utf-8")
    paragraphs, questions = [], []
    for article in json.loads(text)["data"]:
        for paragraph in article["paragraphs"]:
            context = paragraph["context"]
            for asked in paragraph["qas"]:
                start = asked["answers"][0]["answer_start"]
                answer = asked["answers"][0]["text"]
                start = start if context[start:].startswith(answer) else context.find(answer)
                place = bare(context[max(0, start - 8) : start + len(answer) + 8])
                questions.append((asked["question"], len(paragraphs), place))
            paragraphs.append((article["title"], context))
    return paragraphs, questions


def bare(text: str) -> str:
    return "".join(text.split())


class Cached:
    """Embeds every question once for all ways, and passes all else on."""

    def __init__(self, embedder: Any) -> None:
        self._embedder, self._queries = embedder, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def query(self, text: str) -> Any:
        if text not in self._queries:
            self._queries[text] = self._embedder.query(text)
        return self._queries[text]

    def embed_query(self, text: str) -> list[float]:
        return self.query(text)[0].tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.passages(texts).tolist()


def report(name: str, ranks: Ranks, seconds: float) -> None:
    n = len(ranks)
    recall = {k: sum(r is not None and r < k for r in ranks) / n for k in (1, 3, 5, 10)}
    mrr = sum(1 / (r + 1) for r in ranks if r is not None) / n
    gain = sum(1 / math.log2(r + 2) for r in ranks if r is not None) / n
    shown = "  ".join(f"{recall[k]:.4f}" for k in recall)
    print(f"{name:26} {shown}  {mrr:.4f}  {gain:.4f}  {seconds / n * 1000:7.1f}", flush=True)


def head(title: str) -> None:
    print(f"\n{title}\n{'':26} {'@1':>6}  {'@3':>6}  {'@5':>6}  {'@10':>6}  {'MRR':>6}  "
          f"{'nDCG10':>6}  {'ms/query':>7}")  # fmt: skip


def ranked(
    questions: Iterable[tuple[str, int, str]],
    search: Callable[[str], list[Any]],
    is_right: Callable[[Any, int, str], bool],
    name_of: Callable[[Any], Any] = id,
) -> tuple[Ranks, float]:
    """The place of the first right hit among different names, for every question."""
    ranks: Ranks = []
    seconds = 0.0
    for question, gold, place in questions:
        started = time.perf_counter()
        hits = search(question)
        seconds += time.perf_counter() - started
        names = list(dict.fromkeys(name_of(hit) for hit in hits))
        first = next((hit for hit in hits if is_right(hit, gold, place)), None)
        rank = LONGEST if first is None else names.index(name_of(first))
        ranks.append(rank if rank < LONGEST else None)
    return ranks, seconds


def stock(embedder: Any, texts: list[str], names: list[str]) -> Any:
    from langchain_community.vectorstores import Chroma
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(chunk_size=500, chunk_overlap=50)
    documents = splitter.create_documents(texts, [{"source": n} for n in names])
    store = Chroma(embedding_function=embedder, collection_name=f"stock{len(texts)}{names[0]}")
    for start in range(0, len(documents), 2000):
        store.add_documents(documents[start : start + 2000])
    return store


def measure(
    title: str, store: Any, questions: list[tuple[str, int, str]],
    unit: Callable[[Any], Any], is_right: Callable[[Any, int, str], bool],
) -> None:  # fmt: skip
    from mixtral_rag.retrieve import Retriever

    head(title)
    for mode in ("dense", "keyword", "hybrid"):
        search = Retriever(store, top_k=4 * LONGEST, mode=mode).search
        report(mode, *ranked(questions, search, is_right, unit))


def measure_stock(
    store: Any, questions: list[tuple[str, int, str]],
    unit: Callable[[Any], Any], is_right: Callable[[Any, int, str], bool],
) -> None:  # fmt: skip
    search = lambda q: store.similarity_search(q, k=4 * LONGEST)  # noqa: E731
    report("stock LangChain", *ranked(questions, search, is_right, unit))


def quality(n_questions: int, scratch: Path) -> None:
    import opencc
    from langchain_core.documents import Document

    from mixtral_rag.embeddings import open_embedder
    from mixtral_rag.qa import DocumentQA
    from mixtral_rag.store.documents import DocumentStore

    paragraphs, questions = cmrc()
    questions = questions[:: max(1, len(questions) // n_questions)]
    print(f"CMRC 2018 dev: {len(paragraphs)} paragraphs, {len(questions)} questions")
    embedder = Cached(open_embedder())
    for question, _, _ in questions:
        embedder.query(question)
    store = DocumentStore(scratch / "paragraphs", embedder)
    names = [str(i) for i in range(len(paragraphs))]
    texts = [text for _, text in paragraphs]
    DocumentQA(None, store).ingest_documents(
        Document(page_content=t, metadata={"source": n}) for n, t in zip(names, texts, strict=True)
    )
    measure(
        "paragraphs", store, questions, lambda p: p.path, lambda p, gold, _: p.path == str(gold)
    )
    source = lambda d: d.metadata["source"]  # noqa: E731
    measure_stock(
        stock(embedder, texts, names), questions, source, lambda d, gold, _: source(d) == str(gold)
    )
    convert = opencc.OpenCC("s2t").convert
    asked = [(convert(q), gold, place) for q, gold, place in questions]
    measure("paragraphs, asked in Traditional Chinese", store, asked, lambda p: p.path,
            lambda p, gold, _: p.path == str(gold))  # fmt: skip
    store.close()


def long_documents(n_questions: int, scratch: Path) -> None:
    from mixtral_rag.embeddings import open_embedder
    from mixtral_rag.qa import DocumentQA
    from mixtral_rag.store.documents import DocumentStore

    paragraphs, questions = cmrc()
    questions = questions[:: max(1, len(questions) // n_questions)]
    embedder = Cached(open_embedder())
    for question, _, _ in questions:
        embedder.query(question)
    for title, form in (("with headings", "## {} {}\n\n{}\n"), ("without headings", "{2}\n")):
        pieces = [form.format(i, *p) for i, p in enumerate(paragraphs)]
        long = ["\n".join(pieces[start : start + 20]) for start in range(0, len(pieces), 20)]
        folder = scratch / title.replace(" ", "-")
        folder.mkdir()
        for number, text in enumerate(long):
            (folder / f"{number}.md").write_text(text, "utf-8")
        store = DocumentStore(scratch / f"store {title}", embedder)
        DocumentQA(None, store).ingest([folder])

        def beside(passage: Any, _: int, place: str, store: DocumentStore = store) -> bool:
            near = store.ledger.near(passage.path, passage.position, 1)
            return place in bare("".join(p.text for p in near))

        if title == "with headings":
            in_section = lambda p, gold, _: (p.section or ("",))[-1].startswith(f"{gold} ")  # noqa: E731
            measure(f"documents of 20, {title}", store, questions, lambda p: p.section, in_section)
        else:
            measure(f"documents of 20, {title}", store, questions, lambda p: p.id, beside)
            chunks = stock(embedder, long, ["long"] * len(long))
            holds = lambda d, _, place: place in bare(d.page_content)  # noqa: E731
            measure_stock(chunks, questions, lambda d: d.page_content, holds)
        store.close()


def scale(n: int, scratch: Path) -> None:
    """Times at `n` passages; texts of shuffled sentences, vectors of random numbers."""
    from mixtral_rag.ingest.split import Window
    from mixtral_rag.language import sentences
    from mixtral_rag.store.documents import DocumentStore
    from mixtral_rag.store.embedded import text_hash
    from mixtral_rag.store.ledger import Document

    paragraphs, questions = cmrc()
    spoken = [s for _, text in paragraphs for s in sentences(text)]
    rng, chance = np.random.default_rng(1), random.Random(1)
    embedder = RandomEmbedder(rng)
    store = DocumentStore(scratch / f"scale{n}", embedder)
    started = time.perf_counter()
    with store.writing():
        for start in range(0, n, 2000):
            size = min(2000, n - start)
            texts = ["".join(chance.choices(spoken, k=9)) for _ in range(size)]
            hashes = [text_hash(f"{start + i}{t}") for i, t in enumerate(texts)]
            with store.step() as step:
                step.embed(hashes, embedder.passages(texts))
                windows = [Window(t, None, ()) for t in texts]
                step.put(Document(Path(f"/{start}"), is_file=False), windows, hashes)
    store.close()
    print(f"\n{n:,} passages, filled in {time.perf_counter() - started:.0f} s")
    asked = [q for q, _, _ in chance.sample(questions, 100)]
    started = time.perf_counter()
    store = DocumentStore(scratch / f"scale{n}", embedder)
    searching = store.searching
    searching.both(asked[0], 50)
    first = time.perf_counter() - started
    print(f"  the first question after opening the store {first:.1f} s")
    for name, search in (
        ("dense", lambda q: searching.both(q, 50, by_words=False)),
        ("dense and keyword", lambda q: searching.both(q, 50)),
    ):
        search(asked[0])
        times = []
        for question in asked:
            started = time.perf_counter()
            search(question)
            times.append((time.perf_counter() - started) * 1000)
        times.sort()
        print(f"  {name:20} median {statistics.median(times):6.1f} ms, "
              f"95 of 100 under {times[94]:6.1f} ms", flush=True)  # fmt: skip
    store.close()


class RandomEmbedder:
    """Vectors around 500 topics without meaning, of 384 dimensions as the embedded model's."""

    fingerprint, max_tokens, batch_tokens, relevant = "random", 512, 4096, -1.0

    def __init__(self, rng: Any) -> None:
        self._rng = rng
        self._topics = rng.standard_normal((500, 384), np.float32)

    def count(self, text: str) -> int:
        return len(text)

    def passages(self, texts: list[str]) -> Any:
        rows = self._topics[self._rng.integers(0, 500, len(texts))]
        rows = rows + self._rng.standard_normal(rows.shape, np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def query(self, text: str) -> Any:
        return self.passages([text])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--long", action="store_true", help="only the documents of 20")
    parser.add_argument("--scale", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.scale:
            for n in arguments.scale:
                scale(n, Path(scratch))
            return
        if not arguments.long:
            quality(arguments.questions, Path(scratch))
        long_documents(arguments.questions, Path(scratch))


if __name__ == "__main__":
    main()
