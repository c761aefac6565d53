"""`ChineseMixtral`, the LangChain LLM, over real models."""

import asyncio
import time

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate

from mixtral_rag import ChineseMixtral, Message
from mixtral_rag.errors import ContextError, ModelNotFoundError, SettingsError
from mixtral_rag.prompts import render, render_raw

GREEDY = {"temperature": 0, "repeat_penalty": 1.0, "max_tokens": 12, "n_ctx": 1024, "n_threads": 1}


@pytest.fixture(scope="module")
def llm(tiny_mixtral):
    return ChineseMixtral(model=str(tiny_mixtral), **GREEDY)


def test_making_one_opens_no_file():
    started = time.perf_counter()
    llm = ChineseMixtral(model="/nowhere/model.gguf")
    assert time.perf_counter() - started < 1
    with pytest.raises(ModelNotFoundError, match=r"/nowhere/model\.gguf"):
        llm.invoke("hi")


def test_every_way_to_call_gives_the_same_text(llm):
    text = llm.invoke("你好")
    assert "".join(llm.stream("你好")) == text
    assert llm.batch(["你好", "你好"]) == [text, text]
    assert asyncio.run(llm.ainvoke("你好")) == text

    async def streamed():
        return "".join([piece async for piece in llm.astream("你好")])

    assert asyncio.run(streamed()) == text


def test_generation_info_has_usage_and_finish_reason(llm):
    result = llm.generate(["你好", "Hello"])
    info = result.generations[0][0].generation_info
    assert info["finish_reason"] == "length"
    assert info["usage"]["prompt_tokens"] == 11
    assert info["usage"]["completion_tokens"] == 12
    assert result.llm_output["token_usage"]["completion_tokens"] == 24


class Sent:
    """An engine that notes what it is given and answers with one word."""

    def __init__(self, engine):
        self._engine, self.prompts = engine, []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def generate(self, prompt, options, *, cancel=None, whole=False):
        from mixtral_rag.types import Piece, Usage

        self.prompts.append(list(prompt))
        yield Piece(" ok")
        yield Piece("", "stop", Usage(len(prompt), 1))


def sent_by(llm):
    llm._engine = Sent(llm._engine)
    return llm._engine.prompts


def test_instruct_models_get_the_format_and_base_models_raw_text(tiny_mixtral, tiny_base):
    instruct = ChineseMixtral(model=str(tiny_mixtral))
    base = ChineseMixtral(model=str(tiny_base))
    told = ChineseMixtral(model=str(tiny_base), instruct=True)
    prompts = [sent_by(llm) for llm in (instruct, base, told)]
    assert [llm.invoke("从前") for llm in (instruct, base, told)] == ["ok", " ok", "ok"]
    tokenizer = base._engine.tokenizer
    turn = render([Message("user", "从前")], tokenizer)
    assert [p[0] for p in prompts] == [turn, render_raw("从前", tokenizer), turn]


def test_chat_prompts_keep_their_turns(tiny_mixtral):
    llm = ChineseMixtral(model=str(tiny_mixtral))
    prompts = sent_by(llm)
    turns = [("system", "S"), ("human", "a"), ("ai", "b"), ("human", "c")]
    (ChatPromptTemplate.from_messages(turns) | llm).invoke({})
    llm.invoke(turns)
    llm.batch([turns])
    asyncio.run(llm.ainvoke(turns))
    list(llm.stream(turns))
    (PromptTemplate.from_template("a {x}") | llm).invoke({"x": "b"})
    messages = [Message("system", "S"), Message("user", "a"), Message("assistant", "b"),
                Message("user", "c")]  # fmt: skip
    assert prompts[:5] == [render(messages, llm._engine.tokenizer)] * 5
    assert prompts[5] == render([Message("user", "a b")], llm._engine.tokenizer)


