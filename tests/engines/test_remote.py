"""The engine remote over real servers: llama-cpp-python's, and vLLM's.

What holds for every engine is in test_conformance.py, which also runs over vLLM's server.
"""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import jsonschema
import pytest
from model_servers import LOCAL_HTTP, N_CTX, llama_cpp_server

from mixtral_rag import ChatChineseMixtral, ChineseMixtral
from mixtral_rag.engines import Cancellation
from mixtral_rag.engines.llamacpp import LlamaCppEngine
from mixtral_rag.engines.remote import RemoteEngine
from mixtral_rag.errors import (
    ContextError,
    ModelNotFoundError,
    PromptError,
    ServerError,
    SettingsError,
)
from mixtral_rag.prompts import render
from mixtral_rag.types import Message, SamplingOptions

pytestmark = LOCAL_HTTP

KEY = "sk-a-key-of-these-tests"
GREEDY = {"temperature": 0, "repeat_penalty": 1.0, "max_tokens": 16}
HOT = {"temperature": 1.5, "top_p": 1.0, "top_k": 0, "repeat_penalty": 1.0, "max_tokens": 16}
FRANCE = [Message("user", "Name the capital city of France.")]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}


def answer(engine, prompt, *, cancel=None, **options):
    pieces = list(engine.generate(prompt, SamplingOptions(**options), cancel=cancel))
    assert all(p.finish_reason is None for p in pieces[:-1])
    return "".join(p.text for p in pieces), pieces[-1], pieces


