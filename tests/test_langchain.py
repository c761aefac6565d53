"""The model faces inside LangChain and LangGraph: agents, callbacks, caches, runnables, threads."""

import ast
import asyncio
import copy
import json
import pickle
import re
import textwrap
import threading
import warnings
from operator import itemgetter
from typing import Literal

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField
from pydantic import BaseModel

from mixtral_rag import ChatChineseMixtral, ChineseMixtral
from mixtral_rag.errors import ContextError, ModelNotFoundError, SettingsError

GREEDY = {"temperature": 0, "repeat_penalty": 1.0, "max_tokens": 10, "n_ctx": 2048, "n_threads": 1}
FACES = [ChatChineseMixtral, ChineseMixtral]
faces = pytest.mark.parametrize("face", FACES, ids=["chat", "llm"])


def weather(city: Literal["Paris", "Rome"]) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


class Report(BaseModel):
    """A report."""

    city: Literal["Paris", "Rome"]
    degrees: Literal[1, 2, 3]


@pytest.fixture(scope="module")
def chat(tiny_mixtral):
    return ChatChineseMixtral(model=str(tiny_mixtral), **GREEDY)


@pytest.fixture(scope="module")
def caller(tiny_caller):
    return ChatChineseMixtral(model=str(tiny_caller), **GREEDY | {"max_tokens": 100})


@pytest.fixture(scope="module")
def llm(tiny_mixtral):
    return ChineseMixtral(model=str(tiny_mixtral), **GREEDY)


def text_of(answer):
    return answer if isinstance(answer, str) else answer.content


@pytest.fixture
def loads_of_weights(monkeypatch):
    """The engines that loaded weights meanwhile."""
    from mixtral_rag.engines.llamacpp import LlamaCppEngine

    loaded, load = [], LlamaCppEngine._load_weights

    def counted(self):
        loaded.append(self)
        return load(self)

    monkeypatch.setattr(LlamaCppEngine, "_load_weights", counted)
    return loaded


# --- agents ---------------------------------------------------------------------------------------


def test_an_agent_calls_a_tool_and_then_answers(caller):
    agents = pytest.importorskip("langchain.agents")
    middleware = pytest.importorskip("langchain.agents.middleware")

    @middleware.wrap_model_call
    def once(request, handler):
        done = any(isinstance(m, ToolMessage) for m in request.messages)
        return handler(request.override(tool_choice="none") if done else request)

    agent = agents.create_agent(caller, [weather], system_prompt="S", middleware=[once])
    turns = agent.invoke({"messages": [HumanMessage("Weather in Rome?")]})["messages"]
    assert [m.type for m in turns] == ["human", "ai", "tool", "ai"]
    assert turns[2].content.startswith("sunny in ")
    assert turns[3].content
    assert turns[3].tool_calls == []


def test_an_agent_that_calls_for_ever_is_stopped_by_its_limit(caller):
    agents = pytest.importorskip("langchain.agents")
    middleware = pytest.importorskip("langchain.agents.middleware")
    limit = middleware.ToolCallLimitMiddleware(run_limit=2, exit_behavior="end")
    agent = agents.create_agent(caller, [weather], middleware=[limit])
    turns = asyncio.run(agent.ainvoke({"messages": [HumanMessage("?")]}))["messages"]
    results = [m for m in turns if m.type == "tool" and m.status == "success"]
    assert len(results) == 2


@pytest.mark.parametrize("strategy", ["ProviderStrategy", "ToolStrategy", None])
@pytest.mark.parametrize("tools", [[], [weather]], ids=["alone", "with a tool"])
def test_an_agent_gives_an_answer_of_a_form(chat, strategy, tools):
    agents = pytest.importorskip("langchain.agents")
    structured_output = pytest.importorskip("langchain.agents.structured_output")
    form = getattr(structured_output, strategy)(Report) if strategy else Report
    model = chat.model_copy(update={"max_tokens": 80, "temperature": 2.0, "top_p": 1.0})
    agent = agents.create_agent(model, tools, response_format=form)
    state = agent.invoke({"messages": [HumanMessage("?")]}, {"recursion_limit": 100})
    assert isinstance(state["structured_response"], Report)


