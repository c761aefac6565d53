"""The engine remote over a small server on this machine that misbehaves, or speaks as others do.

What llama-server, Ollama and LM Studio are sent follows their documentation; they are not run here.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from model_servers import LOCAL_HTTP

from mixtral_rag.engines import Cancellation
from mixtral_rag.engines.remote import RemoteEngine
from mixtral_rag.errors import ContextError, GenerationError, ServerError, SettingsError
from mixtral_rag.types import Message, SamplingOptions

pytestmark = LOCAL_HTTP

KEY = "sk-very-secret-key"
ASK = [Message("user", "hello")]
MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "someone"}]}


def event(text=None, reason=None, **more):
    choice = {"index": 0, "delta": {} if text is None else {"content": text}}
    return {"choices": [choice | {"finish_reason": reason}], **more}


GOOD = [event("Hel"), event("lo"), event(reason="stop")]


class Peer:
    """A server whose answers to POST are taken from `answers`, the last again and again.

    An answer is a function of the handler. GET finds what is in `pages`. `requests` holds
    (method, path, headers, body) of all that came.
    """

    def __init__(self):
        self.pages, self.answers, self.requests = {"/v1/models": MODELS}, [], []
        self.gone = threading.Event()  # a client has closed the connection it waited on
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.note(None)
                page = peer.pages.get(self.path)
                if callable(page):
                    page(self)
                else:
                    self.json(404 if page is None else 200, page or {"error": "no such page"})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.note(body)
                answer = peer.answers.pop(0) if len(peer.answers) > 1 else peer.answers[0]
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    answer(self)

            def note(self, body):
                peer.requests.append((self.command, self.path, dict(self.headers), body))

            def json(self, status, value, headers=()):
                self.whole(status, json.dumps(value).encode(), dict(headers))

            def whole(self, status, data, headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def begin(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream; charset=utf-8")
                self.send_header("Connection", "close")
                self.end_headers()

            def events(self, *events):
                for e in events:
                    self.wfile.write(b"data: " + json.dumps(e).encode() + b"\n\n")

            def wait_until_gone(self):
                self.connection.settimeout(20)
                with contextlib.suppress(OSError):
                    if not self.connection.recv(1):
                        peer.gone.set()
                self.close_connection = True

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def posts(self):
        return [r for r in self.requests if r[0] == "POST"]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def good(handler):
    handler.begin()
    handler.events(*GOOD)
    handler.wfile.write(b"data: [DONE]\n\n")


def stream(*events, tail=b""):
    def answer(handler):
        handler.begin()
        handler.events(*events)
        handler.wfile.write(tail)

    return answer


def status(code, value, **headers):
    return lambda h: h.json(code, value, {k.replace("_", "-"): v for k, v in headers.items()})


def drop(handler):
    """Close the connection without a word."""
    handler.close_connection = True
    handler.connection.shutdown(2)


@pytest.fixture
def peer():
    peer = Peer()
    peer.answers = [good]
    yield peer
    peer.close()


def engine(peer, model="m", **options):
    return RemoteEngine(model, base_url=peer.url, **options)


def answer(engine, prompt=ASK, *, cancel=None, **options):
    pieces = list(engine.generate(prompt, SamplingOptions(**options), cancel=cancel))
    return "".join(p.text for p in pieces), pieces[-1]


# --- retries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [status(c, {"error": {"message": "busy"}}) for c in (408, 409, 425, 429, 502, 503, 504)]
    + [drop],
)
def test_trouble_before_the_answer_is_tried_again(peer, trouble):
    peer.answers = [trouble, trouble, good]
    assert answer(engine(peer))[0] == "Hello"
    assert len(peer.posts) == 3


def test_retries_have_an_end(peer):
    peer.answers = [status(503, {"error": {"message": "too busy"}})]
    with pytest.raises(ServerError, match="503: too busy"):
        answer(engine(peer, max_retries=1))
    assert len(peer.posts) == 2
    with pytest.raises(ServerError):
        answer(engine(peer, max_retries=0))
    assert len(peer.posts) == 3


def test_the_pause_a_server_asks_for_is_kept(peer):
    peer.answers = [status(429, {"error": "slow down"}, Retry_After="2"), good]
    started = time.monotonic()
    assert answer(engine(peer))[0] == "Hello"
    assert time.monotonic() - started >= 2


@pytest.mark.parametrize("code", [400, 401, 404, 422, 500])
def test_what_would_fail_again_is_not_tried_again(peer, code):
    peer.answers = [status(code, {"error": {"message": "never"}})]
    with pytest.raises(ServerError, match="never"):
        answer(engine(peer))
    assert len(peer.posts) == 1


def test_nothing_is_tried_again_once_text_has_come(peer):
    peer.answers = [stream(event("Hel")), good]
    with pytest.raises(GenerationError, match="broke off"):
        answer(engine(peer))
    assert len(peer.posts) == 1


# --- answers that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (b"", "broke off"),
        (b"data: [DONE]\n\n", "broke off"),  # llama-cpp-python, when another request comes
        (b'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        (b'error: {"code": 500, "message": "slot failed"}\n\n', "slot failed"),
        (b'data: {"object": "error", "message": "died", "code": 500}\n\n', "died"),
        (b"data: {nonsense\n\n", "no JSON"),
        (b'data: ["list"]\n\n', "no JSON object"),
        (b'data: {"choices": [{"delta": 5}]}\n\n', "another form"),
        (b'data: {"choices": [{"finish_reason": "abort"}]}\n\n', "abort"),
    ],
)
def test_half_an_answer_is_never_taken_for_a_whole_one(peer, tail, said):
    peer.answers = [stream(event("Hel"), event("lo"), tail=tail)]
    pieces = []
    with pytest.raises(GenerationError, match=said):
        pieces.extend(engine(peer).generate(ASK, SamplingOptions()))


def test_a_torn_connection_is_told(peer):
    def torn(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.events(event("Hel"))
        drop(handler)

    peer.answers = [torn]
    with pytest.raises(GenerationError, match="broke off"):
        answer(engine(peer))


def test_the_end_of_an_answer_needs_no_done(peer):
    peer.answers = [stream(*GOOD)]
    text, last = answer(engine(peer))
    assert (text, last.finish_reason) == ("Hello", "stop")


def test_events_in_other_shapes_are_read(peer):
    def odd(handler):
        handler.begin()
        text = json.dumps(event("一行\u2028又\x85一行"), ensure_ascii=False).encode()
        data = b": ping\r\n\r\nevent: message\r\ndata:" + text + b"\r\n\r\n"
        for i in range(len(data)):  # in pieces that cut characters
            handler.wfile.write(data[i : i + 1])
        handler.events({"choices": []}, event("", "length"), {"choices": [], "usage": {
            "prompt_tokens": 7, "completion_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 3}}})  # fmt: skip

    peer.answers = [odd]
    text, last = answer(engine(peer))
    assert text == "一行\u2028又\x85一行"
    assert last.finish_reason == "length"
    usage = last.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (7, 9, 3)


def test_a_server_that_does_not_stream_is_read(peer):
    message = {"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}
    peer.answers = [status(200, {"choices": [message]}, Content_Type="application/json")]
    assert answer(engine(peer))[0] == "Hello"


def test_a_stop_text_holds_whatever_the_server_does(peer):
    peer.answers = [stream(event("one tw"), event("o three"), event(reason="length"))]
    text, last = answer(engine(peer), stop=["two", *"abcd"])
    assert (text, last.finish_reason) == ("one ", "stop")
    assert len(peer.posts[0][3]["stop"]) == 4


# --- errors in words ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "value", "numbers"),
    [
        (400, {"error": {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9000,
               "message": "the request exceeds the available context size", "n_ctx": 4096}},
         (9000, 4096)),
        (400, {"error": {"message": "request (9000 tokens) exceeds the available context size "
                                    "(4096 tokens), try increasing it"}}, (9000, 4096)),
        (400, {"message": "This model's maximum context length is 4096 tokens. However, you "
                          "requested 9512 tokens (9000 in the messages, 512 in the completion)."},
         (9000, 4096)),
        (400, {"error": {"message": "You passed 9000 input tokens and requested 512 output tokens."
                                    " However, the model's context length is only 4096 tokens"}},
         None),
        (500, {"error": {"message": "Requested tokens (9000) exceed context window of 4096"}},
         (9000, 4096)),
    ],
)  # fmt: skip
def test_a_prompt_that_does_not_fit_is_told(peer, code, value, numbers):
    peer.answers = [status(code, value)]
    with pytest.raises((ContextError, GenerationError), match="context") as caught:
        answer(engine(peer))
    if numbers:
        assert (caught.value.prompt_tokens, caught.value.n_ctx) == numbers


def test_a_web_page_is_no_api(peer):
    page = b"<html><body>Welcome</body></html>"
    peer.pages["/v1/models"] = lambda h: h.whole(200, page, {"Content-Type": "text/html"})
    peer.answers = [lambda h: h.whole(200, page, {"Content-Type": "text/html"})]
    with pytest.raises(ServerError, match=r"web page.*base_url"):
        answer(engine(peer))


def test_nothing_there_is_told(peer):
    peer.close()
    with pytest.raises(ServerError, match=r"nothing answers at .*start the server or set"):
        answer(engine(peer, max_retries=0))


def test_a_wrong_scheme_is_told(peer):
    url = peer.url.replace("http:", "https:")
    with pytest.raises(ServerError, match=r"secure connection|https"):
        answer(RemoteEngine("m", base_url=url, max_retries=0))


def test_a_silent_server_ends_in_an_error(peer):
    peer.answers = [lambda h: h.wait_until_gone()]
    with pytest.raises(ServerError, match=r"said nothing for 0.5 seconds"):
        answer(engine(peer, timeout=0.5))
    assert len(peer.posts) == 1

    def falls_silent(handler):
        handler.begin()
        handler.events(event("Hel"))
        handler.wait_until_gone()

    peer.answers = [falls_silent]
    with pytest.raises(GenerationError, match="said nothing"):
        answer(engine(peer, timeout=0.5))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": None}, "needs base_url.*http://127.0.0.1:8000/v1"),
        ({"base_url": "127.0.0.1:8000"}, "http or https"),
        ({"base_url": "ftp://x/v1"}, "http or https"),
        ({"base_url": "http://me:secret@x/v1"}, "api_key"),
        ({"base_url": "http://x", "api_key": "two words"}, "api_key"),
        ({"base_url": "http://x", "timeout": 0}, "timeout"),
        ({"base_url": "http://x", "max_retries": -1}, "max_retries"),
        ({"base_url": "http://x", "n_ctx": 0}, "n_ctx"),
        ({"base_url": "http://x", "engine_options": {"a": {1}}}, "engine_options"),
    ],
)
def test_wrong_options_are_refused_at_once(options, said):
    with pytest.raises(SettingsError, match=said) as caught:
        RemoteEngine("m", **options)
    assert "secret" not in str(caught.value)


# --- the key --------------------------------------------------------------------------------------


def test_the_key_is_sent_and_never_told(peer, caplog):
    caplog.set_level(logging.DEBUG)
    remote = engine(peer, api_key=KEY, max_retries=1)
    peer.answers = [status(503, {"error": "busy"}), good]
    answer(remote)
    assert all(r[2]["Authorization"] == f"Bearer {KEY}" for r in peer.requests)
    for code in (401, 403, 404, 400, 500):
        peer.answers = [status(code, {"error": {"message": f"the key {KEY} is not one"}})]
        with pytest.raises(ServerError) as caught:
            answer(remote)
        seen, error = "", caught.value
        while error is not None:
            seen, error = seen + str(error), error.__cause__ or error.__context__
        assert KEY not in seen
    assert KEY not in caplog.text
    assert KEY not in repr(remote)


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirection_gets_neither_key_nor_prompt(peer, code):
    other = Peer()
    other.answers = [good]
    place = f"http://localhost:{other.server.server_port}/v1/chat/completions?key=x"
    peer.answers = [status(code, {}, Location=place)]
    with pytest.raises(ServerError, match="redirects to http://localhost") as caught:
        answer(engine(peer, api_key=KEY))
    assert "key=x" not in str(caught.value)
    assert not other.requests
    other.close()


def test_a_proxy_is_not_asked_for_this_machine(peer, monkeypatch):
    proxy = Peer()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    assert answer(engine(peer, api_key=KEY))[0] == "Hello"
    assert not proxy.requests
    proxy.close()


# --- cancelling -----------------------------------------------------------------------------------


def slow_headers(handler):
    handler.wait_until_gone()


def slow_pieces(handler):
    handler.begin()
    handler.events(event("Hel"))
    handler.wait_until_gone()


@pytest.mark.parametrize("slow", [slow_headers, slow_pieces])
def test_cancelling_closes_the_connection(peer, slow):
    peer.answers = [slow]
    cancel = Cancellation()
    threading.Timer(0.5, cancel.cancel).start()
    started = time.monotonic()
    text, last = answer(engine(peer), cancel=cancel)
    assert last.finish_reason == "cancelled"
    assert time.monotonic() - started < 10
    assert text in ("", "Hel")
    assert peer.gone.wait(10)


def test_cancelling_ends_a_pause_between_retries(peer):
    peer.answers = [status(429, {"error": "later"}, Retry_After="50")]
    cancel = Cancellation()
    threading.Timer(0.5, cancel.cancel).start()
    started = time.monotonic()
    assert answer(engine(peer), cancel=cancel)[1].finish_reason == "cancelled"
    assert time.monotonic() - started < 20


def test_cancelling_ends_the_first_look_at_a_server(peer):
    peer.pages["/v1/models"] = slow_headers
    cancel = Cancellation()
    threading.Timer(0.5, cancel.cancel).start()
    started = time.monotonic()
    assert answer(engine(peer), cancel=cancel)[1].finish_reason == "cancelled"
    assert time.monotonic() - started < 10
    assert peer.gone.wait(10)
    peer.pages["/v1/models"] = MODELS
    remote = engine(peer)
    assert answer(remote)[0] == "Hello"


SCRIPT = """
import sys
from mixtral_rag.engines.remote import RemoteEngine
from mixtral_rag.types import Message, SamplingOptions
engine = RemoteEngine("m", base_url=sys.argv[1])
pieces = engine.generate([Message("user", "x")], SamplingOptions())
{}
"""


def test_ctrl_c_while_waiting_ends_at_once(peer):
    peer.answers = [slow_pieces]
    code = SCRIPT.format("print(next(pieces), flush=True)\nlist(pieces)")
    child = subprocess.Popen(
        [sys.executable, "-c", code, peer.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert b"Hel" in child.stdout.readline()
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    assert b"KeyboardInterrupt" in errors
    assert peer.gone.wait(10)


def test_a_half_read_answer_does_not_keep_the_interpreter(peer):
    peer.answers = [slow_pieces]
    code = SCRIPT.format("print(next(pieces), flush=True)")
    done = subprocess.run(
        [sys.executable, "-c", code, peer.url], capture_output=True, timeout=30, check=True
    )
    assert b"Hel" in done.stdout
    assert done.stderr == b""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_an_engine_works_on_after_a_fork(peer):
    code = SCRIPT.format(
        "import os\n"
        "print(''.join(p.text for p in pieces), flush=True)\n"
        "pid = os.fork()\n"
        "pieces = engine.generate([Message('user', 'x')], SamplingOptions())\n"
        "print(''.join(p.text for p in pieces), flush=True)\n"
        "if pid: os.waitpid(pid, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, peer.url], capture_output=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == [b"Hello"] * 3


# --- other servers, as their documentation has them -----------------------------------------------


def entry(owner, **more):
    return {"data": [{"id": "mixtral", "owned_by": owner, **more}]}


def test_llama_server_takes_token_ids_and_its_own_options(peer):
    peer.pages = {
        "/v1/models": entry("llamacpp", meta={"n_ctx_train": 32_768}),
        "/props": {"default_generation_settings": {"n_ctx": 8192}},
    }
    usage = {"prompt_tokens": 8, "completion_tokens": 1}
    probe = {"choices": [{"text": "x", "finish_reason": "length"}], "usage": usage}
    made = {"choices": [{"index": 0, "text": " hi", "finish_reason": "stop", "logprobs": {
        "content": [{"id": 1, "token": " hi", "bytes": [32, 104, 105], "logprob": -0.5,
                     "top_logprobs": [{"token": " hi", "bytes": [32, 104, 105],
                                       "logprob": -0.5}]}]}}]}  # fmt: skip
    remote = engine(peer, "mixtral")
    n_sample = len(remote.tokenizer.encode("Hello, 世界")) + 1
    probe["usage"]["prompt_tokens"] = n_sample
    peer.answers = [status(404, {}), status(200, probe), stream(made)]
    assert not remote.takes_messages
    assert remote.n_ctx == 8192
    pieces = list(
        remote.generate(
            [1, 733, 16289],
            SamplingOptions(json_schema='{"type": "null"}', logprobs=True, seed=4, max_tokens=7),
        )
    )
    body = peer.posts[-1][3]
    assert body["prompt"] == [1, 733, 16289]
    assert {"top_k": 40, "min_p": 0.0, "repeat_penalty": 1.1, "repeat_last_n": 64, "seed": 4,
            "json_schema": {"type": "null"}, "max_tokens": 7, "logprobs": 1,
            }.items() <= body.items()  # fmt: skip
    assert pieces[0].logprobs[0].data == b" hi"
    assert pieces[0].logprobs[0].top == ()


def test_a_server_that_counts_token_ids_otherwise_gets_messages(peer):
    peer.pages["/v1/models"] = entry("user")
    probe = {"choices": [{"text": "x"}], "usage": {"prompt_tokens": 40}}
    peer.answers = [status(200, probe)]
    assert engine(peer, "mixtral").takes_messages


def test_a_busy_server_is_not_taken_for_one_without_token_ids(peer):
    peer.pages["/v1/models"] = entry("user")
    peer.answers = [status(503, {"error": "loading"})]
    remote = engine(peer, "mixtral", max_retries=0)
    with pytest.raises(ServerError, match="503"):
        _ = remote.takes_messages


def test_a_pattern_goes_to_vllm_and_is_refused_elsewhere(peer):
    assert not engine(peer).takes_pattern
    with pytest.raises(SettingsError, match="vLLM"):
        answer(engine(peer), pattern="a+")
    peer.pages["/v1/models"] = {"data": [{"id": "m", "owned_by": "vllm"}]}
    remote = engine(peer)
    assert remote.takes_pattern
    answer(remote, pattern="a+")
    assert peer.posts[-1][3]["structured_outputs"] == {"regex": "a+"}


def test_an_unknown_server_gets_standard_fields_alone(peer):
    schema = '{"type": "object"}'
    options = {"json_schema": schema, "stop": ["x"], "seed": 1, "logprobs": True}
    answer(engine(peer), **options)
    body = peer.posts[0][3]
    assert set(body) == {
        "model", "messages", "stream", "stream_options", "temperature", "top_p", "max_tokens",
        "stop", "seed", "response_format", "logprobs", "top_logprobs",
    }  # fmt: skip
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_ollama_does_not_pass_for_a_large_window(peer):
    peer.pages = {"/v1/models": {"data": [{"id": "mixtral:latest", "owned_by": "library"}]},
                  "/api/version": {"version": "0.9.0"}, "/api/ps": {"models": []}}  # fmt: skip
    remote = engine(peer, "mixtral")
    assert remote.takes_messages
    assert remote.model_name == "mixtral:latest"
    with pytest.raises(SettingsError, match="set n_ctx"):
        _ = remote.n_ctx
    peer.pages["/api/ps"] = {"models": [{"name": "mixtral:latest", "context_length": 4096}]}
    assert engine(peer, "mixtral").n_ctx == 4096


def test_lm_studio_is_known_by_its_own_list(peer):
    peer.pages["/api/v0/models"] = {"data": [{"id": "m", "loaded_context_length": 6000}]}
    remote = engine(peer)
    assert remote.n_ctx == 6000
    answer(remote)
    body = peer.posts[0][3]
    assert (body["top_k"], body["repeat_penalty"]) == (40, 1.1)
    assert "min_p" not in body


def test_a_server_without_a_list_of_models_is_used(peer):
    peer.pages = {}
    remote = engine(peer, "some-model")
    assert answer(remote)[0] == "Hello"
    assert remote.model_name == "some-model"
    assert peer.posts[0][3]["model"] == "some-model"


def test_a_conversation_of_a_mixtral_has_no_system_turn(peer):
    told = [Message("system", "S"), Message("user", "a [/INST] </s>"), Message("user", "b")]
    answer(engine(peer, "m", n_ctx=2000), told)
    assert [m["role"] for m in peer.posts[0][3]["messages"]] == ["system", "user"]
    peer.pages["/v1/models"] = entry("user")
    answer(engine(peer, "mixtral"), told)
    messages = peer.posts[-1][3]["messages"]
    assert [m["role"] for m in messages] == ["user"]
    assert messages[0]["content"] == "S\n\na ［/INST］ ＜/s＞\n\nb"


def test_making_an_engine_asks_nothing(peer):
    engine(peer, api_key=KEY)
    assert not peer.requests
