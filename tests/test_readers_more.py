"""Readers of books, notebooks, data and code, and what is found in folders."""

import json
import os
import zipfile

import pytest

from mixtral_rag.errors import EncryptedError, NoDocumentsError, UnreadableError
from mixtral_rag.ingest.discover import discover
from mixtral_rag.ingest.readers import read


def found(parsed):
    return [(b.section, b.text) for b in parsed.blocks]


def write(path, text):
    path.write_text(text, "utf-8")
    return path


CONTAINER = """<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles>
</container>"""
OPF = """<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>红楼梦</dc:title></metadata>
<manifest>
<item id="c2" href="two%20b.xhtml" media-type="application/xhtml+xml"/>
<item id="c1" href="one.xhtml" media-type="application/xhtml+xml"/>
<item id="gone" href="gone.xhtml" media-type="application/xhtml+xml"/>
<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>
<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>
</manifest>
<spine toc="ncx"><itemref idref="nav"/><itemref idref="c1"/><itemref idref="c2"/>
<itemref idref="gone"/></spine></package>"""
NAV = """<html xmlns="http://www.w3.org/1999/xhtml"><body><nav><ol>
<li><a href="one.xhtml">第一回</a></li><li><a href="two%20b.xhtml#x">第二回</a></li></ol></nav>
</body></html>"""
NCX = """<!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "http://127.0.0.1:1/ncx.dtd">
<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap><navPoint><navLabel><text>第二回</text>
</navLabel><content src="two%20b.xhtml#x"/></navPoint></navMap></ncx>"""


@pytest.fixture
def book(tmp_path):
    def make(**parts):
        path = tmp_path / "a.epub"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("mimetype", "application/epub+zip")
            archive.writestr("META-INF/container.xml", CONTAINER)
            archive.writestr("OEBPS/book.opf", parts.get("opf", OPF))
            archive.writestr("OEBPS/nav.xhtml", NAV)
            archive.writestr("OEBPS/toc.ncx", NCX)
            archive.writestr(
                "OEBPS/one.xhtml", "<html><body><h1>第一回</h1><p>甄士隐</p></body></html>"
            )
            archive.writestr("OEBPS/two b.xhtml", "<html><body><p>贾夫人</p></body></html>")
            for name, data in parts.get("more", {}).items():
                archive.writestr(name, data)
        return path

    return make


@pytest.mark.parametrize("opf", [OPF, OPF.replace('properties="nav"', "").replace(
    '<itemref idref="nav"/>', "")], ids=["epub 3", "epub 2"])  # fmt: skip
def test_a_book_in_reading_order_with_the_titles_of_its_contents(book, opf):
    parsed = read(book(opf=opf))
    assert parsed.title == "红楼梦"
    assert found(parsed) == [(("第一回",), "第一回\n甄士隐"), (("第二回",), "贾夫人")]
    assert parsed.problems == ["OEBPS/gone.xhtml is missing"]


def protection(method):
    return {
        "META-INF/encryption.xml": "<encryption>"
        '<e:EncryptedData xmlns:e="http://www.w3.org/2001/04/xmlenc#">'
        f'<e:EncryptionMethod Algorithm="{method}"/></e:EncryptedData></encryption>'
    }


def test_a_locked_book_says_so_but_locked_fonts_do_not_matter(book):
    with pytest.raises(EncryptedError, match=r"a\.epub is locked"):
        read(book(more=protection("http://www.w3.org/2001/04/xmlenc#aes256-cbc")))
    assert read(book(more=protection("http://www.idpf.org/2008/embedding"))).title == "红楼梦"


def test_a_book_gives_no_local_file_away(book, tmp_path):
    write(tmp_path / "secret.txt", "TOPSECRET")
    doctype = f'<!DOCTYPE p [<!ENTITY x SYSTEM "file://{tmp_path}/secret.txt">]>'
    opf = OPF.replace("<package", doctype + "<package").replace("红楼梦", "T &x; t")
    parsed = read(book(opf=opf))
    assert "TOPSECRET" not in parsed.title
    assert len(parsed.blocks) == 2


