"""bench as a user types it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("mixtral-rag"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("苏州园林是中国古典园林的代表。The garden opens at nine.\n" * 60, "utf-8")
    return path


@pytest.fixture
def environment(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MIXTRAL_RAG_")}
    names = ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    return kept | dict.fromkeys(names, str(tmp_path / "home"))


@pytest.fixture
def run(environment, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [COMMAND, "bench", *map(str, arguments)], env=environment, cwd=tmp_path,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


def test_a_table_a_csv_and_json(run, text, tiny_mixtral, tmp_path):
    out = run(
        tiny_mixtral, "--text", text, "--contexts", "64,128", "--n-chunks", 1, "--seconds", 0.3,
        "--csv", "out.csv",
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    head, values = out.stdout.splitlines()[:2]
    assert head.split() == ["File", "GB", "Bits", "PPL", "64", "ms/token", "Prefill/s"]
    assert values.split()[:3] == ["tiny-instruct.gguf", "0.02", "32.00"]
    assert "Perplexity by context:" in out.stdout
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["n_ctx"] for row in rows] == ["64", "128"]
    assert f"{float(rows[0]['perplexity']):.3e}" in values
    again = run(tiny_mixtral, "--text", text, "--n-ctx", 64, "--csv", "out.csv")
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    out = run(
        tiny_mixtral, "--text", text, "--n-ctx", 64, "--n-chunks", 1, "--seconds", 0.3, "--json",
        "--csv", "out.csv", "--replace",
    )  # fmt: skip
    (row,) = json.loads(out.stdout)["rows"]
    assert f"{row['perplexities'][0]['value']:.4f}" == rows[0]["perplexity"]


def test_a_context_beyond_training_is_marked_and_a_plot_is_written(run, text, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need the extra `bench`")
    from tiny_mixtral import write_tiny_mixtral

    model = write_tiny_mixtral(tmp_path / "模型-instruct.gguf", n_ctx_train=64)
    out = run(
        model, "--text", text, "--contexts", "64,128", "--n-chunks", 1, "--seconds", 0.3,
        "--plot", "out.png",
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert "* beyond the context the model was trained for" in out.stdout
    assert out.stdout.count("*\n") == 1
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["M", "--text", "no.txt"], 2, "cannot read the text no.txt"),
        (["M", "--text", "M"], 2, "is not UTF-8 text"),
        (["M", "--text", "T", "--n-ctx", "8192"], 2, "too few for a context of 8,192"),
        (["M", "--text", "T", "--contexts", "4k"], 2, "give numbers such as"),
        (["M", "--text", "T", "--contexts", "200000"], 2, "131,072"),
        (["M", "--text", "T", "--n-ctx", "4"], 2, "too small"),
        (["M", "--text", "T", "--n-ctx", "64", "--n-chunks", "0"], 2, "n_chunks is 0"),
        (["M", "no.gguf", "--text", "T", "--n-ctx", "64"], 2, "no such model file: no.gguf"),
        (["M", "--text", "T", "--n-ctx", "64", "--csv", "no/x.csv"], 2, "there is no folder no"),
        (["M"], 2, "--text"),
    ],
)
def test_mistakes_give_one_line_and_a_code(run, text, tiny_mixtral, arguments, code, said):
    files = {"M": tiny_mixtral, "T": text}
    out = run(*(files.get(a, a) for a in arguments))
    assert out.returncode == code, out.stderr
    assert said in out.stderr
    assert "Traceback" not in out.stderr


def test_ctrl_c_prints_the_rows_that_are_finished(
    environment, text, tiny_mixtral, smollm, tmp_path
):
    process = subprocess.Popen(
        [COMMAND, "bench", str(tiny_mixtral), str(smollm), "--text", str(text), "--n-ctx", "256",
         "--seconds", "1", "--csv", "out.csv"],
        env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    speeds = tmp_path / "home" / "mixtral_rag" / "speed"
    until = time.monotonic() + 60
    while time.monotonic() < until and len(list(speeds.glob("*.json"))) < 2:
        time.sleep(0.02)  # the second file's speed is kept: the first is finished
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert "interrupted; this is what was finished" in error
    assert "Traceback" not in error
    assert "tiny-instruct.gguf" in out
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8", newline="")))
    assert rows[0]["file"] == "tiny-instruct.gguf"
    assert float(rows[0]["perplexity"]) > 1
