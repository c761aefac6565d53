"""Whether sentences of an answer are held by the passages they name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_rag.claims import (
    _value,
    checked,
    marks_pattern,
    numbers_in,
    statements,
    supported_only,
    whole_marks,
)
from mixtral_rag.types import Passage

PASSAGES = [
    Passage("a", "a.md", "a.md", "Zhang Wei founded the company in 1998 in Hangzhou.", 0),
    Passage("b", "b.md", "b.md", "员工工作满一年后，每年有十五天带薪年假，共三百二十小时。", 0),
    Passage("c", "c.md", "c.md", "It sold 1,250,000 bicycles for 3.5 billion yuan.", 0),
]


def problems(answer):
    return {p for claim in checked(answer, PASSAGES) for p in claim.problems}


@pytest.mark.parametrize(
    "answer",
    [
        "The company was founded in 1998 by Zhang Wei [1].",
        "Zhang Wei founded the company in Hangzhou. [1]",
        "员工每年有15天带薪年假[2]。",
        "员工每年有十五天带薪年假。[2]",
        "員工每年有十五天帶薪年假【2】。",
        "年假共320小时 [2]。",
        "It sold 1250000 bicycles [3].",
        "“founded the company in 1998” [1]",
        "Zhang Wei founded the company, which sold bicycles [1][3].",
        "Zhang Wei founded the company in 1998.",  # names none, and one holds all of it
        "The answer to your question is:\nZhang Wei founded the company [1].",
        "",
    ],
)
def test_what_the_passages_hold_passes(answer):
    assert problems(answer) == set()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("The company was founded in 1989 [1].", "1989 does not stand there"),
        ("The company was founded by Li Ming in 1998 [1].", "Ming does not stand there"),
        ("The company was founded in 1998 [7].", "there is no passage [7]"),
        ("员工每年有二十天带薪年假[2]。", "20 does not stand there"),
        ("“moved to Beijing in 1998” says the company [1].",
         "“moved to Beijing in 1998” does not stand there"),
        ("Bananas grow on tall trees near rivers [1].", "few of its words stand there"),
        ("Bananas grow on tall trees.", "no passage is named, and none holds all of it"),
        ("Zhang Wei founded the company in 1998 [3].", "1998 does not stand there"),
    ],
)  # fmt: skip
def test_what_they_do_not_hold_is_told(answer, said):
    assert said in problems(answer)


def test_a_mark_after_the_full_stop_belongs_to_the_sentence_before():
    claims = checked("Zhang Wei founded it. [1] It sold bicycles. [3]", PASSAGES)
    assert [c.numbers for c in claims] == [(1,), (3,)]
    claims = checked("年假有十五天。[2]很多。", PASSAGES)
    assert [c.numbers for c in claims] == [(2,), ()]


@given(st.text(alphabet="ab.。[]12 \n，", max_size=60))
def test_statements_joined_give_the_text(text):
    assert "".join(statements(text)) == text


@given(st.text(alphabet="ab[]123, 【】", max_size=40), st.integers(1, 5))
def test_marks_stay_whole_in_a_stream(text, size):
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    whole = list(whole_marks(pieces))
    assert "".join(whole) == text
    for piece in whole[:-1]:
        for mark in ("[1]", "[2, 3]", "[12]"):
            for cut in range(1, len(mark)):
                is_cut = piece.endswith(mark[:cut]) and "".join(
                    whole[whole.index(piece) + 1 :]
                ).startswith(mark[cut:])
                assert not is_cut


def test_unsupported_sentences_are_dropped_as_they_come():
    answer = "Zhang Wei founded the company [1]. It moved to Paris in 2003 [1]. 年假有十五天。[2]"
    pieces = [answer[i : i + 3] for i in range(0, len(answer), 3)]
    kept = "".join(supported_only(whole_marks(pieces), PASSAGES))
    assert kept == "Zhang Wei founded the company [1]. 年假有十五天。[2]"


@pytest.mark.parametrize(
    ("said", "value"),
    [("三百二十", 320), ("十五", 15), ("二〇〇八", 2008), ("一万二千", 12_000), ("十", 10),
     ("两亿", 200_000_000), ("一百零五", 105), ("三千万", 30_000_000)],
)  # fmt: skip
def test_chinese_numbers_have_their_value(said, value):
    assert _value(said) == value


_MARKS = st.sampled_from(
    ["[1]", "[2]", "[3]", "[9]", "[12]", "[1, 2]", "[1,9]", "[", "]", "【2】", "［4］", "[２]",
     "[2 ", "[2008]", "[3 kg]", "[a]", "[[", " ", "x", ", ", "5", "北"]
)  # fmt: skip


@given(st.lists(_MARKS, max_size=8).map("".join), st.integers(1, 11))
def test_what_the_pattern_allows_names_only_passages_there_are(text, n):
    if re.fullmatch(marks_pattern(range(1, n + 1)), text):
        assert all(1 <= number <= n for number in numbers_in(text))
    elif set(numbers_in(text)) <= set(range(1, n + 1)):
        assert re.search(r"[\[［【]+\d", text)  # it is strict with half a mark alone


@pytest.mark.parametrize(
    "text",
    ["Cats sleep [1]. Dogs [2, 3] do not【1】.", "国发[2008]5号",
     "See [the list] and a[i] = b[j];", "没有标记。", "ends with ["],
)  # fmt: skip
def test_the_pattern_allows_other_brackets(text):
    assert re.fullmatch(marks_pattern([1, 2, 3]), text)
