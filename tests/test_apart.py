"""Passages that are read each on its own: found in prompts, numbered for good, known again."""

import pytest

from mixtral_rag import open_qa
from mixtral_rag.asking import Asking, best_last
from mixtral_rag.claims import renumbered, whole_marks
from mixtral_rag.engines import PassagePrompt
from mixtral_rag.engines.llamacpp import LlamaCppEngine
from mixtral_rag.errors import SettingsError
from mixtral_rag.prompts import lasting_numbers, qa_messages, qa_passage, text_spans
from mixtral_rag.qa import Conversation
from mixtral_rag.types import Passage

TEXTS = (
    "The company was founded by Zhang Wei in 1998 in Hangzhou, and it makes bicycles.",
    "员工工作满一年后，每年有十天带薪年假。病假需要医院证明。",
    "The most popular product is the Model B bicycle, which costs 300 yuan.",
    "The offices are in Suzhou and Beijing; the store in Wuhan was closed in 2019.",
)
PASSAGES = [Passage(f"id{n}", f"/docs/{n}.md", "", text, 0) for n, text in enumerate(TEXTS)]


@pytest.mark.parametrize("model", ["smollm", "tiny_mixtral"])
def test_spans_are_where_the_passages_stand(model, request):
    from mixtral_rag import ChatChineseMixtral

    chat = ChatChineseMixtral(model=str(request.getfixturevalue(model)))
    messages = qa_messages("Who founded it?", PASSAGES, language="en")
    texts = [qa_passage(n, p) for n, p in enumerate(PASSAGES, start=1)]
    prompt = chat.prompt(messages, apart=texts)
    assert isinstance(prompt, PassagePrompt)
    assert list(prompt) == chat.render_messages(messages)
    tokenizer = chat._engine.tokenizer
    assert [end for _, end in prompt.spans[:-1]] == [start for start, _ in prompt.spans[1:]]
    for (start, end), text in zip(prompt.spans, texts, strict=True):
        assert b"".join(map(tokenizer.piece, prompt[start:end])).decode().strip() == text
    assert not isinstance(chat.prompt(messages, apart=[*texts, "not there"]), PassagePrompt)


def test_what_is_not_there_gives_no_spans(smollm):
    tokenizer = LlamaCppEngine(str(smollm)).tokenizer
    ids = tokenizer.encode("one two three")
    assert text_spans(ids, tokenizer, []) == []
    assert text_spans(ids, tokenizer, ["three", "one"]) == []
    assert text_spans(ids, tokenizer, ["one", " two"]) == [(0, 1), (1, 2)]


def test_a_number_lasts_whatever_else_stands_there():
    numbers = lasting_numbers(PASSAGES)
    assert lasting_numbers(PASSAGES[::-1]) == numbers[::-1]
    assert lasting_numbers(PASSAGES[2:]) == numbers[2:]
    many = [Passage(f"p{n}", "/a", "", "", n) for n in range(300)]
    assert len(set(lasting_numbers(many))) == 300
    assert all(100 <= n <= 999 for n in lasting_numbers(many))
    assert lasting_numbers(many * 3) == list(range(1, 901))


def test_marks_get_the_numbers_of_the_answer():
    numbers = {417: 1, 132: 2, 903: 3}
    mark = "So it is [417, 132, 903, 417]."
    pieces = [renumbered(piece, numbers) for piece in whole_marks(mark)]
    assert "".join(pieces) == "So it is [1, 2, 3, 1]."
    assert renumbered("so [5].", numbers) == "so [0]."
    assert (
        renumbered("It is so [417]. 又如【132，417】。", numbers) == "It is so [1]. 又如【2，1】。"
    )
    assert renumbered("in 国发[2008]5号 and 417", numbers) == "in 国发[2008]5号 and 417"


def test_the_best_passage_stands_last_and_those_not_found_before_all():
    hits = [PASSAGES[2], PASSAGES[0], PASSAGES[3]]
    assert best_last(PASSAGES, hits) == (PASSAGES[1], PASSAGES[3], PASSAGES[0], PASSAGES[2])


