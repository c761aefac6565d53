"""Damaged and hostile documents: a small part of what `fuzz_readers.py` reads by the thousand."""

import tempfile

import pytest
from fuzz_readers import Campaign, damaged, hostile
from samples import SAMPLES

from mixtral_rag.ingest.readers import SUFFIXES

FORMATS = [suffix for suffix in SAMPLES if suffix in SUFFIXES]

# They run into the time limit however small they are made; one such is enough here.
SLOW = {
    "forms-of-forms.pdf", "million-pages-claimed.pdf", "same-page-a-million-times.pdf",
    "bomb-of-text.pdf", "bomb.zip", "bomb.tar.gz", "lists.md", "columns.csv", "deep.eml",
}  # fmt: skip


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """Reads bad files, and in the end asserts that none did harm."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started = []

    def start(timeout):
        started.append(Campaign(tmp_path, timeout=timeout, memory=1 << 30))
        return started[0]

    yield start
    started[0].close()
    assert started[0].faults == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_documents_cost_only_themselves(campaign, suffix):
    reading = campaign(10)
    damaged(reading, [suffix], count=40, seed=1)
    assert reading.rows[suffix].files > 40


def test_documents_made_to_do_harm_cost_only_themselves(campaign):
    reading = campaign(2)
    hostile(reading, FORMATS, scale=0.01, skip=SLOW)
    assert sum(row.files for row in reading.rows.values()) > 40
