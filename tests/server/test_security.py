"""Attacks on the server: each is a request somebody could send."""

import contextlib
import hashlib
import http.client
import json
import logging
import re
import shutil
import socket
import stat
from importlib.resources import files

import pytest
from model_servers import LOCAL_HTTP
from served import running, wait

from mixtral_rag.engines import Cancellation
from mixtral_rag.errors import ModelFileError, SettingsError
from mixtral_rag.server.app import create_app
from mixtral_rag.server.failures import RefusedError
from mixtral_rag.server.keys import Keys
from mixtral_rag.server.options import ServerOptions
from mixtral_rag.server.security import COOKIE
from mixtral_rag.server.service import Service
from mixtral_rag.settings import Settings
from mixtral_rag.weights.library import PulledModel, write_manifest

pytestmark = LOCAL_HTTP
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
CANARY = "canary-7f3a-do-not-log"


@pytest.fixture(scope="module")
def locked(tmp_path_factory, smollm):
    """A server with keys."""
    with running(tmp_path_factory.mktemp("locked"), smollm, keys=("ann", "bob")) as one:
        yield one


def routes(app):
    for route in app.routes:
        for method in sorted(getattr(route, "methods", None) or ()):
            yield method, route.path


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil", "", "a b", "localhost@evil"])
def test_a_foreign_name_is_refused(server, host):
    """DNS rebinding: a page of evil.example whose name now leads to this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.putrequest("GET", "/api/collections", skip_host=True)
    connection.putheader("Host", f"{host}:{server.port}")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status in (400, 421)
    assert b"collections" not in answer.read()


def test_two_hosts_are_refused(server):
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"GET /api/info HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert raw.recv(100).split()[1] in (b"400", b"421")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST."])
def test_our_own_names_are_served(client, server, host):
    answer = client.get("/api/info", headers={"host": f"{host}:{server.port}"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "file://"]
)
def test_a_page_of_another_host_may_not_call(client, origin):
    answer = client.post("/v1/chat/completions", json=CHAT, headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_foreign_page_may_not_even_load_a_picture(client):
    answer = client.get("/api/collections", headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403


def test_our_own_page_may(client, server):
    answer = client.post("/v1/chat/completions", json=CHAT, headers={"origin": server.url})
    assert answer.status_code == 200


def test_pages_that_were_named_may_call(tmp_path, smollm):
    origin = "https://chat.example.com"
    options = {"keys": ("web",), "cors_origins": (origin,), "preload": False}
    with running(tmp_path, smollm, **options) as one, one.client() as client:
        asked = client.options("/v1/models", headers={
            "origin": origin, "access-control-request-method": "GET",
            "access-control-request-headers": "authorization"})  # fmt: skip
        assert asked.headers["access-control-allow-origin"] == origin
        key = {"authorization": f"Bearer {one.made['web']}"}
        answer = client.get("/v1/models", headers={"origin": origin} | key)
        assert answer.headers["access-control-allow-origin"] == origin
        refused = client.get("/v1/models", headers={"origin": "https://b.example"} | key)
        assert refused.status_code == 403


def test_the_key_guards_every_route_but_health(locked):
    with locked.client() as client:
        for method, path in routes(locked.app):
            for inner in ("{collection}", "{key}", "{name}", "{number}", "{name:path}"):
                path = path.replace(inner, "1")
            answer = client.request(method, path)
            wanted = (200, 503) if path in ("/healthz", "/readyz") else (401,)
            assert answer.status_code in wanted, (method, path, answer.status_code)


@pytest.mark.parametrize("key", ["wrong", "mrag-", "ключ", "a" * 10_000])
def test_a_wrong_key_is_refused(locked, key):
    with locked.client() as client:
        answer = client.get("/v1/models", headers={"authorization": f"Bearer {key}".encode()})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"


def test_the_right_key_opens_until_it_is_removed(tmp_path, smollm):
    with running(tmp_path, smollm, keys=("ann", "bob")) as one, one.client() as client:
        for header in ({"authorization": f"Bearer {one.made['ann']}"},
                       {"authorization": f"bearer {one.made['bob']}"},
                       {"x-api-key": one.made["bob"]}):  # fmt: skip
            assert client.get("/v1/models", headers=header).status_code == 200
        Keys(tmp_path / "keys.json").remove("ann")  # as another process does
        header = {"authorization": f"Bearer {one.made['ann']}"}
        assert client.get("/v1/models", headers=header).status_code == 401


def test_keys_are_kept_as_hashes_and_privately(tmp_path):
    path = tmp_path / "keys" / "keys.json"
    keys = Keys(path)
    key = keys.add("ann")
    assert len(key) > 40
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.find(key).name == Keys(path).find(key).name == "ann"
    with pytest.raises(SettingsError, match="there is a key named"):
        keys.add("ann")
    with pytest.raises(SettingsError, match="no key named"):
        keys.remove("bob")
    path.write_text("{")
    with pytest.raises(SettingsError, match="not a list of keys"):
        Keys(path).all()


def test_a_browser_shows_the_key_once(locked):
    with locked.client() as client:
        form = client.get("/")
        assert form.status_code == 401
        assert "<form" in form.text
        assert client.post("/login", data={"key": "wrong"}).status_code == 401
        done = client.post("/login", data={"key": locked.made["ann"]})
        assert done.status_code == 303
        cookie = done.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert locked.made["ann"] not in cookie
        assert 'id="ask"' in client.get("/").text
        assert client.get("/api/info").json()["has_key"] is True
        client.post("/logout")
        client.cookies.set(COOKIE, cookie.split("=")[1].split(";")[0])
        assert client.get("/api/info").status_code == 401


def test_other_machines_need_a_key(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.5", "myhost"):
        with pytest.raises(SettingsError, match="keys add"):
            create_app(Settings(store=tmp_path), ServerOptions(host=host), Keys(tmp_path / "k"))
    ServerOptions(host="0.0.0.0", without_key=True).check_key(has_key=False)
    ServerOptions(host="0.0.0.0").check_key(has_key=True)


def test_headers_keep_the_page_to_itself(client):
    for path in ("/", "/web/app.js", "/v1/models", "/nothing", "/openapi.json"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["server"] == "mixtral-rag"


def test_the_page_names_no_other_host(client):
    names = [
        "/",
        *(f"/web/{n.name}" for n in files("mixtral_rag.server").joinpath("web").iterdir()),
    ]
    assert len(names) > 8
    for name in names:
        hosts = re.findall(r"(?:https?:)?//[a-z0-9.-]+", client.get(name).text)
        assert set(hosts) <= {"http://www.w3.org"}, name  # which names a format


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2fetc%2fpasswd.txt", "..%5c..%5cevil.txt", "%2e%2e%2fx.txt", "a%00b.txt",
     ".htaccess.txt", "C%3A%5Cx.txt", "x" * 5000 + ".txt", "年" * 500 + ".txt",
     "a%0d%0aX-Evil: 1.txt", "%ff%fe.txt", "CON.txt", "~root.txt", "%e2%80%aefdp.txt"],
)  # fmt: skip
def test_names_of_uploads_lead_nowhere(server, client, tmp_path, name):
    before = {p for p in server.service.settings.store.parent.rglob("*") if p.is_file()}
    answer = client.put(f"/api/collections/attack/files/{name}", content=b"harmless text")
    assert answer.status_code in (202, 404, 414, 400, 415, 422, 431), answer.text
    wait(lambda: all(j["state"] not in ("waiting", "running")
                     for j in client.get("/api/jobs").json()["jobs"]))  # fmt: skip
    made = {p for p in server.service.settings.store.parent.rglob("*") if p.is_file()} - before
    allowed = server.service.folder("attack", must_exist=False)
    assert all(allowed in p.parents for p in made), made
    if answer.status_code == 202:
        shown = answer.json()["name"]
        assert "/" not in shown
        assert "\\" not in shown
        assert shown.isprintable()
        assert len(shown.encode()) < 256


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "x" * 65, "-", "a b", "%00", "ä" * 70])
def test_names_of_collections_lead_nowhere(server, client, name):
    answer = client.put(f"/api/collections/{name}/files/a.txt", content=b"text")
    assert answer.status_code in (400, 404, 405)
    assert not (server.service.settings.store.parent / "x").exists()


@pytest.mark.parametrize("name", ["evil.exe", "evil", "x.pdf.exe", "lib.so", "a.pkl"])
def test_types_that_are_not_read_are_not_taken(client, name):
    answer = client.put(f"/api/collections/default/files/{name}", content=b"MZ")
    assert answer.status_code == 415
    assert "known are" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "line", ["PUT /api/collections/default/files/big.txt", "POST /v1/chat/completions"]
)
def test_a_body_is_counted_while_it_comes(tmp_path, smollm, line):
    """A chunked body has no length to look at."""
    with running(tmp_path, smollm, upload_bytes=100_000, body_bytes=10_000, preload=False) as one:
        head = f"{line} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        with socket.create_connection(("127.0.0.1", one.port)) as raw:
            raw.sendall(head.encode())
            raw.settimeout(0.05)
            answer, n_sent = b"", 0
            while not answer and n_sent < 5_000_000:
                raw.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
                n_sent += 10_000
                with contextlib.suppress(TimeoutError):
                    answer = raw.recv(1000)
        assert answer.split()[1] == b"413"
        assert n_sent < 1_000_000
        assert not [p for p in (tmp_path / "store" / "uploads").rglob("*") if p.is_file()]
        with one.client() as client:
            declared = client.post("/v1/embeddings", content=b"x" * 20_000)
            assert declared.status_code == 413


@pytest.mark.parametrize(
    "change",
    [{"n": 10**9}, {"n": 10**30}, {"max_tokens": 10**12}, {"messages": CHAT["messages"] * 5000},
     {"top_logprobs": 10**6}, {"stop": ["x"] * 100}, {"temperature": "NaN"}, {"seed": 10**40},
     {"tools": [{"type": "function", "function": {"name": "f"}}] * 1000}],
)  # fmt: skip
def test_numbers_that_would_take_all_are_refused(client, change):
    answer = client.post("/v1/chat/completions", json=CHAT | change)
    assert answer.status_code == 400, answer.text[:300]
    assert len(answer.text) < 2000


def test_json_that_nests_without_end_is_refused(client):
    deep = "[" * 100_000 + "]" * 100_000
    answer = client.post("/v1/chat/completions", content='{"messages": ' + deep + "}",
                         headers={"content-type": "application/json"})  # fmt: skip
    assert answer.status_code in (400, 422)


def test_html_of_documents_is_only_ever_text(server, client):
    text = f"# Notes\n\n<script>fetch('/x')</script><img src=x onerror=alert(1)> {CANARY} parrots"
    done = server.ingested(text, "evil.md", "html")
    found = client.post("/api/collections/html/search", json={"question": "parrots"})
    assert found.headers["content-type"] == "application/json"
    saved = client.get(f"/api/collections/html/documents/{done['document']}/original")
    assert saved.headers["content-type"] == "application/octet-stream"
    assert saved.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in saved.headers["content-security-policy"]


def test_logs_hold_neither_secrets_nor_words(locked, caplog):
    caplog.set_level(logging.DEBUG, "mixtral_rag")
    caplog.set_level(logging.DEBUG, "uvicorn")
    key = locked.made["ann"]
    header = {"authorization": f"Bearer {key}"}
    with locked.client(headers=header) as client:
        put = client.put(f"/api/collections/default/files/{CANARY}.md", content=f"# A\n\n{CANARY}")
        wait(lambda: client.get(f"/api/jobs/{put.json()['job']}").json()["state"] == "done")
        client.post("/api/collections/default/search", json={"question": CANARY})
        asked = {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 2}
        client.post("/v1/chat/completions", json=asked)
        client.post("/v1/chat/completions", json=asked | {"collection": "default"})
        client.post("/v1/chat/completions", json={"messages": CANARY})
        client.get(f"/api/collections/{CANARY}/documents")
        client.get("/v1/models", headers={"authorization": f"Bearer {CANARY}"})
    assert not logging.getLogger("uvicorn.access").propagate  # only pytest sees these
    names = ("mixtral_rag.server", "uvicorn.error")
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(names)]
    assert ours
    assert CANARY not in "\n".join(ours)
    assert key not in "\n".join(ours)


def test_a_fault_of_ours_is_logged_by_its_place_only(locked, caplog, monkeypatch):
    def broken(*_):
        raise RuntimeError(f"something with {CANARY}")

    monkeypatch.setattr(type(locked.service), "collections", broken)
    header = {"authorization": f"Bearer {locked.made['ann']}"}
    with locked.client(headers=header) as client:
        answer = client.get("/api/collections")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert CANARY not in answer.text
    assert "RuntimeError at" in caplog.text
    assert CANARY not in caplog.text


def test_the_data_is_private_to_its_user(server):
    store = server.service.settings.store
    assert stat.S_IMODE(store.stat().st_mode) == 0o700
    files = [p for p in (store / "uploads").rglob("*") if p.is_file()]
    assert files
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in files)


def test_a_planted_pickle_is_never_loaded(tmp_path, smollm):
    """What lies in the store is data: a pickle there would run as its reader loads it."""
    marker = tmp_path / "ran"
    evil = b"cposix\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    with running(tmp_path, smollm, preload=False) as one:
        one.ingested("# A\n\nThe lamp is green.", "a.md")
        for name in ("index_metadata.pickle", "cache.pkl", "writer.json", "server-keys.json"):
            (tmp_path / "store" / name).write_bytes(evil)
        for folder in (tmp_path / "store").iterdir():
            if folder.is_dir():
                (folder / "index_metadata.pickle").write_bytes(evil)
        with one.client() as client:
            found = client.post("/api/collections/default/search", json={"question": "lamp"})
            assert found.status_code == 200
        one.ingested("# B\n\nThe door is red.", "b.md")
    assert not marker.exists()


def test_a_model_that_is_not_whole_is_refused(tmp_path, smollm):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm.read_bytes()[:3_000_000])
    app = create_app(Settings(store=tmp_path / "s", model=str(cut)), ServerOptions(),
                     Keys(tmp_path / "k"))  # fmt: skip
    with pytest.raises(ModelFileError, match=r"truncated|shorter|bytes"):
        app.state.service.load(Cancellation())
    assert app.state.service.is_ready is False


def test_a_pulled_model_that_was_changed_is_not_served(tmp_path, smollm):
    """As `pull` left it, with the hub's checksum; and then somebody put another in its place."""
    place = tmp_path / "models" / "small" / "Q4_1"
    place.mkdir(parents=True)
    file = place / "small.gguf"
    shutil.copy(smollm, file)
    write_manifest(PulledModel(
        name="small", variant="Q4_1", folder=place, hub="hf", repo="a/b", revision="1",
        files={file.name: hashlib.sha256(file.read_bytes()).hexdigest()},
        n_bytes=file.stat().st_size, pulled_at=1.0,
    ))  # fmt: skip
    settings = Settings(store=tmp_path / "s", model="small", models=tmp_path / "models", n_ctx=512,
                        kv_bytes=0)  # fmt: skip
    Service(settings, ServerOptions()).load(Cancellation())
    with file.open("r+b") as changed:
        changed.seek(-1000, 2)
        changed.write(b"\0" * 500)
    service = Service(settings, ServerOptions())
    with pytest.raises(ModelFileError, match="not the file that was pulled"):
        service.load(Cancellation())
    assert not service.is_ready
    with pytest.raises(RefusedError, match="cannot be used"):
        service.chat  # noqa: B018