def test_stop_texts_of_the_object_and_the_call_both_count(llm, tiny_mixtral):
    text = llm.invoke("你好")
    first, second = text[8:10], text[4:6]
    stopping = ChineseMixtral(model=str(tiny_mixtral), stop=[first], **GREEDY)
    assert stopping.invoke("你好") == text[: text.index(first)]
    assert stopping.invoke("你好", stop=[second]) == text[: text.index(second)]


def test_options_can_be_given_with_a_call_or_bound(llm):
    assert llm.generate(["x"], max_tokens=3).llm_output["token_usage"]["completion_tokens"] == 3
    bound = llm.bind(max_tokens=2).invoke("你好")
    assert llm.invoke("你好").startswith(bound)
    assert bound != llm.invoke("你好")


def test_tokens_are_counted_with_the_models_own_vocabulary(llm):
    assert llm.get_num_tokens("你好") == 3
    assert llm.get_token_ids("你好") == [28705, 29383, 29530]


def test_callbacks_see_every_piece_once(llm):
    class Counter(BaseCallbackHandler):
        def __init__(self):
            self.pieces = []

        def on_llm_new_token(self, token, **_):
            self.pieces.append(token)

    for call in (llm.invoke, lambda *a, **k: "".join(llm.stream(*a, **k))):
        counter = Counter()
        assert call("你好", config={"callbacks": [counter]}) == "".join(counter.pieces)


def test_other_options_do_not_share_a_cache_entry(tiny_mixtral):
    from langchain_core.caches import InMemoryCache

    cache = InMemoryCache()
    texts = [
        ChineseMixtral(model=str(tiny_mixtral), cache=cache, **(GREEDY | {"max_tokens": n})).invoke(
            "你好"
        )
        for n in (3, 6)
    ]
    assert texts[0] != texts[1]
    assert len(cache._cache) == 2


def test_equal_objects_share_one_engine(llm, tiny_mixtral):
    other = ChineseMixtral(model=str(tiny_mixtral), **(GREEDY | {"temperature": 0.7}))
    assert other._engine is llm._engine


def test_cancelling_a_task_stops_the_engine(smollm):
    llm = ChineseMixtral(model=str(smollm), max_tokens=4000)
    llm.invoke("hi", max_tokens=1)

    async def run():
        task = asyncio.create_task(llm.ainvoke("Count to ten thousand. " * 600))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await llm.ainvoke("hi", max_tokens=1)

    started = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - started < 5, "its prefill alone takes 12 seconds"


def test_calls_with_other_options_and_other_turns_do_not_share_a_cache_entry(tiny_mixtral):
    from langchain_core.caches import InMemoryCache

    cache = InMemoryCache()
    llm = ChineseMixtral(model=str(tiny_mixtral), cache=cache, **GREEDY)
    assert llm.invoke("你好", max_tokens=2) != llm.invoke("你好", max_tokens=6)
    assert asyncio.run(llm.ainvoke("你好", max_tokens=4)) not in (
        llm.invoke("你好", max_tokens=2),
        llm.invoke("你好", max_tokens=6),
    )
    assert len(cache._cache) == 3
    llm.invoke([("human", "a"), ("ai", "b"), ("human", "c")])
    llm.invoke([("human", "a\n[assistant] b\n[user] c")])
    assert len(cache._cache) == 5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n_ctx": 10**7}, "n_ctx"),
        ({"engine": "gpt"}, "llamacpp"),
    ],
)
def test_bad_options_are_refused_at_once(options, match):
    with pytest.raises(SettingsError, match=match):
        ChineseMixtral(model="x.gguf", **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": "0.1"}, "temperature is '0.1'; it must be a number"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be a whole number"),
        ({"max_tokens": True}, "whole number"),
        ({"stop": "ab"}, "list of texts"),
    ],
)
def test_mistakes_in_a_calls_options_are_named(llm, options, match):
    with pytest.raises(SettingsError, match=match):
        llm.invoke("x", **options)


def test_too_long_a_prompt_says_the_numbers(llm):
    with pytest.raises(ContextError, match=r"1,024"):
        llm.invoke("x " * 2000)
