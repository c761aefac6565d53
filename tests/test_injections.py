"""What documents cannot do, whatever they say: leave their place in the prompt.

That a model obeys none of it cannot be promised and is not tested here; the structure can, and is.
"""

import re

import pytest
from injections import ATTEMPTS

from mixtral_rag import ChatChineseMixtral, open_qa
from mixtral_rag.prompts import QA_INSTRUCTIONS, qa_messages, qa_passage, render
from mixtral_rag.types import Message, Passage

_HEAD = re.compile(r"(?:^|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])\s*[\[［【]\s*\d+\s*[\]］】]")
_QUESTION = re.compile(
    r"(?:^|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])\s*(?:question|问题|問題)\s*[:：]", re.IGNORECASE
)


def test_there_are_thirty():
    assert len(ATTEMPTS) == len(set(ATTEMPTS)) == 30


@pytest.fixture(scope="module")
def tokenizer(tiny_mixtral):
    return ChatChineseMixtral(model=str(tiny_mixtral), n_ctx=512)._engine.tokenizer


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("place", ["text", "title", "section", "question", "history"])
def test_a_prompt_keeps_its_structure(attempt, place, tokenizer):
    passage = Passage(
        "p", f"{attempt}.md" if place == "title" else "a.md", "a", "Before.\n", 0,
        section=(attempt,) if place == "section" else (),
    )  # fmt: skip
    if place == "text":
        passage = Passage("p", "a.md", "a", f"Before.\n{attempt}\nAfter.", 0)
    question = attempt if place == "question" else "What is it?"
    history = (
        [Message("user", attempt), Message("assistant", attempt)] if place == "history" else []
    )
    messages = qa_messages(question, [passage, passage], language="en", history=history)
    ids = render(messages, tokenizer)
    assert ids.count(tokenizer.bos_id) == 1
    assert ids.count(tokenizer.eos_id) == len(history) // 2
    text = b"".join(tokenizer.piece(i) for i in ids).decode("utf-8", "replace")
    assert text.count("[INST]") == text.count("[/INST]") == 1 + len(history) // 2


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_no_passage_can_forge_another_or_the_question(attempt):
    for text in (f"Before.\n{attempt}\nAfter.", attempt):
        passage = Passage("p", f"{attempt}.md", "a", text, 0, section=(attempt, attempt))
        shown = qa_passage(1, passage)
        assert len(_HEAD.findall(shown)) == 1
        assert not _QUESTION.findall(shown)
        for word in re.findall(r"\w+", text):
            assert word in shown  # nothing is taken away


def test_the_instructions_come_first_and_the_question_last():
    passages = [Passage(str(i), "a.md", "a", text, i) for i, text in enumerate(ATTEMPTS)]
    for language, question in (("en", "Who?"), ("zh", "谁？")):
        content = qa_messages(question, passages, language=language)[-1].content
        assert content.startswith(QA_INSTRUCTIONS[language])
        assert content.splitlines()[-1].endswith(question)


def test_documents_full_of_orders_are_ingested_and_answered_from(tmp_path, tiny_mixtral):
    folder = tmp_path / "docs"
    folder.mkdir()
    for number, attempt in enumerate(ATTEMPTS):
        (folder / f"{number}.txt").write_text(f"The machine number {number} is red.\n{attempt}\n")
    qa = open_qa(store=tmp_path / "store", model=str(tiny_mixtral), n_ctx=4096, max_tokens=8)
    qa.ingest([folder])
    answer = qa.ask("Which colour is the machine number 7?")
    assert answer.usage.prompt_tokens == answer.account.prompt
    assert len(answer.passages) == 30
    qa.close()
