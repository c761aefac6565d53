"""Prompts that are kept between commands: warm, cache status, cache clear."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

LINE = "Rule {n}: a member who is {n} years in the club may borrow {n} books for {n} weeks. "


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MIXTRAL_RAG_")}
    names = ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    environment = kept | dict.fromkeys(names, str(home)) | {"COLUMNS": "200"}
    command = str(Path(sys.executable).with_name("mixtral-rag"))

    def run(*arguments):
        return subprocess.run(
            [command, *map(str, arguments)],
            env=environment, cwd=home, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    run.home = home
    return run


@pytest.fixture(scope="module")
def docs(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "rules.txt").write_text("".join(LINE.format(n=n) for n in range(2, 30)))
    (folder / "dogs.txt").write_text("Dogs stay outside the library of the club.\n")
    out = run("ingest", folder)
    assert out.returncode == 0, out.stderr
    return folder


@pytest.fixture
def cleared(run):
    run("cache", "clear")


def counts(explained):
    """Cached and computed tokens that `--explain` tells."""
    return [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:tokens of|were comp)",
                                                        explained)]  # fmt: skip


def test_a_question_after_warm_costs_its_own_tokens(run, docs, cleared):
    out = run("warm")
    assert out.returncode == 0, out.stderr
    read = int(re.search(r"Read 2 documents, ([\d,]+) tokens", out.stdout)[1].replace(",", ""))
    assert read > 800
    told = run("ask", "How many books may one borrow after 12 years?", "--explain",
               "--max-tokens", 8).stdout  # fmt: skip
    assert "(everything there is)" in told
    cached, computed = counts(told)
    assert cached + computed > read
    assert computed <= 64 + 16
    again = run("warm")
    assert "were known" in again.stdout


def test_a_file_is_warmed_for_questions_about_it(run, docs, cleared):
    run("warm", docs / "rules.txt")
    told = run("ask", "How many books may one borrow after 9 years?", "--in", docs / "rules.txt",
               "--explain", "--max-tokens", 8).stdout  # fmt: skip
    cached, computed = counts(told)
    assert cached > 700
    assert computed <= 64 + 16


def test_the_cache_tells_what_it_keeps_and_is_cleared(run, docs, cleared):
    assert "0 computed prompts" in run("cache", "status").stdout
    run("warm", docs / "rules.txt")
    told = json.loads(run("cache", "status", "--json").stdout)
    assert Path(told["folder"]).is_relative_to(run.home)
    (state,) = told["states"]
    assert state["n_tokens"] > 700
    assert state["model"].startswith("SmolLM2")
    assert state["bytes"] == Path(state["file"]).stat().st_size <= told["max_bytes"]
    assert stat.S_IMODE(Path(state["file"]).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(told["folder"]).stat().st_mode) == 0o700
    shown = run("cache", "status").stdout
    assert "1 computed prompt in" in shown
    assert f"{state['n_tokens']:,} tokens" in shown
    assert "Removed 1 computed prompt" in run("cache", "clear").stdout
    assert not list(Path(told["folder"]).iterdir())


def test_nothing_is_kept_that_is_not_wanted(run, docs, cleared):
    out = run("ask", "How many books may one borrow after 9 years?", "--kv-bytes", 0,
              "--max-tokens", 4)  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert "0 computed prompts" in run("cache", "status").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["warm", "--context-tokens", "300"], "raise context_tokens (and n_ctx)"),
        (["warm", "--language", "fr"], "--language is 'fr'; it must be zh or en"),
        (["warm", "/no/such.txt"], "none of the documents"),
        (["warm", "--kv-folder", "/dev/null/kv"], "cannot write to /dev/null/kv: Not a directory"),
        (["warm", "--kv-bytes", "0"], "nothing that is read ahead would be kept"),
        (["ask", "how?", "--kv-bytes", "-1"], "kv_bytes is -1"),
        (["cache", "status", "--kv-bytes", "-1"], "kv_bytes is -1"),
    ],
)
def test_errors_say_what_to_do(arguments, told, run, docs):
    out = run(*arguments)
    assert out.returncode not in (0, 1) or "Traceback" not in out.stderr
    assert told in " ".join(out.stderr.split())


def test_ingest_reads_ahead_when_asked(run, tmp_path, cleared):
    (tmp_path / "a.txt").write_text("".join(LINE.format(n=n) for n in range(2, 20)))
    store = ("--store", tmp_path / "store")
    out = run("ingest", tmp_path / "a.txt", *store, "--warm")
    assert out.returncode == 0, out.stderr
    assert "Read 1 document, " in out.stdout
    small = run("ingest", tmp_path / "a.txt", *store, "--warm", "--context-tokens", 100)
    assert small.returncode == 0
    assert "not read ahead: the documents take" in small.stderr


def test_removing_a_document_tells_of_prompts_that_hold_it(run, tmp_path, cleared):
    (tmp_path / "a.txt").write_text("".join(LINE.format(n=n) for n in range(2, 20)))
    store = ("--store", tmp_path / "store")
    run("ingest", tmp_path / "a.txt", *store, "--warm")
    assert "cache clear" in run("remove", tmp_path / "a.txt", *store).stdout
