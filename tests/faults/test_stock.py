"""The usual pipeline that ours is put beside: undisturbed, it is whole and on the disk."""

import stock
from corpus import Corpus


def test_the_usual_pipeline_stores_what_it_is_given(tmp_path):
    corpus = Corpus(tmp_path / "docs", 6, 1)
    expected = {p.page_content for pieces in stock.pieces_of(corpus.folder) for p in pieces}
    assert stock.in_a_process("ingest", tmp_path / "store", corpus.folder).returncode == 0
    seen = stock.inspect(tmp_path / "store")
    assert seen["texts"] == seen["passages"] == len(expected) > 5
    assert seen["missed"] == 0
