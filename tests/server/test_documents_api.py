"""Documents over HTTP: upload, ingest, list, search, ask, look up, delete."""

import json
import time
from pathlib import Path

import pytest
from documents import write_pdf
from model_servers import LOCAL_HTTP
from served import finished, running, wait

from mixtral_rag.errors import ModelNotFoundError
from mixtral_rag.qa import open_qa
from mixtral_rag.server import service

pytestmark = LOCAL_HTTP
ASKED = {"question": "How many litres of oil does the pump take?"}


def test_what_was_uploaded_is_listed_and_found(client):
    (pump,) = client.get("/api/collections/default/documents").json()["documents"]
    assert pump["name"] == "pump.md"
    assert pump["is_upload"]
    assert pump["n_passages"] > 0
    assert pump["failure"] is None
    found = client.post("/api/collections/default/search", json=ASKED).json()["passages"]
    assert "4.5 litres" in found[0]["text"]
    assert found[0]["document"] == pump["id"]
    names = [c["name"] for c in client.get("/api/collections").json()["collections"]]
    assert names[:1] == ["default"]
    assert "personnel" in names


def test_ask_answers_with_citations(client):
    answer = client.post("/api/collections/default/ask", json=ASKED).json()
    assert answer["found"]
    assert answer["text"]
    assert answer["citations"][0]["name"] == "pump.md"
    assert answer["usage"]["prompt_tokens"] > 50
    history = [{"role": "user", "content": ASKED["question"]},
               {"role": "assistant", "content": answer["text"]}]  # fmt: skip
    more = client.post("/api/collections/default/ask",
                       json={"question": "And how loud is it?", "history": history})  # fmt: skip
    assert more.status_code == 200
    odd = client.post("/api/collections/default/ask", json=ASKED | {"history": history[:1]})
    assert odd.status_code == 400


def test_a_passage_comes_with_its_neighbours(client):
    found = client.post("/api/collections/default/search", json=ASKED).json()["passages"][0]
    near = client.get(
        f"/api/collections/default/documents/{found['document']}/passages",
        params={"position": found["position"], "around": 1},
    ).json()["passages"]
    assert found["text"] in [p["text"] for p in near]
    assert [p["position"] for p in near] == sorted(p["position"] for p in near)


def test_a_new_version_takes_the_place_of_the_old(server, client):
    server.ingested("# Code\n\nThe door code is 1111.", "code.md", "versions")
    done = server.ingested("# Code\n\nThe door code is 2222.", "code.md", "versions")
    assert done["report"]["updated"] == ["code.md"]
    listed = client.get("/api/collections/versions/documents").json()["documents"]
    assert len(listed) == 1
    found = client.post("/api/collections/versions/search", json={"question": "door code"})
    text = " ".join(p["text"] for p in found.json()["passages"])
    assert "2222" in text
    assert "1111" not in text


def test_a_deleted_document_is_gone_with_its_file(server, client):
    done = server.ingested("# Bird\n\nThe heron stands in the reeds.", "bird.md", "gone")
    server.ingested("# Fish\n\nThe carp swims in the pond.", "fish.md", "gone")
    place = next((server.service.folder("gone") / "uploads").rglob("bird.md"))
    answer = client.delete(f"/api/collections/gone/documents/{done['document']}")
    assert answer.json() == {"deleted": "bird.md"}
    assert not place.exists()
    found = client.post("/api/collections/gone/search", json={"question": "heron"}).json()
    assert "heron" not in json.dumps(found)
    again = client.delete(f"/api/collections/gone/documents/{done['document']}")
    assert again.status_code == 404
    assert client.delete("/api/collections/gone").json() == {"deleted": "gone"}
    assert client.get("/api/collections/gone/documents").status_code == 404
    assert not server.service.folder("gone", must_exist=False).exists()
    assert client.delete("/api/collections/default").status_code == 400


def test_the_file_of_a_document_that_was_not_uploaded_stays(server, client, tmp_path):
    own = tmp_path / "own.md"
    own.write_text("# Own\n\nThe kettle is blue.")
    qa = open_qa(store=server.service.settings.store, collection="outside")
    qa.ingest([own])
    qa.close()
    (listed,) = client.get("/api/collections/outside/documents").json()["documents"]
    assert listed["is_upload"] is False
    client.delete(f"/api/collections/outside/documents/{listed['id']}")
    assert own.exists()


def test_a_file_that_cannot_be_read_says_why(server, client):
    put = client.put("/api/collections/broken/files/broken.pdf", content=b"%PDF-1.7 nonsense")
    done = finished(client, put.json()["job"])
    assert done["state"] == "done"
    assert "broken.pdf" in done["report"]["failed"]
    (listed,) = client.get("/api/collections/broken/documents").json()["documents"]
    assert listed["failure"]
    assert client.put("/api/collections/broken/files/empty.md", content=b"").status_code == 400


def test_progress_comes_as_events(client):
    text = "\n\n".join(f"# Part {i}\n\n" + f"Sentence {i} about subject {i}. " * 60
                       for i in range(40))  # fmt: skip
    put = client.put("/api/collections/long/files/long.md", content=text.encode())
    told = []
    with client.stream("GET", f"/api/jobs/{put.json()['job']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data: "):
                told.append(json.loads(line[6:]))
    assert told[-1]["state"] == "done"
    shares = [t["progress"]["done"] for t in told if t["progress"]]
    assert shares == sorted(shares)
    assert len(shares) > 1
    assert told[-1]["report"]["n_passages"] > 20


