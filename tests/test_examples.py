"""The scripts in examples/ and integrations/, run as a user runs them."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_mixtral import write_tiny_folder

ROOT = Path(__file__).parent.parent
EXAMPLES, LANGCHAIN = ROOT / "examples", ROOT / "integrations" / "langchain"
CONTRACTS = EXAMPLES / "contracts"
FEE = "What is the fee a year?"
# Script, its arguments (MODEL is the small model), and what it prints among other things.
RUNS = [
    (EXAMPLES / "01_invoke_and_stream.py", ["MODEL"], "tokens read"),
    (EXAMPLES / "02_chat_with_memory.py", ["MODEL"], "service-agreement.md: "),
    (EXAMPLES / "03_ingest_and_ask.py", ["MODEL"], "2,400 US dollars"),
    (EXAMPLES / "05_contract_terms.py", ["MODEL"], "Harbour Pump Services"),
    (EXAMPLES / "06_agent_with_tools.py", ["MODEL"], "Ai Message"),
    (EXAMPLES / "08_own_loader.py", [], "service only: ['ticket 101', 'ticket 103']"),
    (EXAMPLES / "09_own_embedder.py", [], "was made with the embedder"),
    (LANGCHAIN / "two_step_chain.py", ["MODEL", CONTRACTS, FEE], "service-agreement.md"),
    (LANGCHAIN / "agent.py", ["MODEL", CONTRACTS, FEE], "Ai Message"),
    (LANGCHAIN / "graph.py", ["MODEL", CONTRACTS, FEE], "answer: "),
    (LANGCHAIN / "swap.py", ["MODEL", "How many days of leave?"], "nine to six"),
]  # fmt: skip


def run(script, *arguments, folder):
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True,
        timeout=400, check=False, cwd=folder, env=os.environ | {"MIXTRAL_RAG_KV_BYTES": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "said"), RUNS, ids=lambda v: getattr(v, "stem", "")
)
def test_a_script_runs(script, arguments, said, smollm, tmp_path):
    given = [smollm if a == "MODEL" else a for a in arguments]
    assert said in run(script, *given, folder=tmp_path)


def test_a_later_question_about_a_whole_document_reads_little(smollm, tmp_path):
    said = run(
        EXAMPLES / "04_whole_document.py", smollm, CONTRACTS / "service-agreement.md", FEE,
        "When does the agreement begin?", "--n-ctx", "4096", folder=tmp_path,
    )  # fmt: skip
    [(first, _), (cached, total)] = re.findall(r"(\d+) of (\d+) tokens were read before", said)
    assert int(first) == 0
    assert int(cached) > 0.9 * int(total)


@pytest.mark.enable_socket
def test_the_server_is_started_and_called(smollm, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = run(EXAMPLES / "10_serve_and_call.py", smollm, port, folder=tmp_path)
    assert "models: ['SmolLM2-135M-Instruct.Q4_1', 'documents']" in said
    assert "service-agreement.md: The fee is 2,400 US dollars a year" in said
    assert "stopped with exit code 0" in said


def test_vllm_answers_many(tmp_path):
    pytest.importorskip("vllm", reason="vllm is not installed; see `make test-vllm`")
    tiny_folder = write_tiny_folder(tmp_path / "tiny-mixtral-instruct")
    said = run(EXAMPLES / "07_batch_on_vllm.py", tiny_folder, 20, folder=tmp_path)
    assert "20 answers in" in said


def test_examples_are_numbered_short_and_tell_what_they_need():
    scripts = sorted(EXAMPLES.glob("[0-9]*.py"))
    assert [s.name[:2] for s in scripts] == [f"{n:02}" for n in range(1, 11)]
    for script in scripts:
        text = script.read_text("utf-8")
        assert len(text.splitlines()) < 60, script.name
        assert f"python examples/{script.name}" in text
    for folder in ("docs", "contracts"):
        told = (EXAMPLES / folder / "COPYING").read_text("utf-8")
        for path in (EXAMPLES / folder).iterdir():
            assert path.name == "COPYING" or path.name in told
