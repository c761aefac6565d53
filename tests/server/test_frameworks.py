"""Other frameworks and pages over our server, as integrations/ shows them."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from model_servers import LOCAL_HTTP

pytestmark = LOCAL_HTTP
ROOT = Path(__file__).parents[2]
INTEGRATIONS = ROOT / "integrations"
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
needs_frameworks = pytest.mark.skipif(
    not PYTHON.exists(), reason="the frameworks are not installed; see `make .venv-clients/dev`"
)


def run(script, *arguments, folder):
    """A script with the frameworks' own environment, without this one's packages or proxies."""
    environment = {n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy")}
    environment |= {"HAYSTACK_TELEMETRY_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [PYTHON, INTEGRATIONS / script, *arguments], capture_output=True, text=True, timeout=300,
        check=False, cwd=folder, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@needs_frameworks
def test_llamaindex_asks_in_both_ways(server, tmp_path):
    (tmp_path / "pump.txt").write_text("The pump P-7 takes 4.5 litres of mineral oil.")
    said = run(
        "llamaindex/ask.py", f"{server.url}/v1", tmp_path, "How much oil does the pump P-7 take?",
        folder=tmp_path,
    )  # fmt: skip
    own, ours = said.split("mixtral_rag's:")
    assert len(own) > len("LlamaIndex's own: ") + 5
    assert "4.5 litres" in ours


@needs_frameworks
def test_haystack_retrieves_and_generates(server, tmp_path):
    said = run("haystack/ask.py", f"{server.url}/v1", "How many days of leave?", folder=tmp_path)
    assert "found: Employees have fifteen days" in said
    assert len(said.split("answer:")[1].strip()) > 3


def test_open_webui_is_pointed_at_what_there_is(server, client):
    """The variables of compose.yaml name our API, and the model that embeds."""
    service = yaml.safe_load((INTEGRATIONS / "open-webui" / "compose.yaml").read_text("utf-8"))
    named = service["services"]["open-webui"]["environment"]
    assert named["OPENAI_API_BASE_URLS"] == named["RAG_OPENAI_API_BASE_URL"]
    assert named["OPENAI_API_BASE_URLS"].endswith(":8000/v1")
    assert client.get("/v1/models").status_code == 200
    body = {"model": named["RAG_EMBEDDING_MODEL"], "input": ["一", "two"]}
    said = client.post("/v1/embeddings", json=body).json()
    assert [len(one["embedding"]) for one in said["data"]] == [384, 384]


def test_open_webui_is_answered(client):
    """Its chat sends a stream with these fields, and asks for titles with a stream switched off."""
    name = client.get("/v1/models").json()["data"][0]["id"]
    chat = {
        "model": name, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 4,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    }  # fmt: skip
    told = client.post("/v1/chat/completions", json=chat)
    assert told.status_code == 200
    assert told.text.rstrip().endswith("data: [DONE]")
    title = {"model": name, "stream": False, "max_completion_tokens": 4,
             "messages": [{"role": "user", "content": "### Task: write a title"}]}  # fmt: skip
    assert client.post("/v1/chat/completions", json=title).status_code == 200
