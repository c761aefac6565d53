"""What the README quotes from the program is what the program prints.

`python tests/test_readme.py` writes the current help into it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
CHINESE = README.with_name("README_zh.md")
BLOCK = re.compile(r"<!-- help: (\w+) -->\n```\n(.*?)```\n<!-- end -->", re.DOTALL)


def help_of(command: str) -> str:
    program = str(Path(sys.executable).with_name("mixtral-rag"))
    environment = os.environ | {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
    environment["MIXTRAL_RAG_LANGUAGE"] = "en"
    out = subprocess.run(
        [program, command, "--help"], env=environment, capture_output=True, text=True, check=True
    )
    return out.stdout.strip() + "\n"


@pytest.mark.parametrize(("command", "quoted"), BLOCK.findall(README.read_text("utf-8")))
def test_quoted_help_is_the_real_help(command, quoted):
    assert quoted == help_of(command)


def test_both_languages_say_the_same():
    """As far as it can be counted: help, headings, code, tables with their figures, points."""
    english, chinese = (path.read_text("utf-8") for path in (README, CHINESE))
    assert BLOCK.findall(english) == BLOCK.findall(chinese)
    for part in (r"^## ", r"^```", r"^- \*\*", r"^\|"):
        assert len(re.findall(part, english, re.M)) == len(re.findall(part, chinese, re.M)), part
    rows = (re.findall(r"^\|.*", text, re.M) for text in (english, chinese))
    for one, other in zip(*rows, strict=True):
        figures = [re.findall(r"\d[\d,.]*", cells) for cells in (one, other)]
        assert figures[0] == figures[1] or not re.search(r"\d\.\d", one), (one, other)


def test_python_in_the_readme_compiles_and_names_what_exists():
    import mixtral_rag

    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")
        for names in re.findall(r"from mixtral_rag import (.+)", block):
            for name in names.split(", "):
                assert name in mixtral_rag.__all__


def test_the_table_of_quantisations_is_the_catalogues():
    from mixtral_rag.weights.catalog import QUANTISATIONS, needed_memory

    text = README.read_text("utf-8")
    for row in QUANTISATIONS:
        cells = text.split(f"| {row.name} | ")[1].split("\n")[0].split(" | ")
        perplexity = "" if row.perplexity is None else f"{row.perplexity:.4f}"
        needed = f"{needed_memory(row.n_bytes, 32_768) / 1e9:.1f} GB"
        assert [cells[0], cells[2], cells[3].rstrip(" |")] == [
            f"{row.n_bytes / 1e9:.1f} GB", needed, perplexity,
        ]  # fmt: skip


def test_the_demonstration_model_is_not_oversold():
    assert "for trying the plumbing only" in README.read_text("utf-8")


if __name__ == "__main__":

    def fresh(match):
        return f"<!-- help: {match[1]} -->\n```\n{help_of(match[1])}```\n<!-- end -->"

    for path in (README, CHINESE):
        path.write_text(BLOCK.sub(fresh, path.read_text("utf-8")), "utf-8")