def graph_of(model):
    graph = pytest.importorskip("langgraph.graph")
    prebuilt = pytest.importorskip("langgraph.prebuilt")
    bound = model.bind_tools([weather])

    def answer(state):
        done = any(isinstance(m, ToolMessage) for m in state["messages"])
        return {"messages": [(model if done else bound).invoke(state["messages"])]}

    made = graph.StateGraph(graph.MessagesState)
    made.add_node("model", answer)
    made.add_node("tools", prebuilt.ToolNode([weather]))
    made.add_edge(graph.START, "model")
    made.add_conditional_edges("model", prebuilt.tools_condition)
    made.add_edge("tools", "model")
    return made.compile()


def test_a_graph_streams_tokens_updates_and_values(caller):
    compiled = graph_of(caller)
    start = {"messages": [HumanMessage("?")]}
    turns = compiled.invoke(start)["messages"]
    assert [m.type for m in turns] == ["human", "ai", "tool", "ai"]
    updates = list(compiled.stream(start, stream_mode="updates"))
    assert [next(iter(u)) for u in updates] == ["model", "tools", "model"]
    assert len(list(compiled.stream(start, stream_mode="values"))) == 4
    pieces = [(m, info) for m, info in compiled.stream(start, stream_mode="messages")]
    last = [m for m, info in pieces if info["langgraph_step"] == 3]
    assert len(last) > 2
    assert "".join(m.content for m in last) == turns[-1].content
    calls = [c for m, info in pieces if info["langgraph_step"] == 1 for c in m.tool_call_chunks]
    assert json.loads("".join(c["args"] for c in calls)) == turns[1].tool_calls[0]["args"]


def test_a_call_that_is_cut_off_while_a_graph_streams_runs_no_tool(caller):
    start = {"messages": [HumanMessage("?")]}
    whole = caller.bind_tools([weather]).invoke("?").usage_metadata["output_tokens"]
    for limit in range(6, whole - 2, 2):
        compiled = graph_of(caller.model_copy(update={"max_tokens": limit}))
        pieces = list(compiled.stream(start, stream_mode="messages"))
        assert not [m for m, _ in pieces if isinstance(m, ToolMessage)], limit


# --- callbacks ------------------------------------------------------------------------------------


class Seen(BaseCallbackHandler):
    """What a handler is told."""

    def __init__(self):
        self.tokens, self.ends, self.errors = [], [], []

    def on_llm_new_token(self, token, **_):
        self.tokens.append(token)

    def on_llm_end(self, response, **_):
        self.ends.append(response)

    def on_llm_error(self, error, **_):
        self.errors.append(error)


class AsyncSeen(AsyncCallbackHandler):
    """The same, asynchronously."""

    def __init__(self):
        self.tokens, self.ends, self.errors = [], [], []

    async def on_llm_new_token(self, token, **_):
        self.tokens.append(token)

    async def on_llm_end(self, response, **_):
        self.ends.append(response)

    async def on_llm_error(self, error, **_):
        self.errors.append(error)


def every_way(model, prompt, make, **options):
    """The answer and the handler of each way to call."""

    async def streamed(config):
        return "".join([text_of(c) async for c in model.astream(prompt, config, **options)])

    for way in ("invoke", "stream", "ainvoke", "astream"):
        handler = make(way)
        config = {"callbacks": [handler]}
        if way == "invoke":
            answer = model.invoke(prompt, config, **options)
        elif way == "stream":
            answer = "".join(text_of(c) for c in model.stream(prompt, config, **options))
        elif way == "ainvoke":
            answer = asyncio.run(model.ainvoke(prompt, config, **options))
        else:
            answer = asyncio.run(streamed(config))
        yield way, text_of(answer), handler


def handlers(way):
    return AsyncSeen() if way.startswith("a") else Seen()


@faces
def test_handlers_see_every_token_once_and_the_usage(face, tiny_mixtral):
    model = face(model=str(tiny_mixtral), **GREEDY)
    expected = text_of(model.invoke("你好"))
    for way, answer, handler in every_way(model, "你好", handlers):
        assert answer == expected
        if face is ChineseMixtral or "stream" in way:
            assert "".join(handler.tokens) == expected
        (end,) = handler.ends
        generation = end.generations[0][0]
        assert generation.text == expected
        if face is ChatChineseMixtral:
            assert generation.message.usage_metadata["output_tokens"] == 10
            assert generation.message.response_metadata["finish_reason"] == "length"
        else:
            assert generation.generation_info["usage"]["completion_tokens"] == 10
        assert handler.errors == []