def test_a_chapter_that_cannot_be_read_costs_only_itself(book):
    path = book()
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    chapters = sorted(name for name in parts if name.endswith(".xhtml") and "nav" not in name)
    garbage = b"\x01\x02\x03\x04" * 50
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, garbage if name == chapters[0] else data)
    parsed = read(path)
    assert len(parsed.blocks) == 1
    assert [p.split(" is ")[0] for p in parsed.problems] == [
        f"{path}: {chapters[0]}", "OEBPS/gone.xhtml"
    ]  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, garbage if name in chapters else data)
    with pytest.raises(UnreadableError, match=r"a\.epub: no chapter can be read: .*binary data"):
        read(path)


@pytest.mark.parametrize("opf", ["<package", "", "<package/>"])
def test_a_damaged_book_is_named(book, opf):
    with pytest.raises(UnreadableError, match=r"a\.epub"):
        read(book(opf=opf))


def test_a_notebook_with_text_code_and_output(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# 分析\n", "说明"]},
        {
            "cell_type": "code",
            "source": "# not a heading\nprint(1)",
            "outputs": [
                {"output_type": "stream", "text": ["\x1b[31m1\x1b[0m\n"]},
                {"output_type": "display_data", "data": {"image/png": "AAAA" * 100}},
                {"output_type": "error", "ename": "ValueError", "evalue": "bad"},
                {"output_type": "execute_result", "data": {"text/plain": "x" * 9999}},
            ],
        },
        {"cell_type": "markdown", "source": "## Next\n```\nopen fence"},
    ]
    book = {"nbformat": 4, "metadata": {"kernelspec": {"language": "python"}}, "cells": cells}
    parsed = read(write(tmp_path / "a.ipynb", json.dumps(book)))
    assert parsed.title == "分析"
    assert [b.section for b in parsed.blocks] == [("分析",), ("分析", "Next")]
    text = parsed.blocks[0].text
    assert "python\n# not a heading\nprint(1)" in text
    assert "\n1\nValueError: bad\n" in text
    assert "AAAA" not in text
    assert "more characters" in text
    assert len(text) < 2500


@pytest.mark.parametrize("source", ["no", "[]", "{}", '{"cells": [1, {"cell_type": 3}]}'])
def test_what_is_no_notebook_is_named(tmp_path, source):
    with pytest.raises(UnreadableError, match=r"a\.ipynb"):
        read(write(tmp_path / "a.ipynb", source))


def test_json_by_the_paths_of_its_keys(tmp_path):
    data = {
        "name": "项目",
        "owner": {"city": "北京", "tags": ["a", "b"], "none": None},
        "people": [{"name": f"人{n}", "address": {"city": "上海"}, "ok": True} for n in range(60)],
    }
    parsed = read(write(tmp_path / "a.json", json.dumps(data)))
    assert found(parsed)[0] == ((), "name: 项目\nowner.city: 北京\nowner.tags: a, b")
    records = parsed.blocks[1:]
    assert len(records) > 2
    assert records[0].section[0] == "people"
    assert records[0].section[1].startswith("items 1-")
    lines = [line for b in records for line in b.text.split("\n")]
    assert lines == [f"name: 人{n}; address.city: 上海; ok: true" for n in range(60)]


def test_json_lines_with_a_broken_line(tmp_path):
    lines = ['{"q": "问", "a": {"b": 1}}', "", "{broken", '{"q": "two"}']
    for name in ("a.jsonl", "a.json"):
        parsed = read(write(tmp_path / name, "\n".join(lines)))
        assert found(parsed) == [(("lines 1-4",), "q: 问; a.b: 1\nq: two")]
        assert [p[:20] for p in parsed.problems] == ["line 3 is not JSON: "]


@pytest.mark.parametrize("source", ["{", "[1", "nonsense", '{"a": ' + "9" * 5000 + "}"])
def test_what_is_no_json_is_named(tmp_path, source):
    for name in ("a.json", "a.jsonl"):
        with pytest.raises(UnreadableError, match=rf"{name} is not JSON"):
            read(write(tmp_path / name, source))


def test_titles_of_restructured_text(tmp_path):
    source = """=====
手册
=====

Intro::

    Literal
    -------

安装
----
pip

Deep
~~~~
.. include:: /etc/passwd

=====  =====
a      b
=====  =====

使用
----
end
"""
    parsed = read(write(tmp_path / "a.rst", source))
    assert parsed.title == "手册"
    assert [b.section for b in parsed.blocks] == [
        ("手册",),
        ("手册", "安装"),
        ("手册", "安装", "Deep"),
        ("手册", "使用"),
    ]
    assert ".. include:: /etc/passwd" in parsed.blocks[2].text
    assert "root:" not in parsed.blocks[2].text


