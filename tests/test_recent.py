"""Questions that go on from what the model has read already."""

import pytest

from mixtral_rag import Message, open_qa
from mixtral_rag.qa import Conversation
from mixtral_rag.recent import Asked, Recent, holds
from mixtral_rag.store.filter import Filter
from mixtral_rag.types import Passage

FACTS = {
    "history": "The company was founded by Zhang Wei in 1998 in Hangzhou. It makes bicycles.",
    "products": "The most popular product is the Model B bicycle, which costs 300 yuan.",
    "leave": "Every employee has ten days of paid leave a year after the first year of work.",
    "offices": "The company has offices in Hangzhou, Suzhou and Beijing, and a store in Wuhan.",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    for name, fact in FACTS.items():
        (folder / f"{name}.md").write_text(f"# {name}\n{fact}\n")
    return folder


@pytest.fixture
def make(folder, smollm, tmp_path):
    def make(**options):
        qa = open_qa(
            store=tmp_path / "store", model=str(smollm), n_ctx=2048, max_tokens=16, **options
        )
        qa.ingest([folder])
        return qa

    return make


@pytest.fixture
def sent(monkeypatch):
    """Every prompt that goes to the engine, as token IDs."""
    from mixtral_rag.engines.llamacpp import LlamaCppEngine

    prompts, generate = [], LlamaCppEngine.generate
    monkeypatch.setattr(
        LlamaCppEngine,
        "generate",
        lambda self, prompt, *args, **more: (
            prompts.append(list(prompt)) or generate(self, prompt, *args, **more)
        ),
    )
    return prompts


def test_a_follow_up_computes_only_what_is_new(make, sent):
    qa = make(qa_options={"rewrite_followups": False})
    conversation = Conversation(qa)
    list(conversation.stream("Who founded the company?"))
    first = conversation.last
    list(conversation.stream("Where are the offices of the company?"))
    second = conversation.last
    asked, again = sent
    assert again[: len(asked)] == asked
    assert second.passages == pytest.approx(first.passages) or second.account.is_whole
    assert second.usage.cached_tokens >= len(asked)
    assert second.usage.prompt_tokens - second.usage.cached_tokens < 80
    assert second.account.prompt == second.usage.prompt_tokens == len(again)
    assert second.account.history > 0
    qa.close()


def test_a_follow_up_brings_the_passages_it_lacks_under_the_next_numbers(make, sent):
    qa = make(top_k=1, context_tokens=200, qa_options={"rewrite_followups": False})
    conversation = Conversation(qa)
    list(conversation.stream("Who founded the company in 1998?"))
    first = conversation.last.passages
    list(conversation.stream("How many days of paid leave does an employee have?"))
    both = conversation.last.passages
    assert [p.text for p in both[: len(first)]] == [p.text for p in first]
    assert "ten days" in both[-1].text
    assert len(both) > len(first)
    assert sent[1][: len(sent[0])] == sent[0]
    text = b"".join(map(qa.chat._engine.tokenizer.piece, sent[1])).decode()
    assert f"[{len(both)}] leave.md" in text
    assert text.index("ten days") < text.rindex("How many days")
    qa.close()


def test_a_changed_store_means_a_new_beginning(make, sent, folder, tmp_path):
    qa = make(qa_options={"rewrite_followups": False})
    conversation = Conversation(qa)
    list(conversation.stream("Who founded the company?"))
    (tmp_path / "more.md").write_text("The company was sold to Li Fang in 2020.\n")
    qa.ingest([tmp_path / "more.md"])
    list(conversation.stream("Who bought the company?"))
    assert sent[1][: len(sent[0])] != sent[0]
    assert any("Li Fang" in p.text for p in conversation.last.passages)
    qa.close()


def test_a_window_that_is_full_means_a_new_beginning(make):
    qa = make(top_k=1, qa_options={"rewrite_followups": False})
    qa.chat.n_ctx = 400
    history = []
    for question in ("Who founded the company?", "What does Model B cost?") * 3:
        answer = qa.ask(question, history)
        assert answer.usage.prompt_tokens <= 400 - 16
        history += [Message("user", question), Message("assistant", answer.text)]
    qa.close()


def test_a_like_question_takes_the_passages_that_are_known(make, sent):
    qa = make(context_tokens=200)
    first = qa.ask("Who founded the company in Hangzhou?")
    assert not first.account.is_whole
    second = qa.ask("Where was the company founded?")
    best = qa.search("Where was the company founded?")[:1]
    assert holds(second.passages, best[0])
    if all(holds(first.passages, hit) for hit in qa.search("Where was the company founded?")):
        assert [p.text for p in second.passages] == [p.text for p in first.passages]
    qa.close()


def test_everything_in_a_filtered_file_is_read(make, folder):
    qa = make(qa_options={"filter": Filter(paths=[folder / "leave.md"])})
    answer = qa.ask("How many days of paid leave?")
    assert answer.account.is_whole
    assert [p.name for p in answer.passages] == ["leave.md"]
    qa.close()


def passage(text, path="/a.txt"):
    return Passage(text, path, "", text, 0)


def asked(*said, scope="1", language="en", passages=(), is_whole=False):
    return Asked([], tuple(passages), said, language, scope, is_whole)


def test_only_what_was_said_word_for_word_is_gone_on_from():
    recent = Recent()
    recent.remember(asked("Who?", "Zhang."))
    history = [Message("user", "Who?"), Message("assistant", "Zhang.")]
    assert recent.conversation(history, "1")
    assert recent.conversation(history, "2") is None
    assert recent.conversation([history[0], Message("assistant", "Li.")], "1") is None
    for n in range(100):
        recent.remember(asked(f"q{n}", "a"))
    assert recent.conversation(history, "1") is None


def test_sets_are_those_that_begin_a_prompt_in_the_same_language():
    recent = Recent()
    one, two, three = passage("one"), passage("two"), passage("three")
    recent.remember(asked("a", "b", passages=[one]))
    recent.remember(asked("c", "d", passages=[two]))
    recent.remember(asked("c", "d", "e", "f", passages=[two, three]))
    recent.remember(asked("g", "h", passages=[three], language="zh"))
    recent.remember(asked("i", "j", passages=[three], is_whole=True))
    assert recent.sets("en", "1") == [(two,), (one,)]
    assert recent.sets("en", "2") == []
