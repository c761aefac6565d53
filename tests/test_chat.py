"""`ChatChineseMixtral`, the LangChain chat model, over real models."""

import asyncio

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from mixtral_rag import ChatChineseMixtral
from mixtral_rag.errors import PromptError

GREEDY = {"temperature": 0, "repeat_penalty": 1.0, "max_tokens": 12, "n_ctx": 1024, "n_threads": 1}


@pytest.fixture(scope="module")
def chat(tiny_mixtral):
    return ChatChineseMixtral(model=str(tiny_mixtral), **GREEDY)


@pytest.fixture(scope="module")
def small(smollm):
    return ChatChineseMixtral(model=str(smollm), **GREEDY)


def test_every_way_to_call_gives_the_same_message(chat):
    message = chat.invoke("你好")
    assert message.usage_metadata["output_tokens"] == 12
    assert message.response_metadata["finish_reason"] == "length"
    whole = None
    for chunk in chat.stream("你好"):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == message.content
    assert whole.usage_metadata["input_tokens"] == message.usage_metadata["input_tokens"]
    assert whole.response_metadata == message.response_metadata
    assert [m.content for m in chat.batch(["你好", "你好"])] == [message.content] * 2
    assert asyncio.run(chat.ainvoke("你好")).content == message.content


def test_a_real_model_remembers_the_conversation(small):
    turns = [HumanMessage("My cat is called Momo. Say hello to my cat."),
             AIMessage("Hello, Momo!"), HumanMessage("What is my cat called?")]  # fmt: skip
    assert "Momo" in small.invoke(turns).content


def test_the_next_turn_computes_only_what_is_new(small):
    turns = [HumanMessage("Tell me a long story about a fox and a crow. " * 20)]
    answer = small.invoke(turns)
    follow_up = small.invoke([*turns, answer, HumanMessage("Go on.")])
    cached = follow_up.usage_metadata["input_token_details"]["cache_read"]
    assert cached >= answer.usage_metadata["input_tokens"]


def test_counted_tokens_are_those_really_sent(chat, small):
    turns = [SystemMessage("S"), HumanMessage("你好"), AIMessage("b"), HumanMessage("c")]
    for model in (chat, small):
        sent = model.invoke(turns).usage_metadata["input_tokens"]
        assert model.get_num_tokens_from_messages(turns) == sent


def test_two_turns_of_one_role_are_merged_not_refused(chat, small):
    for model in (chat, small):
        model.invoke([SystemMessage("a"), SystemMessage("b"), HumanMessage("c"), HumanMessage("d")])


def test_a_template_that_refuses_system_turns_gets_them_folded_in(small, monkeypatch):
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    monkeypatch.setattr(type(small._engine), "chat_template", template)
    ids = small.get_num_tokens_from_messages([SystemMessage("S"), HumanMessage("U")])
    assert ids == len(small.get_token_ids("S\n\nU")) + 1


def test_the_profile_tells_the_context_length(chat, small, smollm):
    assert chat.profile["max_input_tokens"] == 1024
    assert ChatChineseMixtral(model=str(smollm)).profile["max_input_tokens"] == 8192
    assert ChatChineseMixtral(model="/nowhere.gguf").profile is None


def test_the_profile_of_a_server_asks_nothing_of_it():
    server = {"model": "m", "engine": "remote", "base_url": "http://127.0.0.1:1/v1"}
    profile = ChatChineseMixtral(**server).profile  # sockets are off in these tests
    assert profile["tool_calling"]
    assert "max_input_tokens" not in profile
    assert ChatChineseMixtral(**server, n_ctx=4096).profile["max_input_tokens"] == 4096


def test_text_blocks_are_read_and_pictures_refused(chat):
    assert chat.invoke([HumanMessage([{"type": "text", "text": "你好"}])]).content == (
        chat.invoke("你好").content
    )
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(PromptError, match="image_url"):
        chat.invoke([HumanMessage([picture])])


def test_a_conversation_that_ends_with_the_assistant_is_refused(chat):
    with pytest.raises(PromptError, match="end with a user message"):
        chat.invoke([HumanMessage("a"), AIMessage("b")])


def test_leaving_a_stream_early_frees_the_engine(small):
    async def run():
        async for _ in small.astream("Count to a thousand.", max_tokens=500):
            break
        return await asyncio.wait_for(small.ainvoke("hi", max_tokens=2), timeout=10)

    assert asyncio.run(run()).content
