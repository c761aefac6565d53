"""What must hold of a store, whatever happened to the process that wrote it."""

from collections import Counter
from itertools import pairwise

from corpus import QuickEmbedder

from mixtral_rag.store.bm25 import Bm25
from mixtral_rag.store.documents import DocumentStore


class FaultError(AssertionError):
    """A store that is not as it must be."""


def opened(folder, **options):
    return DocumentStore(folder, QuickEmbedder(), **options)


def content(store):
    """The passages of each document by its name, as the ledger has them."""
    rows = store.db.select(
        "SELECT d.path, p.position, p.text FROM documents d JOIN passages p"
        " ON p.document_id = d.id ORDER BY d.path, p.position"
    ).fetchall()
    found = {}
    for path, position, text in rows:
        texts = found.setdefault(path.decode().rsplit("/", 1)[-1], [])
        if position != len(texts):
            raise FaultError(f"{path} has passages out of order: {position} after {len(texts)}")
        texts.append(text)
    return {name: tuple(texts) for name, texts in found.items()}


def check(folder, before, corpus, acknowledged, *, by_index=False, every=1):
    """Check a store after an ingest of `corpus` was cut off; returns its content.

    Each document is as it was `before` or as its file is now, the `acknowledged` ones are as their
    files are now, and every passage (or every n-th) is found by its own text.
    """
    store = opened(folder, exact_bytes=0 if by_index else 1 << 30)
    try:
        now, disk = content(store), corpus.passages()
        for name in {*now, *before, *disk}:
            if now.get(name) not in (before.get(name), disk.get(name)):
                raise FaultError(f"{name} is neither as it was nor as its file is")
        for name in acknowledged:
            if now.get(name) != disk[name]:
                raise FaultError(f"{name} was acknowledged and is not as its file is")
        for old, new in corpus.moves.items():
            if old in before and old not in now and new not in now:
                raise FaultError(f"{old} was renamed to {new}, and both are gone")
        check_found(store, [t for texts in now.values() for t in texts][::every])
        return now
    finally:
        store.close()


def check_found(store, texts):
    """Every passage is found by its own text, and by its words."""
    missed = [t for t in texts if not any(p.text == t for p in store.search(t, 1))]
    if missed:
        raise FaultError(f"{len(missed)} not found by their own text: {missed[0][:60]}")
    for text in texts[::10]:
        found = Bm25(store.db).find(text, 3)
        if text not in {p.text for p in store.ledger.passages([k for k, _ in found]).values()}:
            raise FaultError(f"not found by its own words: {text[:60]}")


def check_equal(folder, fresh):
    """A store equals one that was made undisturbed, and nothing else lies in its folder."""
    here, there = _everything(folder), _everything(fresh)
    for part, rows in there.items():
        if here[part] != rows:
            less, more = Counter(rows) - Counter(here[part]), Counter(here[part]) - Counter(rows)
            raise FaultError(f"{part} differ: {len(less)} are lacking, {len(more)} are too many")
    store = opened(folder)
    try:
        for part, problem in store.verify().items():
            if problem:
                raise FaultError(f"the {part} {problem}")
        index = store.db.get("index")
    finally:
        store.close()
    left = {p.name for p in folder.iterdir()}
    left -= {index, "ledger.db", "ledger.db-wal", "ledger.db-shm", "writer.lock"}
    if left:
        raise FaultError(f"left behind: {sorted(left)}")


def _everything(folder):
    store = opened(folder)
    try:
        found = {
            "documents": store.db.select(
                "SELECT path, is_file, title, encoding, sha256, recipe, size, mtime_ns, n_pages,"
                " pages, problems, error FROM documents ORDER BY path"
            ).fetchall(),
            "passages": store.db.select(
                "SELECT p.key, d.path, p.position, p.text, p.section, e.hash FROM passages p"
                " JOIN documents d ON d.id = p.document_id"
                " JOIN embeddings e ON e.id = p.embedding_id ORDER BY p.key"
            ).fetchall(),
            "vectors": store.db.select("SELECT hash, vector FROM embeddings ORDER BY 1").fetchall(),
        }
    finally:
        store.close()
    for a, b in pairwise(found["passages"]):
        if a[0] == b[0]:
            raise FaultError(f"two passages have the key {a[0]}")
    return found
