"""Ingest beside the stock LangChain pipeline and beside the embedder alone, in one run.

    .venv/bin/python tests/benchmarks/ingest.py [--rounds 3] [--documents FOLDER] [--memory MB ...]

All ways use the same embedder, loaded and warm, on the same documents, each in a process of its
own, taking turns. `stock` is PyPDFLoader or TextLoader, RecursiveCharacterTextSplitter (500
characters, 50 shared) and Chroma. `embedder alone` embeds the windows that ours made, and nothing
else. Documents are those of MIXTRAL_RAG_TEST_DATA, else the samples of the repository. `--memory`
ingests so much text with vectors of 384 random numbers instead, and gives the peak of each.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def documents() -> Path:
    data = os.environ.get("MIXTRAL_RAG_TEST_DATA")
    return Path(data) / "docs" if data else HERE.parent.parent / "examples" / "docs"


def warm_embedder() -> Any:
    from mixtral_rag.embeddings import open_embedder

    embedder = open_embedder()
    embedder.passages(["warm up " * 50] * 4)
    embedder.count("warm")
    return embedder


class Recording:
    """Passes everything to an embedder and keeps the texts of each call."""

    def __init__(self, embedder: Any) -> None:
        self._embedder = embedder
        self.calls: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def passages(self, texts: list[str]) -> Any:
        self.calls.append(list(texts))
        return self._embedder.passages(texts)


def ours(folder: Path, scratch: Path) -> dict[str, float]:
    """The whole ingest, then once more with nothing changed, then the embedder alone."""
    from mixtral_rag.ingest.pipeline import ingest
    from mixtral_rag.store.documents import DocumentStore

    embedder = Recording(warm_embedder())
    store = DocumentStore(scratch / "store", embedder)
    started = time.perf_counter()
    report = ingest([folder], store)
    total = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    again = ingest([folder], store)
    unchanged = time.perf_counter() - started
    assert len(again.unchanged) == len(report.added), again
    calls, embedder.calls = embedder.calls, []
    started = time.perf_counter()
    for texts in calls:
        embedder.passages(texts)
    alone = time.perf_counter() - started
    return {"seconds": total, "alone": alone, "unchanged": unchanged, "peak_mb": peak,
            "passages": report.n_passages}  # fmt: skip


def stock(folder: Path, scratch: Path) -> dict[str, float]:
    import chromadb
    from langchain_community.document_loaders import PyPDFLoader, TextLoader
    from langchain_community.vectorstores import Chroma
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    embedder = warm_embedder()
    splitter = RecursiveCharacterTextSplitter(chunk_size=500, chunk_overlap=50)
    started = time.perf_counter()
    chunks = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".pdf", ".txt", ".html", ".md"):
            kind = PyPDFLoader if path.suffix == ".pdf" else TextLoader
            chunks += splitter.split_documents(kind(str(path)).load())
    settings = chromadb.config.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(scratch / "chroma"), settings)
    Chroma.from_documents(chunks, embedder, client=client)
    total = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": total, "peak_mb": peak, "passages": len(chunks)}


def changed(folder: Path, scratch: Path) -> dict[str, float]:
    """One changed file among 1,000, in a new process: what it costs beside its own embedding."""
    from mixtral_rag.ingest.pipeline import ingest
    from mixtral_rag.store.documents import DocumentStore

    many = scratch / "many"
    many.mkdir()
    for n in range(1000):
        (many / f"{n:04}.txt").write_text(f"File number {n} tells of {n * 7} things.\n")
    embedder = warm_embedder()
    store = DocumentStore(scratch / "many-store", embedder)
    first = ingest([many], store).seconds
    (many / "0500.txt").write_text("This one file is another now.\n")
    started = time.perf_counter()
    embedder.passages(["This one file is another now."])
    own = time.perf_counter() - started
    started = time.perf_counter()
    report = ingest([many], store)
    took = time.perf_counter() - started
    assert len(report.updated) == 1, report
    return {"first": first, "seconds": took, "own": own}


class RandomEmbedder:
    """Vectors at no cost, so that everything else shows."""

    fingerprint, max_tokens, relevant = "random:384", 512, 0.0

    def __init__(self) -> None:
        import numpy as np

        self._draw = np.random.default_rng(0)
        self._topics = self._draw.standard_normal((500, 384), np.float32)

    def count(self, text: str) -> int:
        return len(text) // 4 + 1

    def passages(self, texts: list[str]) -> Any:
        import numpy as np

        vectors = self._topics[self._draw.integers(0, 500, len(texts))]
        vectors = vectors + self._draw.standard_normal(vectors.shape, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def query(self, text: str) -> Any:
        return self.passages([text])


def memory(folder: Path, scratch: Path) -> dict[str, float]:
    from mixtral_rag.ingest.pipeline import ingest
    from mixtral_rag.store.documents import DocumentStore

    store = DocumentStore(scratch / "store", RandomEmbedder())
    report = ingest([folder], store)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": report.seconds, "peak_mb": peak, "passages": report.n_passages}


def write_text(folder: Path, megabytes: int) -> None:
    import random

    words = [f"word{n}" for n in range(5000)]
    draw = random.Random(0)
    folder.mkdir()
    for n in range(megabytes):
        lines = (" ".join(draw.choices(words, k=12)) + ".\n" for _ in range(13_000))
        (folder / f"{n}.txt").write_text("".join(lines))


def run(part: str, folder: Path) -> dict[str, float]:
    """One way in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--part", part, "--documents", str(folder),
                   "--scratch", scratch]  # fmt: skip
        out = subprocess.run(command, capture_output=True, text=True, check=False)
        if out.returncode:
            sys.exit(out.stderr[-3000:])
        found: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
        return found