@faces
def test_errors_reach_the_handlers(face, tiny_mixtral):
    model = face(model=str(tiny_mixtral), **GREEDY)
    for options, kind in (({"max_tokens": 5000}, ContextError), ({"nope": 1}, SettingsError)):
        for way in ("invoke", "stream"):
            seen = Seen()
            with pytest.raises(kind):
                list(getattr(model, way)("x", {"callbacks": [seen]}, **options))
            assert [type(e) for e in seen.errors] == [kind]
            assert seen.ends == []


@faces
def test_events_tell_of_every_token(face, tiny_mixtral):
    model = face(model=str(tiny_mixtral), **GREEDY)
    kind = "chat_model" if face is ChatChineseMixtral else "llm"

    async def events():
        return [e async for e in model.astream_events("你好", version="v2")]

    seen = asyncio.run(events())
    assert [seen[0]["event"], seen[-1]["event"]] == [f"on_{kind}_start", f"on_{kind}_end"]
    chunks = [e["data"]["chunk"] for e in seen if e["event"] == f"on_{kind}_stream"]
    assert "".join(map(text_of, chunks)) == text_of(model.invoke("你好"))


# --- caches ---------------------------------------------------------------------------------------


def caches(tmp_path):
    yield InMemoryCache()
    pytest.importorskip("langchain_community", reason="the extra langchain is not installed")
    from langchain_community.cache import SQLiteCache

    yield SQLiteCache(str(tmp_path / "cache.db"))


class Counted(InMemoryCache):
    """A cache that counts what it finds."""

    def __init__(self):
        super().__init__()
        self.hits = 0

    def lookup(self, prompt, llm_string):
        found = super().lookup(prompt, llm_string)
        self.hits += found is not None
        return found


