"""An ingest in a process of its own, which is there to be killed.

Processes are forked from one that has the imports, so that hundreds of them cost little.
"""

import logging
import multiprocessing
import os
from concurrent.futures import Future

from corpus import QuickEmbedder

from mixtral_rag.ingest import pipeline
from mixtral_rag.ingest.readers import read
from mixtral_rag.ingest.reading import Reading
from mixtral_rag.store import shards
from mixtral_rag.store.documents import DocumentStore

_SHARD = 1200  # passages: more than Chroma makes a graph for, and larger stores have several
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["numpy", "chromadb", "filelock", "mixtral_rag.ingest.pipeline", "mixtral_rag.ingest.readers"]
)


class DirectPool:
    """Reads documents in this process, where it is the store that is put to the test."""

    def __init__(self, *_, **__):
        pass

    def submit(self, path, options, *_, **__):
        future = Future()
        try:
            future.set_result(read(path, options))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)
        return future

    def close(self):
        pass


def start(folder, corpus, acks, **options):
    """Start an ingest of `corpus` into `folder`; see `run`."""
    process = PROCESSES.Process(target=run, args=(folder, corpus, acks), kwargs=options)
    process.start()
    return process


def run(folder, corpus, acks, *, workers=False, prepare=None, arguments=()):
    """Ingest and say which documents were committed, a line each in the file `acks`.

    With `workers`, documents are read in processes of their own, as they are everywhere else;
    `prepare` is called first, with `arguments`.
    """
    logging.disable()
    shards.SHARD = _SHARD
    tell_of_commits(acks)
    if not workers:
        pipeline.ReaderPool = DirectPool
    if prepare is not None:
        prepare(*arguments)
    store = DocumentStore(folder, QuickEmbedder())
    pipeline.ingest([corpus], store, prune=True, n_workers=1)
    store.close()


def tell_of_commits(acks):
    handle = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stored = Reading.stored

    def told(self, job):
        if job.failure is None:
            os.write(handle, f"{job.path.name}\n".encode())
        stored(self, job)

    Reading.stored = told


def acknowledged(acks):
    """The names of the documents that were said to be committed; the file is removed."""
    try:
        return acks.read_text().splitlines()
    except FileNotFoundError:
        return []
    finally:
        acks.unlink(missing_ok=True)


def finish(folder, corpus, acks):
    """Ingest undisturbed."""
    process = start(folder, corpus, acks)
    process.join()
    acknowledged(acks)
    assert process.exitcode == 0, f"an undisturbed ingest failed: {process.exitcode}"