def compare(folder: Path, rounds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {"ours": [], "stock": []}
    for round_ in range(rounds):
        for part in (("ours", "stock"), ("stock", "ours"))[round_ % 2]:
            found[part].append(run(part, folder))
            print(part, found[part][-1], file=sys.stderr)
    mine, theirs = found["ours"], found["stock"]

    def median(rows: list[dict[str, float]], key: str) -> float:
        return statistics.median(row[key] for row in rows)

    def ratio(key: str, of: str) -> float:
        return statistics.median(row[key] / row[of] for row in mine)

    print(f"\n{'':24} {'seconds':>9} {'passages':>9} {'peak MB':>8}")
    for name, rows in (("ours", mine), ("stock", theirs)):
        print(f"{name:24} {median(rows, 'seconds'):9.1f} {rows[0]['passages']:9.0f} "
              f"{median(rows, 'peak_mb'):8.0f}")  # fmt: skip
    print(f"{'embedder alone':24} {median(mine, 'alone'):9.1f} {mine[0]['passages']:9.0f}")
    print(f"{'unchanged, once more':24} {median(mine, 'unchanged'):9.4f}")
    print(f"\nours / embedder alone    {ratio('seconds', 'alone'):9.3f}")
    print(f"ours / stock             {median(mine, 'seconds') / median(theirs, 'seconds'):9.3f}")
    print(f"first / unchanged        {ratio('seconds', 'unchanged'):9.0f}")
    one = run("changed", folder)
    print(f"one of 1,000 changed     {one['seconds']:9.2f} s, its own embedding {one['own']:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=Path, default=documents())
    parser.add_argument("--memory", nargs="+", type=int, default=[], metavar="MB")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part = {"ours": ours, "stock": stock, "changed": changed, "memory": memory}
        print(json.dumps(part[arguments.part](arguments.documents, arguments.scratch)))
    elif arguments.memory:
        for megabytes in arguments.memory:
            with tempfile.TemporaryDirectory() as scratch:
                write_text(Path(scratch) / "text", megabytes)
                print(megabytes, "MB of text:", run("memory", Path(scratch) / "text"))
    else:
        compare(arguments.documents, arguments.rounds)


if __name__ == "__main__":
    main()