OTHER = [
    {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"repeat_penalty": 1.2},
    {"repeat_last_n": 3}, {"seed": 3}, {"max_tokens": 4}, {"stop": ["x"]}, {"n": 2},
    {"logprobs": True}, {"top_logprobs": 2}, {"json_schema": {"type": "boolean"}},
    {"pattern": "[a-z]+"},
]  # fmt: skip
OTHER_MODELS = [{"n_ctx": 1024}, {"kv_type": "f32"}, {"instruct": False}, {"keep_markers": True}]
FORM = {"type": "json_schema", "json_schema": {"schema": {"type": "boolean"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
OTHER_CALLS = [
    {"response_format": FORM},
    {"response_format": {"type": "json_object"}},
    {"tools": [TOOL]},
    {"tools": [TOOL], "tool_choice": "any"},
    {"tools": [TOOL], "tool_choice": "any", "parallel_tool_calls": True},
]


@faces
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_other_options_never_share_a_cache_entry(face, asynchronous, tiny_mixtral):
    cache = Counted()

    def ask(model, **options):
        if asynchronous:
            return asyncio.run(model.ainvoke("你好", **options))
        return model.invoke("你好", **options)

    base = {"model": str(tiny_mixtral), "cache": cache} | GREEDY
    entries = [{}, *OTHER, *OTHER_MODELS]
    for other in entries:
        ask(face(**base | other))
    assert (cache.hits, len(cache._cache)) == (0, len(entries))
    for other in entries:
        ask(face(**base | other))
    assert (cache.hits, len(cache._cache)) == (len(entries), len(entries))
    calls = [*OTHER, *(OTHER_CALLS if face is ChatChineseMixtral else [])]
    before, model = len(entries), face(**base)
    for other in calls:
        if other != {"max_tokens": 4}:
            ask(model, **other | {"max_tokens": 60})
    for other in calls:
        if other != {"max_tokens": 4}:
            ask(model, **other | {"max_tokens": 60})
    assert cache.hits == before + len(calls) - 1
    assert len(cache._cache) == before + len(calls) - 1


@faces
def test_options_changed_later_do_not_share_a_cache_entry(face, tiny_mixtral):
    cache = Counted()
    model = face(model=str(tiny_mixtral), cache=cache, **GREEDY)
    model.invoke("你好")
    model.max_tokens = 3
    model.invoke("你好")
    model.model_copy(update={"max_tokens": 4}).invoke("你好")
    model.with_config(tags=["t"]).invoke("你好")
    assert (cache.hits, len(cache._cache)) == (1, 3)


@faces
def test_other_engines_and_weights_never_share_a_cache_entry(face, tmp_path):
    def key(**options):
        model = face(model=str(tmp_path), **options)
        chat = face is ChatChineseMixtral
        return model._get_llm_string() if chat else str(sorted(model.asdict().items()))

    full = {"engine": "transformers"}
    others = [{}, full, {"engine": "vllm"}, full | {"dtype": "float16"},
              full | {"quantization": "8bit"}, full | {"adapter": str(tmp_path)},
              full | {"engine_options": {"attn_implementation": "eager"}}]  # fmt: skip
    assert len({key(**options) for options in others}) == len(others)
    assert key(**full) == key(**full)


@faces
def test_the_key_of_a_server_is_in_no_cache_key(face, tiny_mixtral, monkeypatch):
    monkeypatch.setenv("MIXTRAL_RAG_API_KEY", "top-secret-1")
    cache = InMemoryCache()
    for options in ({}, {"api_key": "top-secret-2"}):
        model = face(model=str(tiny_mixtral), cache=cache, **GREEDY, **options)
        model.invoke("你好")
        assert "top-secret" not in dumps(model) + repr(model) + str(model) + str(model.asdict())
    assert len(cache._cache) == 1
    assert "top-secret" not in str(cache._cache)


def test_what_is_cached_comes_back_the_same(tmp_path, tiny_mixtral, tiny_caller):
    for cache in caches(tmp_path):
        calling = ChatChineseMixtral(
            model=str(tiny_caller), cache=cache, **GREEDY | {"max_tokens": 60}
        ).bind_tools([weather])
        fresh, again = calling.invoke("?"), calling.invoke("?")
        assert again.tool_calls == fresh.tool_calls != []
        assert again.id == fresh.id
        chat = ChatChineseMixtral(model=str(tiny_mixtral), cache=cache, logprobs=True, **GREEDY)
        fresh, again = chat.invoke("你好"), chat.invoke("你好")
        assert again.content == fresh.content
        assert again.response_metadata == fresh.response_metadata
        llm = ChineseMixtral(model=str(tiny_mixtral), cache=cache, n=2, seed=1, **GREEDY)
        fresh, again = (llm.generate(["你好"]).generations for _ in range(2))
        assert [g.text for g in again[0]] == [g.text for g in fresh[0]]
        assert [g.generation_info for g in again[0]] == [g.generation_info for g in fresh[0]]
        assert text_of(asyncio.run(chat.ainvoke("你好"))) == chat.invoke("你好").content


def test_a_cached_answer_is_not_made_again(tiny_mixtral, loads_of_weights):
    cache = InMemoryCache()
    options = {"model": str(tiny_mixtral), "cache": cache, **GREEDY, "n_ctx": 777}
    ChatChineseMixtral(**options).invoke("你好")
    assert len(loads_of_weights) == 1
    ChatChineseMixtral(**options).invoke("你好")  # by an engine that has loaded nothing
    assert len(loads_of_weights) == 1


# --- runnables ------------------------------------------------------------------------------------


def test_a_rate_limiter_is_asked_for_every_answer(tiny_mixtral):
    class Counting(InMemoryRateLimiter):
        asked = 0

        def acquire(self, *, blocking=True):
            type(self).asked += 1
            return super().acquire(blocking=blocking)

    limiter = Counting(requests_per_second=1000, check_every_n_seconds=0.001, max_bucket_size=5)
    chat = ChatChineseMixtral(model=str(tiny_mixtral), rate_limiter=limiter, **GREEDY)
    chat.batch(["a", "b"])
    list(chat.stream("c"))
    assert Counting.asked == 3


@faces
def test_configurable_fields_do_not_load_weights_again(face, tiny_mixtral, loads_of_weights):
    model = face(model=str(tiny_mixtral), **GREEDY | {"n_ctx": 901})
    flexible = model.configurable_fields(max_tokens=ConfigurableField(id="most"))
    whole = text_of(flexible.invoke("你好"))
    part = text_of(flexible.with_config(configurable={"most": 3}).invoke("你好"))
    assert whole.startswith(part)
    assert part != whole
    assert len(loads_of_weights) == 1


def test_configurable_alternatives_load_what_is_chosen(tiny_mixtral, tiny_base, loads_of_weights):
    first = ChineseMixtral(model=str(tiny_mixtral), **GREEDY | {"n_ctx": 902})
    second = ChineseMixtral(model=str(tiny_base), **GREEDY | {"n_ctx": 902})
    either = first.configurable_alternatives(
        ConfigurableField(id="which"), default_key="first", second=second
    )
    assert either.invoke("你好") == first.invoke("你好")
    assert len(loads_of_weights) == 1
    chosen = either.with_config(configurable={"which": "second"})
    assert chosen.invoke("你好") == second.invoke("你好")
    assert len(loads_of_weights) == 2


@faces
def test_a_model_whose_file_is_missing_falls_back(face, tiny_mixtral):
    model = face(model=str(tiny_mixtral), **GREEDY)
    missing = face(model="/nowhere/x.gguf", **GREEDY)
    with pytest.raises(ModelNotFoundError):
        missing.invoke("你好")
    safe = missing.with_fallbacks([model])
    assert text_of(safe.invoke("你好")) == text_of(model.invoke("你好"))
    assert text_of(asyncio.run(safe.ainvoke("你好"))) == text_of(model.invoke("你好"))
    assert "".join(map(text_of, safe.stream("你好"))) == text_of(model.invoke("你好"))


def test_retries_ask_again(tmp_path, tiny_mixtral):
    path = tmp_path / "late.gguf"
    chat = ChatChineseMixtral(model=str(path), **GREEDY)

    class Arriving(BaseCallbackHandler):
        def on_llm_error(self, error, **_):
            path.symlink_to(tiny_mixtral)

    retrying = chat.with_retry(
        retry_if_exception_type=(ModelNotFoundError,), wait_exponential_jitter=False
    )
    assert retrying.invoke("你好", {"callbacks": [Arriving()]}).content


def test_what_counts_tokens_around_a_batch_counts_them(tiny_mixtral):
    from langchain_core.callbacks import get_usage_metadata_callback

    model = ChatChineseMixtral(model=str(tiny_mixtral), **GREEDY)
    with get_usage_metadata_callback() as counted:
        answers = model.batch(["a", "b", "你好"])
    [usage] = counted.usage_metadata.values()
    assert usage["output_tokens"] == sum(a.usage_metadata["output_tokens"] for a in answers)


@faces
def test_batches_keep_their_order_and_return_errors(face, tiny_mixtral):
    model = face(model=str(tiny_mixtral), **GREEDY)
    prompts = ["a", "x " * 3000, "b", "你好"]
    expected = [text_of(model.invoke(p)) for p in ("a", "b", "你好")]
    config = {"max_concurrency": 2}
    for answers in (
        model.batch(prompts, config, return_exceptions=True),
        asyncio.run(model.abatch(prompts, config, return_exceptions=True)),
    ):
        good = [a for a in answers if not isinstance(a, Exception)]
        if face is ChatChineseMixtral:
            assert isinstance(answers[1], ContextError)
            assert [text_of(a) for a in good] == expected
        else:  # LangChain batches the prompts of an LLM: one error is that of its whole batch
            assert any(isinstance(a, ContextError) for a in answers)
    with pytest.raises(ContextError):
        model.batch(prompts)
    done = dict(model.batch_as_completed(["a", "b"]))
    assert [text_of(done[i]) for i in (0, 1)] == expected[:2]


@faces
def test_bound_options_hold_in_chains(face, tiny_mixtral):
    model = face(model=str(tiny_mixtral), **GREEDY)
    chain = itemgetter("q") | model.bind(max_tokens=3, stop=["zzz"])
    text = text_of(chain.invoke({"q": "你好"}))
    assert text_of(model.invoke("你好")).startswith(text)
    assert text != text_of(model.invoke("你好"))


# --- several answers, log-probabilities --------------------------------------------------


def texts(result):
    return [[g.text for g in generations] for generations in result.generations]


def test_several_answers_differ_and_can_be_repeated(chat, llm):
    options = {"n": 3, "temperature": 1.5, "seed": 7}
    turns = [[HumanMessage("a")], [HumanMessage("b")]]
    for model, prompts in ((chat, turns), (llm, ["a", "b"])):
        result = model.generate(prompts, **options)
        made = texts(result)
        assert [len(set(m)) for m in made] == [3, 3]
        assert texts(model.generate(prompts, **options)) == made
        assert texts(asyncio.run(model.agenerate(prompts, **options))) == made
        first = model.invoke(prompts[0], temperature=1.5, seed=7)
        assert text_of(first) == made[0][0]
        assert len(set(texts(model.generate(prompts[:1], n=4, temperature=1.5))[0])) == 4
        for stream in (model.stream, lambda *a, m=model, **k: list(m.stream(*a, **k))):
            with pytest.raises(SettingsError, match="n answers cannot be streamed"):
                list(stream(prompts[0], n=2))
        with pytest.raises(SettingsError, match="n is 0"):
            model.invoke(prompts[0], n=0)
    assert llm.generate(["a", "b"], n=3).llm_output["token_usage"]["completion_tokens"] == 60


def check_logprobs(content, text, n_top):
    assert len(content) == 10
    joined = b"".join(bytes(t["bytes"]) for t in content).decode("utf-8", "replace")
    assert joined.removeprefix(" ") == text
    for token in content:
        assert token["logprob"] <= 0
        assert len(token["top_logprobs"]) == n_top
        if n_top:
            assert token["top_logprobs"][0]["logprob"] == pytest.approx(token["logprob"])


@pytest.mark.parametrize("n_top", [0, 3])
def test_every_token_has_its_log_probability(chat, llm, n_top):
    options = {"logprobs": True, "top_logprobs": n_top}
    message = chat.invoke("你好", **options)
    check_logprobs(message.response_metadata["logprobs"]["content"], message.content, n_top)
    whole = None
    for chunk in chat.stream("你好", **options):
        whole = chunk if whole is None else whole + chunk
    streamed = whole.response_metadata["logprobs"]["content"]
    check_logprobs(streamed, message.content, n_top)
    seen = Seen()
    chat.invoke("你好", {"callbacks": [seen]}, **options)
    message = seen.ends[0].generations[0][0].message
    check_logprobs(message.response_metadata["logprobs"]["content"], message.content, n_top)
    for generation in (
        llm.generate(["你好"], **options).generations[0][0],
        llm.generate(["你好"], callbacks=[Seen()], **options).generations[0][0],
        llm.generate(["你好", "a"], **options).generations[0][0],
    ):
        check_logprobs(generation.generation_info["logprobs"]["content"], generation.text, n_top)
    assert "logprobs" not in chat.invoke("你好").response_metadata


def test_tokens_of_calls_have_log_probabilities(caller):
    message = caller.bind_tools([weather]).invoke("?", logprobs=True)
    content = message.response_metadata["logprobs"]["content"]
    text = b"".join(bytes(t["bytes"]) for t in content).decode()
    assert '"name": "weather"' in text
    assert len(content) == message.usage_metadata["output_tokens"]


# --- copies, threads, serialisation ------------------------------------------------------------


@faces
def test_copies_share_the_engine(face, tiny_mixtral, loads_of_weights):
    model = face(model=str(tiny_mixtral), **GREEDY | {"n_ctx": 903})
    text = text_of(model.invoke("你好"))
    copies = [
        copy.copy(model), copy.deepcopy(model), model.model_copy(), model.model_copy(deep=True),
        pickle.loads(pickle.dumps(model)), loads(dumps(model), allowed_objects=[face],
        valid_namespaces=["mixtral_rag"]),
    ]  # fmt: skip
    for other in copies:
        assert other._engine is model._engine
        assert text_of(other.invoke("你好")) == text
        assert other.asdict() == model.asdict()
    assert len(loads_of_weights) == 1


@faces
def test_a_copy_with_another_context_or_model_gets_its_own_engine(face, tiny_mixtral, tiny_base):
    model = face(model=str(tiny_mixtral), **GREEDY)
    assert model.model_copy(update={"temperature": 0.5})._engine is model._engine
    wider = model.model_copy(update={"n_ctx": 3000})
    assert wider.n_ctx_used == 3000
    assert model.n_ctx_used == 2048
    wider.model = str(tiny_base)
    assert text_of(wider.invoke("你好")) == text_of(
        face(model=str(tiny_base), **GREEDY).invoke("你好")
    )


def test_two_threads_get_what_each_asked_for(chat, llm):
    prompts = ["a", "b", "你好", "c"]
    expected = [chat.invoke(p).content for p in prompts]
    assert [llm.invoke(p) for p in prompts] == expected
    found = {}

    def ask(model, prompt):
        found[model, prompt] = "".join(map(text_of, (chat, llm)[model].stream(prompt)))

    threads = [threading.Thread(target=ask, args=(m, p)) for m in (0, 1) for p in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for m in (0, 1):
        assert [found[m, p] for p in prompts] == expected


@faces
def test_models_are_written_and_read_with_every_option(face, monkeypatch):
    monkeypatch.delenv("MIXTRAL_RAG_API_KEY", raising=False)
    options = {"model": "model.gguf", "n_ctx": 512, "temperature": 0, "max_tokens": None,
               "stop": ["a"], "mmap": False, "top_k": 0, "timeout": None, "seed": 0,
               "instruct": False, "json_schema": {"type": "object", "lc": 1},
               "api_key": "top-secret"}  # fmt: skip
    model = face(**options)
    text = dumps(model)
    assert "top-secret" not in text
    assert json.loads(text)["id"][0] == "mixtral_rag"
    read = {"allowed_objects": [face], "valid_namespaces": ["mixtral_rag"]}
    again = loads(text, **read)
    for name in face.model_fields:
        if name not in ("api_key", "profile", "metadata"):
            assert getattr(again, name) == getattr(model, name), name
    assert again.api_key is None
    assert dumps(loads(text, secrets_map={"MIXTRAL_RAG_API_KEY": "k"}, **read)) == text


def test_chains_with_a_model_are_written_and_read(chat):
    from langchain_core.prompts import ChatPromptTemplate

    prompt = ChatPromptTemplate.from_messages([("system", "S"), ("human", "{q}")])
    chain = prompt | chat.bind(max_tokens=4)
    read = loads(
        dumps(chain),
        allowed_objects=[ChatChineseMixtral, type(chain), type(prompt), type(chat.bind()),
                         *(type(m) for m in prompt.messages),
                         *(type(m.prompt) for m in prompt.messages)],
        valid_namespaces=["mixtral_rag"],
    )  # fmt: skip
    assert read.invoke({"q": "你好"}).content == chain.invoke({"q": "你好"}).content


def test_messages_of_the_model_can_be_stored(caller):
    message = caller.bind_tools([weather]).invoke("?", logprobs=True)
    again = loads(dumps(message), allowed_objects=[AIMessage])
    assert again == message


@faces
def test_making_a_model_of_a_server_asks_nothing_of_it(face):
    with warnings.catch_warnings(record=True) as seen:  # pytest-socket warns of every socket
        warnings.simplefilter("always")
        model = face(model="m", engine="remote", base_url="http://127.0.0.1:1/v1", n=2)
        assert loads(dumps(model), allowed_objects=[face], valid_namespaces=["mixtral_rag"])
        assert copy.deepcopy(model).model_copy(update={"temperature": 1.0}) is not None
    assert not [w for w in seen if "socket" in str(w.message)]
    if face is ChatChineseMixtral:
        assert model.profile["tool_calling"]
        assert "max_input_tokens" not in model.profile


@faces
def test_the_examples_of_the_documentation_run(face, tiny_mixtral, capsys):
    code = "\n".join(
        textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", face.__doc__, re.S)
    )
    for name in ("./chinese-mixtral-instruct", "chinese-mixtral-instruct"):
        code = code.replace(f'"{name}"', repr(str(tiny_mixtral)))
    code = code.replace("n_ctx=8192", "n_ctx=1024, n_threads=1")
    names = {}
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    asyncio.run(eval(compile(code, "example", "exec", flags=flags), names))
    assert capsys.readouterr().out
    if face is ChatChineseMixtral:
        assert names["message"].response_metadata["finish_reason"] in ("stop", "length")
    else:
        assert names["info"]["logprobs"]["content"]
