"""Ways of damaging the vector index of a store."""

import os
import random
import shutil
import sqlite3

DATABASE, DATA, METADATA = "chroma.sqlite3", "data_level0.bin", "index_metadata.pickle"
FILES = (DATABASE, DATA, "length.bin", "link_lists.bin", "header.bin", METADATA)


def _truncate(path, older, rng):
    os.truncate(path, 0)


def _halve(path, older, rng):
    os.truncate(path, path.stat().st_size // 2)


def _zero(path, older, rng):
    path.write_bytes(bytes(path.stat().st_size))


def _zero_a_part(path, older, rng):
    content = bytearray(path.read_bytes())
    start = rng.randrange(max(1, len(content) // 2))
    if path.name == DATABASE:  # most of its pages are free, and what is in those means nothing
        start = 4096 * (rng.choice(_pages_in_use(path)) - 1)
    part = slice(start, min(len(content), start + 4096))
    content[part] = bytes(len(content[part]))
    path.write_bytes(content)


def _pages_in_use(path):
    db = sqlite3.connect(path)
    pages = db.execute("SELECT DISTINCT pageno FROM dbstat ORDER BY pageno").fetchall()
    db.close()
    return [number for (number,) in pages]


def _flip(path, older, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _flip_quietly(path, older, rng):
    """A disk that gives other bytes than it was given, and keeps the time."""
    stat = path.stat()
    _flip(path, older, rng)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _delete(path, older, rng):
    path.unlink()


def _swap(path, older, rng):
    shutil.copy2(older, path)


def _inflate(path, older, rng):
    """As Chroma did after a fault: a sparse file of some gigabytes."""
    os.truncate(path, path.stat().st_size + (3 << 30))


WAYS = {
    f.__name__[1:]: f
    for f in (
        _truncate, _halve, _zero, _zero_a_part, _flip, _flip_quietly, _delete, _swap, _inflate
    )
}  # fmt: skip


def _folder_gone(store, index, older):
    shutil.rmtree(index)


def _folder_empty(store, index, older):
    shutil.rmtree(index)
    index.mkdir()


def _folder_a_file(store, index, older):
    shutil.rmtree(index)
    index.write_text("not a folder")


def _folder_older(store, index, older):
    shutil.rmtree(index)
    shutil.copytree(older, index)


def _graph_gone(store, index, older):
    for path in list(index.glob("*/*")):
        if path.is_dir():
            shutil.rmtree(path)


def _pointer(value):
    def damage(store, index, older):
        _change(store / "ledger.db", "UPDATE meta SET value = ? WHERE key = 'index'", value)

    return damage


def _pointer_to_an_older(store, index, older):
    shutil.copytree(older, store / "index-0older00")
    _pointer("index-0older00")(store, index, older)


def _meta(sql):
    return lambda store, index, older: _change(store / "ledger.db", sql)


def _chroma(sql):
    return lambda store, index, older: _change(next(index.rglob(DATABASE)), sql)


def _change(path, sql, *values):
    with sqlite3.connect(path) as db:
        db.execute(sql, values)
    db.close()


WHOLE = {
    "folder gone": _folder_gone,
    "folder empty": _folder_empty,
    "folder a file": _folder_a_file,
    "folder older": _folder_older,
    "graph gone": _graph_gone,
    "pointer to nothing": _pointer("index-ffffffff"),
    "pointer empty": _pointer(""),
    "pointer to an older": _pointer_to_an_older,
    "note junk": _meta("UPDATE meta SET value = 'junk' WHERE key = 'index_files'"),
    "note of another shape": _meta("UPDATE meta SET value = '[1]' WHERE key = 'index_files'"),
    "note gone": _meta("DELETE FROM meta WHERE key = 'index_files'"),
    "state gone": _meta("DELETE FROM meta WHERE key = 'index_state'"),
    "all of it forgotten": _meta("DELETE FROM meta WHERE key LIKE 'index%'"),
    "rows gone": _chroma("DELETE FROM embeddings WHERE id % 3 = 0"),
    "log gone": _chroma("DELETE FROM embeddings_queue"),
    "collection renamed": _chroma("UPDATE collections SET name = 'other'"),
    "place in the log forgotten": _chroma("DELETE FROM max_seq_id"),
}
DAMAGES = [f"{way} {file}" for way in WAYS for file in FILES] + list(WHOLE)


def damage(name, store, index, older):
    """Damage the `index` of `store` in the way of this name; False when it changes nothing.

    `older` is what the index was some time ago.
    """
    if name in WHOLE:
        WHOLE[name](store, index, older)
        return True
    way, _, file = name.rpartition(" ")
    path = next(index.rglob(file))
    before = (path.stat().st_size, path.read_bytes())
    WAYS[way](path, next(older.rglob(file)), random.Random(name))
    return not path.exists() or before != (path.stat().st_size, _start(path, before[0]))


def _start(path, size):
    with path.open("rb") as file:
        return file.read(size)
