"""Conversations that go on, with a real model."""

import pytest
from langchain_core.messages import AIMessage

from mixtral_rag import Message, open_qa
from mixtral_rag.history import condensed, full_question, n_tokens, recent_turns

TURNS = [
    turn
    for year, name, place in (
        (1998, "Zhang Wei", "Hangzhou"), (2001, "Li Ming", "Suzhou"), (2005, "Li Fang", "Beijing"),
        (2010, "Chen Jie", "Shanghai"), (2016, "Zhao Lei", "Chengdu"), (2020, "Liu Yang", "Wuhan"),
    )
    for turn in (
        Message("user", f"Who led the company in {year}?"),
        Message("assistant", f"In {year} {name} led the company, whose seat was in {place}. " * 4),
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def qa(tmp_path_factory, smollm):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "a.md").write_text("The company was founded by Zhang Wei in 1998 in Hangzhou.\n")
    qa = open_qa(
        store=folder / "store", model=str(smollm), n_ctx=2048, max_tokens=40,
        qa_options={"condense": "model"},
    )  # fmt: skip
    qa.ingest([folder / "a.md"])
    yield qa
    qa.close()


def test_older_turns_become_a_summary_before_the_latest(qa):
    budget = 460
    assert n_tokens(qa.chat, TURNS) > budget
    turns = condensed(qa.chat, TURNS, budget)
    summary, *recent = turns[1:]
    assert recent
    assert recent == TURNS[-len(recent) :]
    assert [m.role for m in turns] == ["user", "assistant"] * (len(turns) // 2)
    assert "led the company" in summary.content
    assert n_tokens(qa.chat, [*turns, Message("user", "")]) <= budget
    assert len(turns) < len(TURNS)


def test_what_fits_is_left_as_it_is(qa):
    assert condensed(qa.chat, TURNS[:2], 1000) == TURNS[:2]
    assert recent_turns(qa.chat, TURNS, 10_000) == TURNS
    assert recent_turns(qa.chat, TURNS, 1) == []


def test_an_answer_after_a_long_conversation_fits(qa):
    answer = qa.ask("Who founded the company?", TURNS * 4)
    assert 0 < answer.account.history <= 0.25 * answer.account.budget
    assert answer.usage.prompt_tokens == answer.account.prompt
    assert answer.usage.prompt_tokens + qa.chat.max_tokens <= 2048


class Says:
    """The real model, but for what it says."""

    def __init__(self, chat, text, reason="stop"):
        self._chat, self._text, self._reason = chat, text, reason

    def __getattr__(self, name):
        return getattr(self._chat, name)

    def invoke(self, *_, **__):
        return AIMessage(self._text, response_metadata={"finish_reason": self._reason})


@pytest.mark.parametrize(
    ("said", "reason", "used"),
    [
        ("Where was the company founded?", "stop", True),
        ("Where was the company founded?\nIn Hangzhou.", "stop", True),
        ("In Hangzhou.", "stop", False),  # it answered
        ("Where was the company", "length", False),
        ("Where? " * 100, "stop", False),
        (" \n", "stop", False),
    ],
)
def test_a_follow_up_is_searched_for_as_a_full_question(said, reason, used, qa):
    history = [Message("user", "Who founded the company?"), Message("assistant", "Zhang Wei [1].")]
    full = full_question(Says(qa.chat, said, reason), "And where?", history)
    assert full == (said.splitlines()[0] if used else "And where?")


def test_a_model_is_asked_for_the_full_question(qa):
    history = [Message("user", "Who wrote Hamlet?"), Message("assistant", "Shakespeare wrote it.")]
    assert full_question(qa.chat, "And who wrote Macbeth?", history).endswith("?")
    assert full_question(qa.chat, "And where?", []) == "And where?"
