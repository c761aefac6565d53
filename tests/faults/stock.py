"""The usual LangChain pipeline over Chroma under the same kills: what a user is left with.

Documents are loaded, split and added one after another; after a kill the same is run again to its
end, as one does, and each passage is looked for by its own text.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import child
from corpus import Corpus, QuickEmbedder

N_DOCUMENTS = 420
AIMS = {"index": 45, "graph": 20, "random": 35}
_WRONG = (
    "cannot be opened or searched", "hold passages twice", "do not find some passages",
    "lack passages",
)  # fmt: skip


class Embedder:
    """The same embedder, as LangChain calls it."""

    def embed_documents(self, texts):
        return QuickEmbedder().passages(texts).tolist()

    def embed_query(self, text):
        return QuickEmbedder().query(text)[0].tolist()


def collection(folder):
    import chromadb
    from langchain_community.vectorstores import Chroma

    settings = chromadb.config.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(folder), settings)
    return Chroma(client=client, embedding_function=Embedder())


def pieces_of(documents):
    """The pieces of each document, as the usual splitter cuts them."""
    from langchain_community.document_loaders import TextLoader
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(chunk_size=500, chunk_overlap=50)
    for path in sorted(documents.iterdir()):
        yield splitter.split_documents(TextLoader(str(path)).load())


def ingest(folder, documents, acks=None):
    """Add every document; in `acks`, if given, stands a byte for each that was added."""
    store = collection(folder)
    for pieces in pieces_of(documents):
        store.add_documents(pieces)
        if acks is not None:
            with open(acks, "ab") as file:
                file.write(b".")


def inspect(folder):
    """How many passages there are, how many texts, and how many of some are not found."""
    store = collection(folder)
    texts = store.get(include=["documents"])["documents"]
    some = sorted(set(texts))[::5]
    missed = sum(text not in {d.page_content for d in store.similarity_search(text, 3)}
                 for text in some)  # fmt: skip
    return {"passages": len(texts), "texts": len(set(texts)), "missed": missed}


def in_a_process(name, *arguments):
    """Chroma may end the process that opens a damaged collection."""
    command = [sys.executable, __file__, name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def start(folder, documents, acks):
    process = child.PROCESSES.Process(target=ingest, args=(folder, documents, acks))
    process.start()
    return process


def wait_for(n, acks, process):
    """Wait until `n` documents were added: a kill before the first would find nothing to spoil."""
    while process.is_alive() and (not acks.exists() or acks.stat().st_size < n):
        time.sleep(0.002)


def one_kill(scratch, rng, seconds):
    """What one kill did, in the words of `_WRONG`; None when the ingest ended before."""
    from kills import kill_at

    corpus = Corpus(scratch / "docs", N_DOCUMENTS, rng.randrange(1 << 30))
    store = scratch / "store"
    store.mkdir()
    folder = store / "index-stock"
    process = start(folder, corpus.folder, acks := scratch / "acks")
    wait_for(rng.randrange(1, N_DOCUMENTS), acks, process)
    aim = rng.choices(list(AIMS), list(AIMS.values()))[0]
    if not kill_at(process, store, aim, rng, seconds):
        return None
    again = in_a_process("ingest", folder, corpus.folder)
    seen = in_a_process("inspect", folder)
    if again.returncode or seen.returncode:
        return {_WRONG[0]}
    found = json.loads(seen.stdout.splitlines()[-1])
    expected = {p.page_content for pieces in pieces_of(corpus.folder) for p in pieces}
    is_wrong = (
        False,
        found["passages"] > found["texts"],
        found["missed"] > 0,
        found["texts"] < len(expected),
    )
    return {text for text, holds in zip(_WRONG, is_wrong, strict=True) if holds}


def main(count, seed):
    rng, counts, n_kills, n_whole = random.Random(seed), Counter(), 0, 0
    while n_kills < count:
        with tempfile.TemporaryDirectory(prefix="stock-") as folder:
            wrong = one_kill(Path(folder), rng, seconds=1)
        if wrong is None:
            continue
        n_kills += 1
        n_whole += not wrong
        counts.update(wrong)
        print(f"{n_kills} of {count} kills of the usual pipeline", end="\r", flush=True)
    print(f"\n{count} kills of the usual pipeline, each then run again to its end; of the stores")
    for text in _WRONG:
        print(f"{counts[text]:6,}  {text}")
    print(f"{n_whole:6,}  are as they should be")


if __name__ == "__main__":
    task, *paths = sys.argv[1:]
    result = {"ingest": ingest, "inspect": inspect}[task](*map(Path, paths))
    print(json.dumps(result))