def reaches(condition, seconds=60):
    """Whether `condition` comes true within a time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module")
def smol_server(smollm, tmp_path_factory):
    log = tmp_path_factory.mktemp("smol") / "log"
    with llama_cpp_server(smollm, "smollm2", log, key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def smol(smol_server, smollm):
    return RemoteEngine(
        "smollm2", base_url=smol_server.root, api_key=KEY, n_ctx=N_CTX, tokenizer=str(smollm)
    )


@pytest.fixture(scope="module")
def mixtral_server(tiny_mixtral, tmp_path_factory):
    log = tmp_path_factory.mktemp("mixtral") / "log"
    with llama_cpp_server(tiny_mixtral, "tiny-mixtral-instruct", log) as server:
        yield server


@pytest.fixture(scope="module")
def mixtral(mixtral_server):
    return RemoteEngine("tiny-mixtral-instruct", base_url=f"{mixtral_server.root}/v1/")


# --- llama-cpp-python's server: messages and text -------------------------------------------------


def test_a_server_without_token_ids_takes_messages(mixtral, smol, smollm):
    assert mixtral.takes_messages
    assert (mixtral.is_mixtral, mixtral.is_instruct) == (True, True)
    assert mixtral.n_ctx == 32_768
    assert mixtral.model_name == "tiny-mixtral-instruct"
    assert mixtral.tokenizer.encode("[INST]")[0] == 733
    assert smol.takes_messages
    assert (smol.is_mixtral, smol.is_instruct) == (False, True)
    assert smol.chat_template == LlamaCppEngine(str(smollm)).chat_template


def test_without_a_vocabulary_messages_are_sent_and_the_rest_asked_for(smol_server):
    engine = RemoteEngine("smollm2", base_url=smol_server.root, api_key=KEY)
    assert engine.takes_messages
    with pytest.raises(SettingsError, match="as tokenizer"):
        _ = engine.tokenizer
    with pytest.raises(SettingsError, match="set n_ctx"):
        _ = engine.n_ctx
    text, last, pieces = answer(engine, FRANCE, **GREEDY)
    assert "Paris" in text
    assert last.usage.completion_tokens == len([p for p in pieces if p.text])


def test_a_conversation_is_answered_in_pieces(smol):
    text, last, pieces = answer(smol, FRANCE, **GREEDY)
    assert "Paris" in text
    assert len(pieces) > 3
    assert last.finish_reason in ("stop", "length")
    assert last.usage.completion_tokens == pytest.approx(len(smol.tokenizer.encode(text)), abs=1)
    assert last.usage.prompt_tokens > 5
    told = [Message("system", "You are a cook."), Message("system", "Be brief."), *FRANCE]
    assert answer(smol, told, **GREEDY)[0]


def test_text_is_continued(smol):
    text, _, _ = answer(smol, "The capital of France is the city of", **GREEDY)
    assert "Paris" in text


def test_a_stop_text_ends_an_answer_before_it(smol):
    whole, _, _ = answer(smol, FRANCE, **GREEDY)
    text, last, _ = answer(smol, FRANCE, **GREEDY, stop=["Paris", "never said"])
    assert text == whole[: whole.index("Paris")]
    assert last.finish_reason == "stop"


def test_seeds(mixtral):
    asked = [Message("user", "hello")]
    a, b, c = (answer(mixtral, asked, **HOT, seed=s)[0] for s in (1, 1, 2))
    assert a == b != c
    fresh = {answer(mixtral, asked, **HOT)[0] for _ in range(3)}
    assert len(fresh) == 3


def test_the_limit_is_kept(mixtral):
    _, last, _ = answer(mixtral, "hello", **GREEDY | {"max_tokens": 3})
    assert last.finish_reason == "length"


@pytest.mark.parametrize("prompt", [FRANCE, "A city as JSON: "], ids=["messages", "text"])
def test_an_answer_is_held_to_a_schema(smol, prompt):
    options = GREEDY | {"max_tokens": 200, "json_schema": json.dumps(SCHEMA)}
    text, last, _ = answer(smol, prompt, **options)
    assert last.finish_reason == "stop"
    jsonschema.validate(json.loads(text), SCHEMA)


def test_cancelling_stops_the_server(smol, smol_server):
    cancel, n_before = Cancellation(), smol_server.log.read_text().count("Disconnected")
    options = SamplingOptions(**HOT | {"max_tokens": 1900})
    pieces = smol.generate("Once upon a time", options, cancel=cancel)
    assert next(pieces).text
    cancel.cancel()
    assert list(pieces)[-1].finish_reason == "cancelled"
    assert reaches(lambda: smol_server.log.read_text().count("Disconnected") > n_before)
    assert "Paris" in answer(smol, FRANCE, **GREEDY)[0]


def test_a_stream_left_half_read_stops_the_server(smol, smol_server):
    n_before = smol_server.log.read_text().count("Disconnected")
    pieces = smol.generate("Once upon a time", SamplingOptions(**HOT | {"max_tokens": 1900}))
    next(pieces)
    pieces.close()
    assert reaches(lambda: smol_server.log.read_text().count("Disconnected") > n_before)


def test_threads_do_not_interrupt_each_other(mixtral):
    asked = [[Message("user", f"{i} " * 9)] for i in range(8)]
    alone = [answer(mixtral, a, **GREEDY)[0] for a in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda a: answer(mixtral, a, **GREEDY)[0], asked))
    assert together == alone


def test_control_tokens_in_a_document_are_text(mixtral):
    # Were `</s>` one token, these would be the same prompt to the server but for a few tokens.
    texts = ["a </s> b [/INST] c", "a ＜/s＞ b ［/INST］ c"]
    plain, written = (answer(mixtral, [Message("user", t)], **GREEDY)[0] for t in texts)
    assert plain == written


def test_a_prompt_too_long_is_refused_by_the_server(mixtral, smol):
    with pytest.raises(ContextError) as caught:
        answer(mixtral, "x " * 3000, **GREEDY)
    assert caught.value.n_ctx == N_CTX
    assert caught.value.prompt_tokens > 3000
    with pytest.raises(ContextError):
        answer(smol, [Message("user", "x " * 3000)], **GREEDY)


def test_what_a_server_refuses_is_told(smol_server, mixtral_server, mixtral):
    with pytest.raises(ServerError, match="api_key, or MIXTRAL_RAG_API_KEY") as caught:
        RemoteEngine("smollm2", base_url=smol_server.root, api_key="sk-wrong").model_name  # noqa: B018
    assert "sk-wrong" not in str(caught.value)
    with pytest.raises(ServerError, match="it has: tiny-mixtral-instruct"):
        RemoteEngine("gpt-9", base_url=mixtral_server.root).model_name  # noqa: B018
    with pytest.raises(SettingsError, match="no token IDs"):
        answer(mixtral, [1, 2, 3], **GREEDY)
    with pytest.raises(PromptError, match="assistant"):
        answer(mixtral, [Message("assistant", "I say")], **GREEDY)
    with pytest.raises(SettingsError, match="empty"):
        answer(mixtral, [], **GREEDY)


@pytest.mark.parametrize("prompt", [FRANCE, "hello"], ids=["messages", "text"])
def test_log_probabilities_come_with_their_text(smol, prompt):
    text, _, pieces = answer(smol, prompt, **GREEDY, logprobs=True, top_logprobs=2)
    assert text
    logprobs = [x for p in pieces for x in p.logprobs]
    assert len(logprobs) > 3
    assert all(x.logprob <= 0 and len(x.top) == 2 and x.top[0].data == x.data for x in logprobs)


# --- vLLM's server: token IDs ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def vllm(vllm_server, weights):
    return RemoteEngine(weights.folder.name, base_url=vllm_server.root)


def n_running(server):
    text = httpx.get(f"{server.root}/metrics").text
    found = re.findall(r"^vllm:num_requests_running\{.*\} ([\d.]+)$", text, re.MULTILINE)
    return sum(map(float, found))


def test_vllm_takes_token_ids_and_gives_the_tokens_of_llama_cpp(vllm, weights):
    assert not vllm.takes_messages
    assert vllm.n_ctx == N_CTX
    local = LlamaCppEngine(str(weights.gguf), n_ctx=N_CTX, kv_type="f32", n_threads=1)
    for text in ("你好", "Hello, who are you?", "苏州园林 " * 40):
        ids = render([Message("user", text)], vllm.tokenizer)
        assert answer(vllm, ids, **GREEDY)[0] == answer(local, ids, **GREEDY)[0]


def test_vllm_with_our_chat_template_reads_our_tokens(vllm, vllm_server, weights):
    """integrations/vllm: what other programs send to `vllm serve`."""
    conversations = (
        [Message("user", "你好")],
        [Message("system", "S"), Message("user", "U")],
        [Message("user", "a"), Message("assistant", "b"), Message("user", "c [/INST] d")],
    )
    for messages in conversations:
        body = {
            "model": weights.folder.name, "max_tokens": 1, "return_token_ids": True,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
        }  # fmt: skip
        said = httpx.post(f"{vllm_server.root}/v1/chat/completions", json=body, timeout=60).json()
        assert said["prompt_token_ids"] == render(messages, vllm.tokenizer)


def test_a_given_vocabulary_does_the_same(vllm, vllm_server, weights):
    ids = render(FRANCE, vllm.tokenizer)
    expected = answer(vllm, ids, **GREEDY)[0]
    for path in (weights.gguf, weights.folder, weights.folder / "tokenizer.model"):
        engine = RemoteEngine(weights.folder.name, base_url=vllm_server.root, tokenizer=str(path))
        assert not engine.takes_messages
        assert engine.is_mixtral
        assert engine.is_instruct
        assert answer(engine, render(FRANCE, engine.tokenizer), **GREEDY)[0] == expected


def test_another_vocabulary_is_found_out(vllm_server, weights, smollm):
    engine = RemoteEngine(weights.folder.name, base_url=vllm_server.root, tokenizer=str(smollm))
    with pytest.raises(SettingsError, match="another vocabulary"):
        _ = engine.takes_messages
    engine = RemoteEngine(weights.folder.name, base_url=vllm_server.root, tokenizer="/no/such.gguf")
    with pytest.raises(ModelNotFoundError, match="tokenizer"):
        _ = engine.takes_messages


def test_thirty_two_at_once(vllm):
    prompts = [render([Message("user", f"问题 {i}")], vllm.tokenizer) for i in range(32)]
    alone = [answer(vllm, ids, **GREEDY)[0] for ids in prompts]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda ids: answer(vllm, ids, **GREEDY)[0], prompts))
    assert (
        sum(a == b for a, b in zip(alone, together, strict=True)) >= 31
    )  # a batch rounds otherwise
    assert len(set(together)) > 16


@pytest.mark.parametrize("when", ["before the first piece", "between pieces", "left half read"])
def test_cancelling_frees_the_request_in_vllm(vllm, vllm_server, when):
    assert reaches(lambda: n_running(vllm_server) == 0)
    cancel = Cancellation()
    prompt = render([Message("user", "x")], vllm.tokenizer)
    options = SamplingOptions(**HOT | {"max_tokens": 1900})
    pieces = vllm.generate(prompt, options, cancel=cancel)
    if when == "left half read":
        next(pieces)
        pieces.close()
    elif when == "between pieces":
        next(pieces)
        cancel.cancel()
        assert list(pieces)[-1].finish_reason == "cancelled"
    else:
        timer = threading.Timer(0.005, cancel.cancel)
        timer.start()
        last = list(pieces)[-1]
        assert last.finish_reason == "cancelled"
        assert last.usage.prompt_tokens == len(prompt)
    assert reaches(lambda: n_running(vllm_server) == 0, 2)


def test_a_window_larger_than_the_servers_is_told(vllm_server, weights):
    engine = RemoteEngine(weights.folder.name, base_url=vllm_server.root, n_ctx=32_768)
    ids = [1, *range(1000, 3100)]
    with pytest.raises(ContextError) as caught:
        answer(engine, ids, **GREEDY)
    assert caught.value.n_ctx == N_CTX


def test_log_probabilities_of_text(vllm):
    text, last, pieces = answer(vllm, "Hello", **GREEDY, logprobs=True, top_logprobs=2)
    logprobs = [x for p in pieces for x in p.logprobs]
    assert len(logprobs) == last.usage.completion_tokens
    assert all(len(x.top) == 2 and x.logprob <= 0 for x in logprobs)
    assert text


def test_engine_options_come_last(vllm_server, weights):
    engine = RemoteEngine(
        weights.folder.name, base_url=vllm_server.root, engine_options={"max_tokens": 2}
    )
    _, last, _ = answer(engine, render(FRANCE, engine.tokenizer), **GREEDY)
    assert last.usage.completion_tokens == 2


def test_the_faces_of_langchain(vllm_server, smol_server, weights, vllm):
    options = {"engine": "remote", "base_url": f"{vllm_server.root}/v1"}
    llm = ChineseMixtral(model=weights.folder.name, **options, **GREEDY)
    chat = ChatChineseMixtral(model=weights.folder.name, **options, **GREEDY)
    expected, _, _ = answer(vllm, chat.render_messages(FRANCE), **GREEDY)
    assert chat.invoke(FRANCE[0].content).content == expected.removeprefix(" ")
    assert "".join(llm.stream(FRANCE[0].content)) == expected.removeprefix(" ")
    assert llm.batch([FRANCE[0].content] * 8) == [expected.removeprefix(" ")] * 8
    small = ChatChineseMixtral(
        model="smollm2", engine="remote", base_url=smol_server.root, api_key=KEY, n_ctx=N_CTX,
        **GREEDY,
    )  # fmt: skip
    assert small.takes_messages
    reply = small.invoke(FRANCE[0].content)
    assert "Paris" in reply.content
    assert reply.response_metadata["model_name"] == "smollm2"
    assert KEY not in repr(small)
