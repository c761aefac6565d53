"""What privateGPT 1.0 asks of an OpenAI server, recorded from it, and the profile that sets it."""

import base64
import json
from pathlib import Path

import pytest
import yaml
from model_servers import LOCAL_HTTP

pytestmark = LOCAL_HTTP
HERE = Path(__file__).parent
REQUESTS = json.loads((HERE / "privategpt_requests.json").read_text("utf-8"))
PROFILE = HERE.parent.parent / "integrations" / "privategpt" / "settings-mixtral-rag.yaml"
# The fields of the classes of private_gpt/settings/settings.py; it passes over all others.
OPENAI = {"api_base", "api_key", "request_timeout", "embedding_api_base", "embedding_api_key"}
VECTORS = {"database", "embed_dim", "multitenancy", "default_collection"}
CHOSEN = {"default_model", "auto_discover_models"}
EITHER = {"type", "name", "mode", "provider", "enabled", "alias", "context_window", "tags"}
SECTIONS = {
    "openai": OPENAI,
    "llm": CHOSEN,
    "embedding": CHOSEN | {"ingest_mode", "count_workers"},
    "vectorstore": VECTORS,
}
MODELS = {
    "llm": EITHER
    | {"tokenizer", "prompt_style", "tokenizer_mode", "support_image", "support_audio", "api_type"}
    | {"support_tools", "support_reasoning", "sampling_params", "reasoning_sampling_params"},
    "embedding": EITHER | {"embed_dim", "embedding_batch_size", "prefix_text", "prefix_query"},
}


def streamed(reply):
    """The chunks of a stream that was closed as it should be."""
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [x.removeprefix("data: ") for x in reply.text.splitlines() if x.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(x) for x in lines[:-1]]


def check_chat(reply, body):
    """A stream of text or of calls, with its end and its counts."""
    *chunks, counts = streamed(reply)
    assert counts["choices"] == []
    assert counts["usage"]["prompt_tokens"] > 0
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[0]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")
    text = "".join(d.get("content") or "" for d in deltas)
    assert text or any(d.get("tool_calls") for d in deltas)
    if "response_format" in body:
        assert json.loads(text).keys() == {"colour"}


def check_embeddings(reply, body):
    """A vector of 384 numbers for each text, in base64."""
    rows = reply.json()["data"]
    assert [r["index"] for r in rows] == list(range(len(body["input"])))
    assert {len(base64.b64decode(r["embedding"])) for r in rows} == {4 * 384}


@pytest.mark.parametrize("asked", REQUESTS, ids=[r["name"] for r in REQUESTS])
def test_a_request_is_answered(client, asked):
    body = dict(asked["body"])
    if body["model"] == "MODEL":
        body["model"] = client.get("/v1/models").json()["data"][0]["id"]
    reply = client.post(asked["path"], json=body)
    assert reply.status_code == 200, reply.text
    if asked["path"] == "/v1/embeddings":
        check_embeddings(reply, body)
    else:
        check_chat(reply, body)


def test_the_profile_sets_what_privategpt_reads():
    profile = yaml.safe_load(PROFILE.read_text("utf-8"))
    models = {m["type"]: m for m in profile.pop("models")}
    assert profile.keys() <= SECTIONS.keys()
    for name, section in profile.items():
        assert section.keys() <= SECTIONS[name], name
    for kind, model in models.items():
        assert model.keys() <= MODELS[kind]
        assert model["mode"] == "openai"
        part = "llm" if kind == "llm" else "embedding"
        assert profile[part]["default_model"] == model["name"]
    # Of the others privateGPT sends none to a server that is not OpenAI's own.
    assert models["llm"]["sampling_params"].keys() <= {"temperature", "max_new_tokens"}
    assert models["llm"]["prompt_style"] == "chat"
    assert models["embedding"]["name"] == "multilingual-e5-small"
    assert models["embedding"]["embed_dim"] == profile["vectorstore"]["embed_dim"] == 384