def test_a_stopped_ingest_ends_at_once_and_can_be_taken_up(server, client):
    text = "\n\n".join(f"# Part {i}\n\n" + f"Sentence {i} about subject {i * 7}. " * 80
                       for i in range(400))  # fmt: skip
    put = client.put("/api/collections/stopped/files/huge.md", content=text.encode())
    job = put.json()["job"]
    wait(lambda: client.get(f"/api/jobs/{job}").json()["progress"] is not None)
    started = time.monotonic()
    assert client.delete(f"/api/jobs/{job}").json()["state"] == "stopped"
    wait(lambda: server.app.state.jobs._process is None)
    assert time.monotonic() - started < 10
    done = server.ingested("# Small\n\nA small one after it.", "small.md", "stopped")
    assert done["state"] == "done"


def test_a_stopped_upload_leaves_no_file(server, client):
    text = "\n\n".join(f"# Part {i}\n\n" + f"Words {i} about {i * 5}. " * 80 for i in range(400))
    put = client.put("/api/collections/left/files/left.md", content=text.encode())
    client.delete(f"/api/jobs/{put.json()['job']}")
    folder = server.service.folder("left", must_exist=False)
    wait(lambda: not list((folder / "uploads").glob("*")))


def test_a_relative_store_is_one_store(tmp_path, smollm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with running(Path("here"), smollm, preload=False) as one, one.client() as client:
        done = one.ingested("# Lamp\n\nThe lamp is green.", "lamp.md")
        (listed,) = client.get("/api/collections/default/documents").json()["documents"]
        assert listed["is_upload"]
        assert listed["id"] == done["document"]
        client.delete(f"/api/collections/default/documents/{listed['id']}")
        assert not list((tmp_path / "here").rglob("lamp.md"))


def test_names_of_collections_fit_the_file_system(client):
    asked = {"question": "x"}
    for name in ("𠀀" * 64, "年" * 64):
        answer = client.post(f"/api/collections/{name}/search", json=asked)
        assert answer.status_code in (400, 404)


def test_searching_goes_on_during_an_ingest(server, client):
    text = "\n\n".join(f"# Part {i}\n\n" + f"Line {i} on topic {i * 3}. " * 80 for i in range(150))
    put = client.put("/api/collections/default/files/beside.md", content=text.encode())
    job, n = put.json()["job"], 0
    while client.get(f"/api/jobs/{job}").json()["state"] in ("waiting", "running"):
        found = client.post("/api/collections/default/search", json=ASKED)
        assert found.status_code == 200
        assert "4.5 litres" in json.dumps(found.json())
        n += 1
    assert n > 2
    client.delete(f"/api/collections/default/documents/{put.json()['document']}")


def test_a_page_is_shown_with_its_words_marked(server, client, tmp_path):
    pages = ["First page about lamps.", "Second page: the valve opens at 6 bar."]
    write_pdf(tmp_path / "two.pdf", pages)
    content = (tmp_path / "two.pdf").read_bytes()
    put = client.put("/api/collections/pages/files/two.pdf", content=content)
    assert finished(client, put.json()["job"])["report"]["n_pages"] == 2
    base = f"/api/collections/pages/documents/{put.json()['document']}"
    picture = client.get(f"{base}/pages/2.png")
    assert picture.headers["content-type"] == "image/png"
    assert picture.content.startswith(b"\x89PNG")
    marked = client.get(f"{base}/pages/2", params={"words": "the valve opens at 6 bar"}).json()
    assert marked["n_pages"] == 2
    ((left, top, width, height),) = marked["marks"]
    assert 0 < left < 1
    assert 0 < top < 0.5
    assert 0.05 < width < 0.9
    assert 0 < height < 0.05
    assert client.get(f"{base}/pages/1", params={"words": "valve opens"}).json()["marks"] == []
    assert client.get(f"{base}/pages/3.png").status_code == 422
    assert client.get(f"{base}/pages/x.png").status_code == 400
    assert client.get(f"{base}/original").content == content


def test_nothing_of_that_name_is_404(client):
    for path in ("/api/collections/default/documents/none/passages", "/api/jobs/none",
                 "/api/collections/none/documents", "/nothing"):  # fmt: skip
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"]


def test_a_collection_with_nothing_in_it_says_so(tmp_path, smollm):
    with running(tmp_path, smollm, preload=False) as one, one.client() as client:
        answer = client.post("/api/collections/default/search", json=ASKED)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "no_documents"
        assert client.get("/api/collections/default/documents").json() == {"documents": []}


def test_without_a_model_documents_are_searched(tmp_path, monkeypatch):
    def none(_):
        raise ModelNotFoundError("there is no model")

    monkeypatch.setattr(service, "answering_model", none)
    with running(tmp_path, None, preload=False) as one, one.client() as client:
        one.ingested("# Lamp\n\nThe lamp is green.", "lamp.md")
        assert client.get("/v1/models").json()["data"] == []
        found = client.post("/api/collections/default/search", json={"question": "lamp"})
        assert "green" in found.json()["passages"][0]["text"]
        answer = client.post("/api/collections/default/ask", json={"question": "lamp?"})
        assert answer.status_code == 503
        assert "no model" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_health_and_figures(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    if path == "/metrics":
        client.post("/v1/chat/completions", json={
            "messages": [{"role": "user", "content": "x"}], "max_tokens": 4})  # fmt: skip
        text = client.get(path).text
        for name in ("first_token_seconds_count", "tokens_per_second_bucket", "waiting",
                     'tokens_total{kind="cached"}', "requests_total"):  # fmt: skip
            assert f"mixtral_rag_{name}" in text
        assert "pump" not in text
