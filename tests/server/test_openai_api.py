"""OpenAI's API, asked by the official client, by LangChain's, and as the upstream project's."""

import base64
import json
import struct

import numpy as np
import openai
import pytest
from model_servers import LOCAL_HTTP

from mixtral_rag import ChatChineseMixtral
from mixtral_rag.embeddings import open_embedder

pytestmark = LOCAL_HTTP
ASKED = [{"role": "user", "content": "Name the capital city of France."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}
SCHEMA = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}},
          "required": ["mood"], "additionalProperties": False}  # fmt: skip


@pytest.fixture(scope="module")
def api(server):
    """The official client."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def name(api):
    """The model's name."""
    return api.models.list().data[0].id


def test_models_are_the_model_and_each_collection(api, name):
    assert [m.id for m in api.models.list()] == [name, "documents", "documents/personnel"]
    assert api.models.retrieve("documents/personnel").owned_by == "mixtral_rag"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("gpt-4")


def test_a_chat_says_what_the_model_says(api, name, smollm):
    said = api.chat.completions.create(model=name, messages=ASKED, temperature=0, max_tokens=8)
    alone = ChatChineseMixtral(model=str(smollm), n_ctx=2048, temperature=0.0, max_tokens=8)
    expected = alone.invoke(ASKED[0]["content"])
    assert said.choices[0].message.content == expected.content
    counted = expected.usage_metadata
    assert said.usage.prompt_tokens == counted["input_tokens"]
    assert said.usage.completion_tokens == counted["output_tokens"]
    assert said.choices[0].finish_reason == "length"


def test_a_stream_gives_the_same_with_usage_at_its_end(api, name):
    asked = {"model": name, "messages": ASKED, "temperature": 0, "max_tokens": 12}
    whole = api.chat.completions.create(**asked)
    chunks = list(
        api.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1


def test_several_answers_differ_and_repeat_with_their_seed(api, name):
    asked = {"model": name, "messages": ASKED, "temperature": 1.5, "n": 3, "seed": 7,
             "max_tokens": 12}  # fmt: skip
    one, two = (api.chat.completions.create(**asked) for _ in range(2))
    texts = [c.message.content for c in one.choices]
    assert len(set(texts)) == 3
    assert texts == [c.message.content for c in two.choices]
    assert one.usage.completion_tokens > 12
    streamed = ["", "", ""]
    for chunk in api.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_stop_and_logprobs(api, name):
    asked = {"model": name, "messages": ASKED, "temperature": 0, "max_tokens": 16}
    whole = api.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    tokens = whole.choices[0].logprobs.content
    assert "".join(t.token for t in tokens) == whole.choices[0].message.content
    assert all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in tokens)
    word = whole.choices[0].message.content.split()[1]
    stopped = api.chat.completions.create(**asked, stop=[word])
    assert stopped.choices[0].finish_reason == "stop"
    assert word not in stopped.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_read(api, name, stream):
    asked = {"model": name, "messages": ASKED, "tools": [WEATHER], "tool_choice": "required",
             "max_tokens": 100, "temperature": 0}  # fmt: skip
    if stream:
        call = {"name": "", "arguments": "", "id": None}
        for chunk in api.chat.completions.create(**asked, stream=True):
            for part in chunk.choices[0].delta.tool_calls or ():
                call["id"] = part.id or call["id"]
                call["name"] += part.function.name or ""
                call["arguments"] += part.function.arguments or ""
            finish = chunk.choices[0].finish_reason
    else:
        choice = api.chat.completions.create(**asked).choices[0]
        (made,) = choice.message.tool_calls
        call = {"name": made.function.name, "arguments": made.function.arguments, "id": made.id}
        finish = choice.finish_reason
    assert (call["name"], finish) == ("weather", "tool_calls")
    assert isinstance(json.loads(call["arguments"])["city"], str)
    function = {"name": call["name"], "arguments": call["arguments"]}
    turns = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [
        {"id": call["id"], "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": call["id"], "content": "rain"}]  # fmt: skip
    said = api.chat.completions.create(model=name, messages=turns, tools=[WEATHER], max_tokens=4)
    assert said.usage.prompt_tokens > 20


def test_an_answer_has_the_schema_asked_for(api, name):
    form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA}}
    said = api.chat.completions.create(
        model=name, messages=ASKED, response_format=form, max_tokens=40
    )
    assert json.loads(said.choices[0].message.content)["mood"] in ("good", "bad")


