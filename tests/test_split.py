import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_rag.ingest.readers import Block
from mixtral_rag.ingest.split import split
from mixtral_rag.language import language_of, sentences, terms

texts = st.text(alphabet="ab 你好。！？.!?\n”", max_size=80)
blocks = st.lists(
    st.builds(
        Block,
        texts,
        st.sampled_from([None, 1, 2]),
        st.sampled_from([(), ("A",), ("A", "B")]),
    ),
    max_size=6,
)


def test_chinese_and_western_sentences_are_told_apart():
    text = "他说：“好。”然后走了！Version 3.5 of a.py is out. Really? 是的……完。"
    assert sentences(text) == [
        "他说：“好。”", "然后走了！", "Version 3.5 of a.py is out.", " Really?", " 是的……", "完。",
    ]  # fmt: skip


@given(texts)
def test_sentences_join_to_the_text(text):
    assert "".join(sentences(text)) == text


def test_language_and_terms():
    assert language_of("Debian 的稳定版是什么？") == "zh"
    assert language_of("What is 北京 famous for?") == "en"
    assert terms("The GPU 显存够吗") == {"gpu", "显存", "存够", "够吗"}


@given(blocks, st.integers(4, 30))
def test_splitting_loses_nothing_and_respects_the_limit(given_blocks, limit):
    windows = split(given_blocks, len, max_tokens=limit)
    squeezed = "".join("".join(w.text.split()) for w in windows)
    assert squeezed == "".join("".join(b.text.split()) for b in given_blocks)
    assert all(len(w.text) <= limit for w in windows)


@given(blocks)
def test_no_window_crosses_a_heading(given_blocks):
    sections = {b.section for b in given_blocks}
    for window in split(given_blocks, len, max_tokens=1000):
        assert window.section in sections


def test_sentences_stay_whole_and_pages_are_kept():
    run = [Block("第一句话。第二句话。", 1, ("节",)), Block("第三句话。", 2, ("节",))]
    windows = split(run, len, max_tokens=11)
    assert [(w.text, w.pages) for w in windows] == [
        ("第一句话。第二句话。", (1, 1)),
        ("第三句话。", (2, 2)),
    ]
    assert split(run, len, max_tokens=100)[0].pages == (1, 2)


def test_windows_under_one_heading_are_about_equally_long():
    windows = split([Block("Word. " * 25, None, ("S",))], len, max_tokens=100)
    assert [len(w.text) for w in windows] == pytest.approx([75, 75], abs=6)


def test_windows_end_between_paragraphs_where_they_can():
    lengths = [60, 70, 45, 45, 90, 285, 20, 20, 80]
    run = [Block(f"{chr(65 + i)}. " * (n // 3), None, ("S",)) for i, n in enumerate(lengths)]
    windows = split(run, len, max_tokens=100)
    whole = [w.text for w in windows if w.text.count("\n") or "F" not in w.text]
    for block in run:
        if len(block.text) <= 100:
            assert sum(block.text.strip() in text for text in whole) == 1
    assert sum("F" in w.text for w in windows) == 3  # longer than a window
    assert len(windows) <= 9


def test_short_paragraphs_share_windows():
    windows = split([Block("Ten chars.", None, ())] * 45, len, max_tokens=110)
    assert [len(w.text) for w in windows] == pytest.approx([98] * 5, abs=11)


def test_no_text_takes_quadratic_time():
    import time

    started = time.perf_counter()
    for text in (
        "." * 200_000 + "x",
        "。" * 200_000,
        '."' * 100_000,
        "a." * 100_000,
        "\n" * 200_000,
    ):
        sentences(text)
        terms(text)
    assert time.perf_counter() - started < 20
