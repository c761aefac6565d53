"""Ingests on disks that are too small, each in a mount of its own that only this process sees.

    unshare --map-root-user --mount python tests/faults/full_disk.py FOLDER SIZE [SIZE ...]

FOLDER holds `store` and `docs`; for each size, in KiB, a copy of the store is put on such a disk,
documents are ingested, a question is asked, and the store is copied to FOLDER/full-SIZE. Printed is
a line of JSON for each.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import child
from corpus import QuickEmbedder

from mixtral_rag.errors import MixtralRagError
from mixtral_rag.ingest import pipeline
from mixtral_rag.store.documents import DocumentStore


def mount(folder, kib):
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", str(folder)]
    subprocess.run(command, check=True)


def attempt(act):
    """What came of something that may fail in our own way only."""
    try:
        act()
    except MixtralRagError as error:
        return str(error)
    return ""


def on_a_disk_of(kib, folder):
    disk = folder / "disk"
    mount(disk, kib)
    try:
        store_folder = shutil.copytree(folder / "store", disk / "store")
        store = DocumentStore(store_folder, QuickEmbedder())
        told = attempt(lambda: pipeline.ingest([folder / "docs"], store, prune=True, n_workers=1))
        answered = attempt(lambda: store.search("Fact 1", 3))
        store.close()
        shutil.copytree(store_folder, folder / f"full-{kib}")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return {"kib": kib, "told": told, "answered": answered}


def main():
    folder, sizes = Path(sys.argv[1]), [int(size) for size in sys.argv[2:]]
    pipeline.ReaderPool = child.DirectPool
    child.tell_of_commits(folder / "acks")
    for kib in sizes:
        found = on_a_disk_of(kib, folder)
        found["acknowledged"] = child.acknowledged(folder / "acks")
        child.tell_of_commits(folder / "acks")
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
