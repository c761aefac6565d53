"""The command line in Chinese: the catalogue holds every message, and only what we say changes."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import message_templates
import pytest
from typer.testing import CliRunner

from mixtral_rag import translation
from mixtral_rag.cli import app
from mixtral_rag.translation import CATALOGUE, language, listed, padded, translated, width_of

ENTRIES = json.loads(CATALOGUE.read_text("utf-8"))
HAN = r"\u4e00-\u9fff"

# What only programs meet: arguments of the LangChain faces, and answers of the server over HTTP.
INTERNAL = {
    "chat.py", "messages.py", "model.py", "structured.py", "types.py", "vectorstore.py",
    "server/answers.py", "server/chat.py", "server/gate.py", "server/mcp.py", "server/uploads.py",
}  # fmt: skip
# Messages that a message of ours is part of; both parts are in the catalogue.
IN_PARTS = {"{} is damaged: it is empty"}
# Messages a user can meet that are still English.
NOT_YET = set()
# What other packages say: typer, click under its older versions, and pydantic under its newer.
OF_OTHERS = (
    "Arguments", "Commands", "Options", "Got unexpected ", "Input should be ", "Invalid value for ",
    "Missing ", "No such command ", "No such option: ", "Option {} ", "Show this message and exit.",
    "Value {} is not a valid ", "{} is not a valid ", "{} is not in the range ", "default: ",
    "required",
)  # fmt: skip


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setenv("MIXTRAL_RAG_LANGUAGE", "zh")


def shape(english):
    """An entry as it stands in the source, where all holes are alike."""
    return re.sub(r"\{[#@]\}", "{}", english)


# Such as a file and what is wrong with it: whatever comes before the colon stays.
OF_ANY = ("{}: {}",)
KNOWN = {shape(english) for english in ENTRIES}


def collected():
    """Every template with the module it is in."""
    for module in message_templates.modules("**/*.py"):
        name = str(module.path.relative_to(message_templates.PACKAGE))
        found = [*module.errors()]
        if name.startswith(("commands/", "console", "cli")):
            found += [*module.printed(), *module.help()]
        yield from ((name, text) for text in found)


# --- the catalogue -----------------------------------------------------------------------------


def test_every_message_a_user_can_meet_is_in_the_catalogue():
    lacking = {text: name for name, text in collected()
               if name not in INTERNAL and text not in KNOWN | IN_PARTS | NOT_YET}  # fmt: skip
    assert not lacking


def test_there_are_as_many_messages_as_we_think():
    """The reading of the source does not quietly find less."""
    assert len({text for _, text in collected()}) > 600


def test_nothing_in_the_catalogue_is_stale():
    texts = {text for _, text in collected()}
    assert texts >= IN_PARTS | NOT_YET
    for module in message_templates.modules("**/*.py"):
        texts.update(module.put_together())
    constants = "\n".join(
        node.value for path in message_templates.PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )  # fmt: skip
    for english in ENTRIES:
        if shape(english) in texts or english.startswith(OF_OTHERS):
            continue
        # A part of a message, or a noun that `many` puts behind a number.
        for piece in re.split(r"\{[#@]?\}", english):
            noun = piece.strip().removesuffix("s")
            assert noun.replace(" ", "_") in constants or noun in constants, english


def test_translations_use_every_hole_and_no_other():
    for english, chinese in ENTRIES.items():
        n = len(re.findall(r"\{[#@]?\}", english))
        used = {int(number) for number in re.findall(r"\{(\d+)[!,]?\}", chinese)}
        assert used == set(range(1, n + 1)), english
        assert english == english.strip()
        assert "}{" not in english, f"no telling where one value ends: {english}"


def test_a_message_of_little_text_is_known_by_what_it_may_hold():
    """Else it would claim texts that are not ours."""
    for english in ENTRIES:
        letters = re.sub(r"\{[#@]?\}|[^a-zA-Z]", "", english)
        is_certain = "{#}" in english or "{@}" in english or "{}" not in english
        assert len(letters) >= 4 or is_certain or english in OF_ANY, english


def test_chinese_is_written_as_in_the_readme():
    for english, chinese in ENTRIES.items():
        assert re.search(f"[{HAN}]", chinese) or english == chinese or "{1" in chinese, english
        assert not re.search(f"[{HAN}][,;:?!]", chinese), chinese
        assert not re.search(f"[{HAN}][A-Za-z0-9]|[A-Za-z0-9][{HAN}]", chinese), chinese
        assert not re.search(r"[，。；：？！（）] \S", chinese), chinese


def test_commands_and_paths_in_messages_stay():
    for english, chinese in ENTRIES.items():
        names = r"--[a-z][a-z-]+|mixtral-rag [a-z]+|`[^`]+`|\b[a-z]+_[a-z_]+\b|https?://[\w.:/]+\w"
        for name in re.findall(names, english):
            assert name in chinese, (name, chinese)


# --- the language ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "POSIX"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LC_ALL": "", "LC_MESSAGES": "zh_CN", "LANG": "en_US"}, "zh"),
        ({"LC_ALL": "C", "LC_MESSAGES": "zh_CN", "LANG": "zh_CN"}, "en"),
        ({"MIXTRAL_RAG_LANGUAGE": "zh", "LC_ALL": "en_US"}, "zh"),
        ({"MIXTRAL_RAG_LANGUAGE": "en", "LC_ALL": "zh_CN"}, "en"),
        ({"MIXTRAL_RAG_LANGUAGE": "", "LC_ALL": "zh_CN"}, "zh"),
    ],
)
def test_the_setting_comes_before_the_locale(monkeypatch, variables, expected):
    for name in ("MIXTRAL_RAG_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


def test_in_english_everything_stays_and_nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(translation, "CATALOGUE", Path("/nonexistent"))
    translation._catalogue.cache_clear()
    assert translated("the question is empty") == "the question is empty"
    assert listed(["2 pages", "1 passage"]) == "2 pages, 1 passage"
    assert padded("system", 14) == f"{'system':14}"


# --- translating -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("english", "expected"),
    [
        ("the question is empty", "问题是空的"),
        ("no such file or folder: /a/b: c", "没有文件或目录 /a/b: c"),
        ("\nSources:", "\n引用："),
        ("3 documents: 2 added, 1 failed.", "3 份文档：新增 2，失败 1。"),
        ("1,024 documents removed, whose files are gone.", "1,024 份文档的文件已不存在，已移除。"),
        ("2 pages, 3 passages, in 3 min 5 s.", "2 页，3 个段落，用时 3 分 5 秒。"),
        ("ok but for 2 pages", "正常，除 2 页外"),
        ("a.zip: b.doc is in an old format; open it and save it as .docx or .pptx",
         "a.zip: b.doc 是旧格式；请打开并另存为 .docx 或 .pptx"),
        ("a.pdf: pages 2, 5-9 not in the store: read by OCR",
         "a.pdf: 第 2, 5-9 页未入库：经 OCR 读出"),
        ("llama.cpp cannot load /m.gguf: no reason given",
         "llama.cpp 无法加载 /m.gguf: 未给出原因"),
        ("top_k in m.toml must be a whole number, not 'a'",
         "m.toml 中的 top_k 必须是整数，而不是 'a'"),
    ],
)  # fmt: skip
def test_messages_are_translated_with_what_they_hold(chinese, english, expected):
    assert translated(english) == expected


@pytest.mark.parametrize(
    "text",
    ["", "\n", "some text of a library", "one of two", "it is in there:", "a: b, c", "of 5 s",
     "x" * 100_000, "{}", "{1}", "问题是空的", "/home/empty/none, no.txt"],
)  # fmt: skip
def test_what_is_not_known_stays(chinese, text):
    assert translated(text) == text


def test_no_message_takes_long(chinese):
    import time

    started = time.monotonic()
    translated(": " * 9_000)
    translated("a is b; c (d), " * 1_000)
    assert time.monotonic() - started < 2


def test_columns_are_counted_as_a_terminal_does():
    assert width_of("处理器 a") == 8
    assert padded("处理器", 8) == "处理器  "


# --- the command line --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runner():
    return CliRunner()


@pytest.fixture
def home(clean_environment, monkeypatch):
    (clean_environment / "a.txt").write_text("The company was founded by Zhang Wei in 1998.\n")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MIXTRAL_RAG_LANGUAGE", "zh")
    return clean_environment


def commands(command=None, names=()):
    import typer

    command = command or typer.main.get_command(app)
    yield names
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*names, name))


@pytest.mark.parametrize("names", list(commands()), ids=" ".join)
def test_help_is_chinese_throughout(runner, home, names):
    out = runner.invoke(app, [*names, "--help"])
    assert out.exit_code == 0
    assert out.stdout.startswith("用法： ")
    assert "\n选项：\n" in out.stdout
    for english in ("Usage", "Options:", "Arguments:", "Commands:", "default:", "required"):
        assert english not in out.stdout
    for line in out.stdout.splitlines():
        assert width_of(line) <= 80
        assert not re.match(r"\s*[，。；：？！、）]", line)
        assert re.search(f"[{HAN}]|^$|\\[|https?:|^ +\\S+$|^  --", line), line


def test_help_is_as_before_in_english(runner, monkeypatch):
    monkeypatch.setenv("MIXTRAL_RAG_LANGUAGE", "en")
    out = runner.invoke(app, ["keys", "add", "--help"])
    assert out.stdout.endswith(
        "  Make a key and show it; it is shown only now.\n\n"
        "Arguments:\n  name <str>  Who or what it is for.  [required]\n\n"
        "Options:\n  -h, --help  Show this message and exit.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "错误：没有命令 'bogus'"),
        (["ingest"], "错误：缺少参数 'paths'"),
        (["ask", "--bogus"], "错误：没有选项 --bogus"),
        (["ask", "--top-k", "many"], "错误：'--top-k' 的值无效：应为整数"),
        (["keys", "add", "a", "b"], "错误：多余的参数：b"),
    ],
)
def test_mistakes_on_the_command_line(runner, home, arguments, said):
    out = runner.invoke(app, arguments)
    assert out.exit_code == 2
    assert said in out.stderr
    assert out.stderr.startswith("用法： ")
    assert "\n查看说明：" in out.stderr


def test_an_empty_store(runner, home):
    out = runner.invoke(app, ["ask", "x", "--store", "store"])
    assert out.exit_code == 2
    assert out.stderr == "mixtral-rag: 库 store 是空的；请先运行：mixtral-rag ingest FOLDER\n"


def test_ingest_and_status(runner, home):
    (home / "empty.txt").touch()
    out = runner.invoke(app, ["ingest", "a.txt", "empty.txt", "--store", "store"])
    assert out.exit_code == 1
    assert "2 份文档：新增 1，失败 1。\n1 个段落，用时 " in out.stdout
    assert out.stdout.endswith("秒。\n库：store\n")
    assert out.stderr == f"mixtral-rag: {home / 'empty.txt'} 是空的\n"
    out = runner.invoke(app, ["status", "--store", "store"])
    assert re.match(r"文档 +页 +段落 +状态", out.stdout)
    assert "empty.txt 是空的" in " ".join(out.stdout.split())
    assert out.stdout.endswith("2 份文档，1 个段落，位于 store\n")


def test_what_programs_read_stays(runner, home, monkeypatch):
    def read():
        rows = json.loads(runner.invoke(app, ["status", "--store", "store", "--json"]).stdout)
        shown = runner.invoke(app, ["verify", "--store", "store", "--json"]).stdout
        failed = runner.invoke(app, ["ingest", "empty.txt", "--store", "store", "--json"]).stdout
        return rows, shown, json.loads(failed)["still_failed"]

    (home / "empty.txt").touch()
    runner.invoke(app, ["ingest", "a.txt", "empty.txt", "--store", "store"])
    in_chinese = read()
    monkeypatch.setenv("MIXTRAL_RAG_LANGUAGE", "en")
    assert in_chinese == read()
    assert {row["state"] for row in in_chinese[0]["documents"]} >= {"ok"}
    assert "is empty" in json.dumps(in_chinese[2])


def test_documents_stay_though_they_hold_a_message_of_ours(runner, home):
    text = "the question is empty"
    (home / "a.txt").write_text(text + "\n")
    runner.invoke(app, ["ingest", "a.txt", "--store", "store"])
    out = runner.invoke(app, ["ask", "question", "--retrieve-only", "--store", "store"])
    assert f"\n{text}\n" in out.stdout
    assert re.match(r"\[1\] a\.txt \(余弦 ", out.stdout)


def test_the_program_itself_follows_the_locale(home):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MIXTRAL_RAG_")}
    program = str(Path(sys.executable).with_name("mixtral-rag"))
    for locale, said in (("zh_CN.UTF-8", "是空的"), ("C", "is empty; first run")):
        out = subprocess.run(
            [program, "status", "--store", "none"], env=environment | {"LC_ALL": locale},
            capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip
        assert out.returncode == 2
        assert said in out.stderr