def test_python_by_functions_and_methods(tmp_path):
    source = '''"""模块."""
import os

@decorated
def first():
    return 1

class Thing:
    """A thing."""

    def method(self):
        pass

x = 1
'''
    parsed = read(write(tmp_path / "a.py", source))
    assert [(s, t.split("\n")[0]) for s, t in found(parsed)] == [
        ((), '"""模块."""'),
        (("first",), "@decorated"),
        (("Thing",), "class Thing:"),
        (("Thing", "method"), "    def method(self):"),
        ((), "x = 1"),
    ]


@pytest.mark.parametrize(
    "line",
    ["x = " + "-" * 200_000 + "1", "x = a" + ".b" * 100_000, "x = " + "[" * 3000],
    ids=["signs", "names", "brackets"],
)
def test_python_that_its_own_parser_cannot_hold_is_still_read(tmp_path, line):
    parsed = read(write(tmp_path / "a.py", f"def first():\n    pass\n\n\n{line}\n"))
    assert "def first" in parsed.blocks[0].text
    assert parsed.blocks[-1].text == line


@pytest.mark.parametrize(
    ("name", "source", "sections"),
    [
        ("a.py", "print 'two'\n\ndef f():\n  pass\n", [(), ("f",)]),
        ("a.go", "package m\n\n// Get does\nfunc (s *Server) Get(x int) {\n}\n", [(), ("Get",)]),
        ("a.rs", "use x;\n\npub fn run<T>(a: T) {\n}\n\nimpl Foo {\n}\n", [(), ("run",), ("Foo",)]),
        ("a.c", "#include <a.h>\n\nstatic int add(int a)\n{\n  if (a) f(a);\n}\n", [(), ("add",)]),
        ("a.ts", "export class A {\n}\n\nexport const go = async (x) => {\n}\n", [("A",), ("go",)]),
        ("a.sql", "CREATE TABLE IF NOT EXISTS users (\n id int\n);\n", [("users",)]),
        ("a.toml", "a = 1\n\n[tool.x]\nb = 2\n", [(), ("tool.x",)]),
        ("a.yaml", "a: 1\nb:\n  - 2\n", [()]),
        ("a.sh", "set -e\n\nbuild() {\n  make\n}\n", [(), ("build",)]),
    ],
)
def test_other_languages_by_their_definitions(tmp_path, name, source, sections):
    parsed = read(write(tmp_path / name, source))
    assert [b.section for b in parsed.blocks] == sections
    assert "\n".join(b.text for b in parsed.blocks).split() == source.split()


def test_code_made_to_slow_patterns_down_does_not(tmp_path):
    source = ("a " * 50_000 + "(\n") + ("x*" * 90 + "\n") * 2000 + ("word " * 39 + "\n") * 2000
    assert read(write(tmp_path / "a.c", source)).blocks


def test_folders_are_searched_for_documents_alone(tmp_path):
    wanted = ["a.docx", "b.tar.gz", "sub/c.PY", "sub/old.doc", "x.csv"]
    junk = ["~$a.docx", ".h.md", "package-lock.json", "lib.min.js", "node_modules/m/readme.md",
            "env/pyvenv.cfg", "env/lib/site.py", "__pycache__/x.py", ".git/a.md", "b.gz", "y.png",
            "Thumbs.db"]  # fmt: skip
    for name in wanted + junk:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [p.relative_to(tmp_path).as_posix() for p in discover([tmp_path]).files]
    assert sorted(names) == sorted(wanted)


def test_circles_of_links_end(tmp_path):
    write(tmp_path / "a.md", "x")
    os.symlink(tmp_path, tmp_path / "loop")
    os.symlink(tmp_path / "two.md", tmp_path / "one.md")
    os.symlink(tmp_path / "one.md", tmp_path / "two.md")
    assert discover([tmp_path]).files == [tmp_path / "a.md"]
    with pytest.raises(NoDocumentsError, match=r"no such file or folder: .*one\.md"):
        discover([tmp_path / "one.md"])