def test_completions_go_on_from_text_and_from_tokens(api, name, smollm):
    chat = ChatChineseMixtral(model=str(smollm), n_ctx=2048)
    text = "The capital of France is"
    asked = {"model": name, "max_tokens": 6, "temperature": 0}
    by_text = api.completions.create(prompt=text, **asked, logprobs=2)
    by_ids = api.completions.create(prompt=chat.count_tokens(text), **asked)
    assert by_text.choices[0].text == by_ids.choices[0].text
    assert "Paris" in by_text.choices[0].text
    assert len(by_text.choices[0].logprobs.tokens) == 6
    several = api.completions.create(prompt=[text, "1, 2, 3,"], **asked, echo=True)
    assert several.choices[0].text == text + by_text.choices[0].text
    assert several.choices[1].text.startswith("1, 2, 3,")
    streamed = api.completions.create(prompt=text, **asked, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == by_text.choices[0].text


def test_a_token_that_does_not_exist_is_refused(api, name):
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        api.completions.create(model=name, prompt=[1, 10_000_000])


def test_embeddings_are_those_of_the_documents(api, client):
    texts = ["年假有几天？", "The pump takes oil."]
    found = api.embeddings.create(model="any", input=texts)  # the client asks for base64
    ours = open_embedder(None).passages(texts)
    assert np.allclose([d.embedding for d in found.data], ours, atol=1e-5)
    plain = client.post("/v1/embeddings", json={"input": texts[0]}).json()
    assert np.allclose(plain["data"][0]["embedding"], ours[0], atol=1e-5)
    coded = client.post(
        "/v1/embeddings", json={"input": texts[0], "encoding_format": "base64"}
    ).json()
    raw = base64.b64decode(coded["data"][0]["embedding"])
    assert np.allclose(struct.unpack(f"<{len(raw) // 4}f", raw), ours[0], atol=1e-5)
    query = client.post("/v1/embeddings", json={"input": texts[0], "input_type": "query"}).json()
    assert np.allclose(query["data"][0]["embedding"], open_embedder(None).query(texts[0])[0],
                       atol=1e-5)  # fmt: skip


@pytest.mark.parametrize(
    ("field", "word"),
    [
        ({"n": 1_000_000_000}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"num_beams": 4}, "num_beams"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"max_tokens": 100_000}, "context"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "role"),
        ({"stop": ["x" * 1000]}, "stop"),
        ({"tools": [{"type": "function"}]}, "tool"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "no"}}},
         "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text only"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_in_openais_form(client, field, word):
    answer = client.post("/v1/chat/completions", json={"messages": ASKED} | field)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert word in error["message"] or word == error["param"]


def test_every_field_of_the_upstream_server(client):
    """Of ymcui/Chinese-Mixtral, scripts/openai_server_demo/openai_api_protocol.py."""
    asked = {
        "model": None, "messages": ASKED, "temperature": 0.2, "top_p": 0.9, "top_k": 40, "n": 1,
        "max_tokens": 8, "num_beams": 1, "stop": None, "stream": False, "repetition_penalty": 1.1,
        "user": "someone", "do_sample": True,
    }  # fmt: skip
    answer = client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text
    greedy = [
        client.post("/v1/chat/completions", json=asked | {"do_sample": False}).json()
        for _ in range(2)
    ]
    assert greedy[0]["choices"] == greedy[1]["choices"]


def test_langchain_openai_speaks_with_it(server, name):
    langchain_openai = pytest.importorskip("langchain_openai")
    chat = langchain_openai.ChatOpenAI(
        model=name, base_url=f"{server.url}/v1", api_key="none", temperature=0, max_tokens=40
    )
    assert "Paris" in chat.invoke(ASKED).text + chat.invoke("Paris is in").text
    assert "".join(c.text for c in chat.stream(ASKED))
    (call,) = chat.bind_tools([WEATHER], tool_choice="weather").invoke(ASKED).tool_calls
    assert call["name"] == "weather"
    assert chat.with_structured_output(SCHEMA | {"title": "Mood"}).invoke("Mood?")["mood"]
    vectors = langchain_openai.OpenAIEmbeddings(
        base_url=f"{server.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    assert len(vectors.embed_query("年假")) == 384


@pytest.mark.parametrize("how", ["model", "field"])
def test_a_chat_answers_from_a_collection_with_citations(api, name, how):
    question = "How many litres of oil does the pump take?"
    asked = {"messages": [{"role": "user", "content": question}]}
    if how == "model":
        said = api.chat.completions.create(model="documents", **asked)
    else:
        said = api.chat.completions.create(
            model=name, **asked, extra_body={"collection": "default"}
        )
    assert said.found
    assert said.choices[0].message.content
    assert said.citations, said
    first = said.citations[0]
    assert first["name"] == "pump.md"
    assert first["quote"] in first["text"]
    assert said.usage.prompt_tokens > 50


def test_a_grounded_stream_ends_with_its_citations(api):
    asked = [{"role": "user", "content": "带薪年假有几天？"}]
    chunks = list(
        api.chat.completions.create(model="documents/personnel", messages=asked, stream=True)
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks)
    last = chunks[-1]
    assert last.choices[0].finish_reason in ("stop", "length")
    assert [c["name"] for c in last.citations][:1] == ["休假.md"]


def test_what_the_documents_do_not_hold_is_not_answered(api):
    asked = [{"role": "user", "content": "Who won the chess championship of 1972?"}]
    said = api.chat.completions.create(model="documents/personnel", messages=asked)
    assert said.found is False
    assert said.citations == []


def test_an_unknown_model_or_collection_is_named(api, name):
    for asked in ({"model": "gpt-4"}, {"model": "documents/nothing"},
                  {"model": name, "extra_body": {"collection": "nothing"}}):  # fmt: skip
        with pytest.raises(openai.NotFoundError, match=r"no (model|collection)"):
            api.chat.completions.create(messages=ASKED, **asked)


def test_a_prompt_that_is_too_long_says_by_how_much(client):
    long = [{"role": "user", "content": "word " * 5000}]
    for stream in (False, True):
        answer = client.post("/v1/chat/completions", json={"messages": long, "stream": stream})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_an_answer_without_a_length_fits_the_window(client):
    nearly = [{"role": "user", "content": "word " * 2010}]
    answer = client.post("/v1/chat/completions", json={"messages": nearly})
    assert answer.status_code == 200, answer.text
