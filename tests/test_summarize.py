"""Summaries by real models, of documents that fit and of documents that do not."""

import pytest
from documents import write_pdf

from mixtral_rag.errors import ContextError, NoDocumentsError, UnsupportedError
from mixtral_rag.qa import answering_chat
from mixtral_rag.summarize import read_texts, summarize


@pytest.fixture(scope="module")
def chat(smollm):
    return answering_chat(str(smollm), n_ctx=1024, max_tokens=96)


def test_a_short_document_is_read_in_one_step(chat):
    steps = []
    text = summarize(
        chat, ["Zhang Wei founded a bicycle company in Hangzhou in 1998."], on_progress=steps.append
    )
    assert "Zhang Wei" in text
    assert [(s.level, s.done, s.total) for s in steps] == [(0, 0, 1)]


def test_a_long_document_is_read_part_by_part_and_every_part_is(tiny_mixtral):
    chat = answering_chat(str(tiny_mixtral), n_ctx=512, max_tokens=64)
    sent, steps = [], []
    render = type(chat).render_messages
    try:
        type(chat).render_messages = lambda self, m, **o: sent.append(m) or render(self, m, **o)
        text = summarize(
            chat, [f"Fact {i} stands in chapter {i}. " * 4 for i in range(60)],
            on_progress=steps.append,
        )  # fmt: skip
    finally:
        type(chat).render_messages = render
    assert text
    prompts = "".join(m[-1].content for m in sent)
    assert all(f"Fact {i} stands" in prompts for i in range(60))
    assert max(len(render(chat, m)) for m in sent) <= 512 - 64
    totals = [s.total for s in steps if s.done == 0]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > 5
    assert totals[-1] == 1


def test_a_text_without_sentences_is_cut(tiny_mixtral):
    chat = answering_chat(str(tiny_mixtral), n_ctx=512, max_tokens=32)
    assert summarize(chat, ["字" * 3000], language="zh")


def test_windows_too_small_and_empty_documents_are_told(tiny_mixtral):
    with pytest.raises(ContextError):
        summarize(answering_chat(str(tiny_mixtral), n_ctx=128, max_tokens=32), ["x"])
    with pytest.raises(NoDocumentsError, match="no text"):
        summarize(answering_chat(str(tiny_mixtral), n_ctx=512, max_tokens=32), [" \n"])


def test_documents_are_read_with_their_headings(tmp_path):
    (tmp_path / "a.md").write_text("# One\nFirst.\n\n## Two\nSecond.\n")
    assert read_texts(tmp_path / "a.md") == ["One\n# One\nFirst.", "One > Two\n## Two\nSecond."]
    assert "Page two" in read_texts(write_pdf(tmp_path / "b.pdf", ["Page one", "Page two"]))[-1]
    with pytest.raises(NoDocumentsError, match=r"nothing\.pdf"):
        read_texts(tmp_path / "nothing.pdf")
    (tmp_path / "x.bin").write_bytes(b"\0\1\2")
    with pytest.raises(UnsupportedError):
        read_texts(tmp_path / "x.bin")
