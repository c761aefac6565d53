"""Questions answered end to end, by real models over real documents."""

import pytest

from mixtral_rag import ChineseMixtral, Message, open_qa
from mixtral_rag.claims import marks_pattern, numbers_in
from mixtral_rag.errors import ContextError, EmptyStoreError, SettingsError
from mixtral_rag.qa import Conversation


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "zhang.md").write_text(
        "# Company history\nThe company was founded by Zhang Wei in 1998 in Hangzhou. "
        "It makes bicycles.\n\n# Products\nThe most popular product is the Model B bicycle, "
        "which costs 300 yuan.\n"
    )
    (folder / "假期.md").write_text(
        "# 年假规定\n员工工作满一年后，每年有十天带薪年假。\n\n# 病假规定\n病假需要医院证明。\n"
    )
    store = tmp_path_factory.mktemp("store")
    qa = open_qa(store=store)
    qa.ingest([folder])
    qa.close()
    return store


@pytest.fixture(scope="module")
def qa(store, smollm):
    qa = open_qa(store=store, model=str(smollm), top_k=1, max_tokens=60)
    yield qa
    qa.close()


def test_a_real_question_gets_a_real_answer_with_its_source(qa):
    answer = qa.ask("Who founded the company?")
    assert "Zhang Wei" in answer.text
    assert answer.found
    citation = answer.citations[0]
    assert citation.passage.name == "zhang.md"
    assert "Zhang Wei" in citation.quote
    assert citation.passage.section == ("Company history",)
    assert answer.usage.completion_tokens > 0


def test_the_stream_is_the_answer(qa):
    stream = qa.stream("Who founded the company?")
    pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces).strip() == stream.answer.text


def test_nothing_relevant_means_no_invention(qa):
    for question, reply in (
        ("What is the boiling point of mercury?", "Nothing in the ingested documents"),
        ("战国无双3是由哪两个公司合作开发的？", "没有与这个问题相关的内容"),
    ):
        answer = qa.ask(question)
        assert not answer.found
        assert reply in answer.text
        assert (answer.citations, answer.usage) == ((), None)


def test_the_prompt_is_in_the_questions_language_with_the_question_last(store, tiny_mixtral):
    qa = open_qa(store=store, model=str(tiny_mixtral), n_ctx=2048, max_tokens=8)
    sent = []
    render = type(qa.chat).render_messages
    try:
        type(qa.chat).render_messages = lambda self, m: sent.append(m) or render(self, m)
        answer = qa.ask("员工每年有几天带薪年假？")
    finally:
        type(qa.chat).render_messages = render
    prompt = sent[-1][-1].content
    assert prompt.startswith("请根据下面编号的资料")
    assert prompt.endswith("问题：员工每年有几天带薪年假？")
    assert "[1] " in prompt
    assert "十天带薪年假" in prompt
    assert answer.usage.prompt_tokens == len(render(qa.chat, sent[-1]))
    assert answer.finish_reason == "length"


def test_a_conversation_remembers(qa):
    conversation = Conversation(qa)
    list(conversation.stream("Who founded the company?"))
    list(conversation.stream("In which year?"))
    assert "1998" in " ".join(p.text for p in conversation.last.passages)
    assert [m.role for m in conversation.history] == ["user", "assistant"] * 2


def test_long_histories_drop_their_oldest_turns(store, smollm):
    qa = open_qa(store=store, model=str(smollm), top_k=1, max_tokens=20, n_ctx=1024)
    history = [
        Message("user" if i % 2 == 0 else "assistant", f"turn {i} " + "words " * 60)
        for i in range(40)
    ]
    answer = qa.ask("Who founded the company?", history)
    assert answer.usage.prompt_tokens <= 1004


def test_passages_that_do_not_fit_are_left_out_and_none_is_an_error(store, tiny_mixtral):
    qa = open_qa(store=store, model=str(tiny_mixtral), n_ctx=224, max_tokens=16)
    answer = qa.ask("Which is the most popular product of the company?")
    assert 0 < len(answer.passages) < 4
    assert answer.usage.prompt_tokens <= 208
    qa = open_qa(store=store, model=str(tiny_mixtral), n_ctx=64, max_tokens=16)
    with pytest.raises(ContextError, match="64"):
        qa.ask("Which is the most popular product of the company?")


def test_errors_say_what_to_do(tmp_path, smollm):
    qa = open_qa(store=tmp_path / "s", model=str(smollm))
    with pytest.raises(EmptyStoreError, match="mixtral-rag ingest"):
        qa.ask("x?")
    with pytest.raises(SettingsError, match="question is empty"):
        qa.ask("  ")
    with pytest.raises(SettingsError, match="question is empty"):
        qa.search(" ")
    with pytest.raises(SettingsError, match="no model"):
        open_qa(store=tmp_path / "s").ask("x?")
    with pytest.raises(SettingsError, match="top_k"):
        open_qa(store=tmp_path / "s", top_k=0)


def test_marks_can_only_name_passages_there_are(qa, monkeypatch):
    options = {"temperature": 0, "repeat_penalty": 1, "max_tokens": 8}
    llm = ChineseMixtral(model=qa.chat.model, instruct=False, **options)
    prompt = "See source [7]. See source [7]. See source [7]. See source"
    assert min(numbers_in(llm.invoke(prompt))) > 3
    named = numbers_in(llm.invoke(prompt, pattern=marks_pattern([1, 2, 3])))
    assert named
    assert set(named) <= {1, 2, 3}

    asked, stream = [], type(qa.chat).stream
    monkeypatch.setattr(
        type(qa.chat), "stream", lambda *args, **call: asked.append(call) or stream(*args, **call)
    )
    answer = qa.ask("Who founded the company?")
    assert asked == [{"pattern": marks_pattern(range(1, len(answer.passages) + 1))}]


def test_a_passage_with_all_words_of_the_question_is_relevant_whatever_its_vector(tmp_path):
    (tmp_path / "long.txt").write_text("The company was founded by Zhang Wei. " * 300)
    qa = open_qa(store=tmp_path / "store")
    qa.ingest([tmp_path / "long.txt"])
    for question, is_relevant in (("Who founded the company?", True), ("Who won?", False)):
        assert qa.retriever.is_relevant(question, qa.search(question)) is is_relevant
    qa.close()


def test_a_number_of_no_passage_is_shown_as_the_model_wrote_it(qa, monkeypatch):
    from mixtral_rag.answering import AnswerStream

    monkeypatch.setattr(AnswerStream, "_generated", lambda self, *_: iter(["It is so [7]."]))
    stream = qa.stream("Who founded the company?")
    assert next(iter(stream)) == "It is so [7]."
