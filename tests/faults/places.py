"""A store and what became of its documents since, made once and copied for each test."""

import shutil

import child
from checks import check, check_equal
from corpus import Corpus


class Place:
    """`store` holds documents that were edited, added, deleted and renamed after it took them in;
    `fresh` is an undisturbed store of what they are now."""

    def __init__(self, folder, n_documents=24):
        self.folder = folder
        self.store, self.fresh, self.acks = folder / "store", folder / "fresh", folder / "acks"
        self.corpus = Corpus(folder / "docs", n_documents, 7)
        child.finish(self.store, self.corpus.folder, self.acks)
        self.before = self.corpus.passages()
        self.corpus.change()
        child.finish(self.fresh, self.corpus.folder, self.acks)

    def copy(self, folder):
        shutil.copytree(self.store, folder)
        return folder

    def check(self, store):
        """What must hold of a copy after an ingest that failed or was killed."""
        check(store, self.before, self.corpus, child.acknowledged(self.acks), every=5)

    def finish(self, store):
        """Ingest again, and compare with an undisturbed store."""
        child.finish(store, self.corpus.folder, self.acks)
        check_equal(store, self.fresh)