def test_removing_the_last_key_shuts_the_server(tmp_path, smollm):
    with running(tmp_path, smollm, keys=("ann",), preload=False) as one, one.client() as client:
        client.post("/login", data={"key": one.made["ann"]})
        assert client.get("/api/info").status_code == 200
        Keys(tmp_path / "keys.json").remove("ann")
        assert client.get("/api/info").status_code == 401  # the browser's session goes with its key
        assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize("body", ["a=1&" * 500, "key=" + "a" * 5000, "key=%ff%fe", ""])
def test_a_strange_login_is_refused(locked, body):
    with locked.client() as client:
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert client.post("/login", content=body, headers=form).status_code in (401, 413)


def test_cookies_of_other_programs_on_this_machine_do_not_matter(locked):
    with locked.client() as client:
        done = client.post("/login", data={"key": locked.made["ann"]})
        cookie = done.headers["set-cookie"].split(";")[0]
        client.cookies.clear()
        answer = client.get("/api/info", headers={"cookie": f'other={{"a": 1}}; {cookie}'})
        assert answer.status_code == 200


ODD_SCHEMAS = [
    "x", {"schema": {"type": 5}}, {"schema": {"allOf": 5}}, {"schema": {"$ref": "#/none"}},
    {"schema": {"enum": []}}, {"schema": 5}, 5, None,
]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        *({"response_format": {"type": "json_schema", "json_schema": s}} for s in ODD_SCHEMAS),
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"tools": [{"type": "function", "function": {"name": "\ud800"}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[" * 5000}}]}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
        {"stop": [5]}, {"seed": 1.5}, {"user": 5}, {"stream": "maybe"}, {"messages": {"a": 1}},
        {"messages": [0] * 100_000}, {"stream_options": 5},
    ],
)  # fmt: skip
def test_odd_json_is_refused_and_not_a_fault(client, change):
    for stream in (False, True):
        content = json.dumps(CHAT | {"stream": stream} | change)
        answer = client.post("/v1/chat/completions", content=content,
                             headers={"content-type": "application/json"})  # fmt: skip
        assert answer.status_code == 400, answer.text[:300]
        assert len(answer.text) < 1000


def test_nothing_is_fetched_for_a_client(client):
    content = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}]
    asked = {"messages": [{"role": "user", "content": content}]}
    assert client.post("/v1/chat/completions", json=asked).status_code == 400
    assert json.loads(client.get("/openapi.json").text)