@pytest.mark.parametrize(("n", "n_apart"), [(0, 0), (1, 1), (8, 8), (24, 23)])
def test_the_last_of_many_passages_is_read_with_the_others(smollm, n, n_apart):
    from mixtral_rag import ChatChineseMixtral

    asking = Asking(ChatChineseMixtral(model=str(smollm)), "Who?", (), is_apart=True)
    passages = [Passage(f"id{i}", f"/docs/{i}.md", "", TEXTS[0], i) for i in range(n)]
    texts = asking.apart(passages)
    assert len(texts) == n_apart
    assert all(passage.name in text for passage, text in zip(passages, texts, strict=False))
    assert Asking(asking.chat, "Who?", ()).apart(passages) == ()


@pytest.fixture
def make(smollm, tmp_path):
    (tmp_path / "docs").mkdir()
    for n, text in enumerate(TEXTS):
        (tmp_path / "docs" / f"{n}.md").write_text(text)

    def make(**options):
        qa = open_qa(
            store=tmp_path / "store", model=str(smollm), n_ctx=2048, max_tokens=24,
            qa_options={"reading": "apart"}, **{"top_k": 2} | options,
        )  # fmt: skip
        qa.ingest([tmp_path / "docs"])
        return qa

    return make


def test_a_known_passage_is_not_read_again_beside_another(make):
    qa = make(context_tokens=300)
    qa.warm("en")
    first = qa.ask("Who founded the company in Hangzhou?")
    second = qa.ask("What does the most popular product cost?")
    for answer in (first, second):
        assert answer.account.is_apart
        assert answer.usage.prompt_tokens == answer.account.prompt
        assert answer.usage.prompt_tokens - answer.usage.cached_tokens < 40
    assert "Zhang Wei" in first.text
    assert [c.passage.name for c in first.citations]
    assert all(0 < n <= len(first.passages) for c in first.claims for n in c.numbers)
    qa.close()


def test_of_many_known_passages_only_the_best_is_read_again(make, tmp_path):
    for n in range(30):
        text = f"The machine number {n} stands in hall {n + 30} and was built in {1990 + n}."
        (tmp_path / "docs" / f"machine{n}.md").write_text(text)
    qa = make(context_tokens=1800, top_k=26)
    qa.warm("en")
    answer = qa.ask("In which hall does the machine number 7 stand?")
    assert len(answer.passages) == 26
    assert answer.passages[-1].name == "machine7.md"
    best = len(qa.chat.count_tokens(answer.passages[-1].text))
    computed = answer.usage.prompt_tokens - answer.usage.cached_tokens
    assert best < computed < best + 80
    assert answer.account.is_apart
    qa.close()


def test_a_chat_goes_on_from_passages_read_apart(make):
    qa = make(context_tokens=300)
    conversation = Conversation(qa)
    list(conversation.stream("Who founded the company in Hangzhou?"))
    first = conversation.last
    list(conversation.stream("And what does the Model B bicycle cost?"))
    second = conversation.last
    assert [p.text for p in second.passages[: len(first.passages)]] == [
        p.text for p in first.passages
    ]
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    qa.close()


def test_warm_reads_every_passage_also_when_they_fit_no_prompt(make, tmp_path):
    qa = make(context_tokens=160, kv_folder=str(tmp_path / "kv"))
    calls = []
    warmed = qa.warm(on_progress=lambda done, total: calls.append((done, total)))
    assert warmed.n_passages == len(TEXTS)
    assert calls == [(n, len(TEXTS)) for n in range(len(TEXTS))]
    qa.close()
    again = make(context_tokens=300, kv_folder=str(tmp_path / "kv"))
    answer = again.ask("Where are the offices of the company?")
    assert answer.usage.prompt_tokens - answer.usage.cached_tokens < 40
    again.close()


def test_another_way_of_reading_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="together or apart"):
        open_qa(store=tmp_path, qa_options={"reading": "fast"})
