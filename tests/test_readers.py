import pytest
from documents import write_pdf

from mixtral_rag.errors import EncryptedError, UnreadableError, UnsupportedError
from mixtral_rag.ingest.readers import Parsed, read


def text_of(parsed: Parsed) -> str:
    return "\n".join(b.text for b in parsed.blocks)


def test_pdf_text_comes_with_pages_and_title(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", ["Hello page one", "你好，第二页"], title="My title")
    parsed = read(path)
    assert (parsed.title, parsed.n_pages, parsed.pages) == ("My title", 2, {})
    assert [(b.page, b.text) for b in parsed.blocks] == [(1, "Hello page one"), (2, "你好，第二页")]


def test_pdf_pages_without_text_are_reported(tmp_path):
    parsed = read(write_pdf(tmp_path / "a.pdf", ["one", "", "three"]))
    assert parsed.pages == {"empty": [2]}


def test_a_pdf_of_empty_pages_is_not_done_in_silence(tmp_path):
    with pytest.raises(UnreadableError, match="no text"):
        read(write_pdf(tmp_path / "a.pdf", ["", ""]))


def test_an_encrypted_pdf_says_so_and_one_without_a_password_is_read(tmp_path):
    with pytest.raises(EncryptedError, match=r"secret\.pdf needs a password"):
        read(write_pdf(tmp_path / "secret.pdf", ["x"], password="abc"))
    assert text_of(read(write_pdf(tmp_path / "open.pdf", ["x"], password=""))) == "x"


@pytest.mark.parametrize("data", [b"not a pdf", b"%PDF-1.7\n%broken"])
def test_a_broken_pdf_is_named(tmp_path, data):
    path = tmp_path / "bad.pdf"
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match=r"bad\.pdf"):
        read(path)


def test_running_headers_are_dropped(tmp_path):
    bodies = ["red", "blue", "green", "pink", "grey", "gold"]
    pages = [f"The Great Manual {n} / 6\n{body}" for n, body in enumerate(bodies)]
    assert text_of(read(write_pdf(tmp_path / "a.pdf", pages))).split() == bodies


def test_the_outline_of_a_real_book_gives_sections(data):
    parsed = read(data / "docs" / "maint-guide.zh-cn.pdf")
    assert (parsed.title, parsed.n_pages) == ("Debian 新维护者手册", 63)
    block = next(b for b in parsed.blocks if b.section == ("第一步", "挑一个你喜欢的程序"))
    assert block.page == 13
    assert block.text.startswith("2.2 挑一个你喜欢的程序")
    # a sentence that the page broke after 发行版 reads on
    assert "并已经安置于发行版仓库中。" in block.text


def test_numbered_headings_stand_in_for_an_outline(examples):
    parsed = read(examples / "bzip2-manual.pdf")
    assert parsed.n_pages == 38
    assert ("2.5. MEMORY MANAGEMENT",) in {b.section for b in parsed.blocks}


def test_html_gives_headings_lists_tables_and_no_scripts(tmp_path):
    path = tmp_path / "a.html"
    path.write_text(
        "<html><head><title>T &amp; t</title><style>b{}</style></head><body><nav>menu</nav>"
        "<p>intro</p><h1>One</h1><p>a<b>b</b> c</p><ul><li>x<li>y</ul>"
        "<h2>Two</h2><table><tr><td>1</td><td>2</td></tr></table><script>evil()</script>"
        "<pre>  code\n  more</pre></body></html>"
    )
    parsed = read(path)
    assert parsed.title == "T & t"
    assert [(b.section, b.text) for b in parsed.blocks] == [
        ((), "intro"),
        (("One",), "One\nab c\n- x\n- y"),
        (("One", "Two"), "Two\n1 | 2 |\ncode\nmore"),
    ]


def test_html_in_a_declared_encoding(tmp_path):
    path = tmp_path / "a.html"
    path.write_bytes('<meta charset="gb18030"><p>简体中文</p>'.encode("gb18030"))
    assert text_of(read(path)) == "简体中文"


def test_markdown_is_cut_at_headings_but_not_inside_code(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("# Top\nintro\n\n## Sub `x`\n```\n# not a heading\n```\n# Next\nend\n")
    parsed = read(path)
    assert parsed.title == "Top"
    assert [b.section for b in parsed.blocks] == [("Top",), ("Top", "Sub x"), ("Next",)]
    assert "# not a heading" in parsed.blocks[1].text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_text_in_the_usual_encodings(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("第一行\r\n第二行".encode(encoding))
    assert text_of(read(path)) == "第一行\n第二行"


def test_binary_data_is_refused_rather_than_garbled(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(UnreadableError, match=r"a\.txt"):
        read(path)


def test_numbered_headings_of_a_real_text(data):
    parsed = read(data / "docs" / "debian-faq.zh-cn.txt")
    sections = {b.section[-1] for b in parsed.blocks if b.section}
    assert "1.2. 什么是 Debian GNU/Linux？" in sections
    # a heading over two lines
    assert (
        "3.1.7. 为什么 testing 的问题可以持续几个月？unstable 中的修复不会直接进入 testing 吗？"
        in sections
    )


def test_empty_and_unknown_files_are_named(tmp_path):
    (tmp_path / "e.txt").touch()
    (tmp_path / "s.txt").write_text(" \n ")
    (tmp_path / "x.xyz").write_text("x")
    with pytest.raises(UnreadableError, match=r"e\.txt is empty"):
        read(tmp_path / "e.txt")
    with pytest.raises(UnreadableError, match="no text"):
        read(tmp_path / "s.txt")
    with pytest.raises(UnsupportedError, match=r"\.xyz"):
        read(tmp_path / "x.xyz")
    with pytest.raises(UnreadableError, match="No such file"):
        read(tmp_path / "none.txt")


def test_a_pdf_with_an_owner_password_in_aes_is_read(tmp_path):
    from pypdf import PdfReader, PdfWriter

    path = write_pdf(tmp_path / "a.pdf", ["Protected but open"], title="T")
    writer = PdfWriter(clone_from=PdfReader(path))
    writer.encrypt("", "owner", algorithm="AES-256")
    writer.write(path)
    assert text_of(read(path)) == "Protected but open"
    writer.encrypt("user", "owner", algorithm="AES-256")
    writer.write(path)
    with pytest.raises(EncryptedError, match="needs a password"):
        read(path)


def test_one_broken_page_does_not_lose_the_others(tmp_path):
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import NullObject

    path = write_pdf(tmp_path / "a.pdf", ["one", "two", "three"])
    writer = PdfWriter(clone_from=PdfReader(path))
    writer.root_object["/Pages"]["/Kids"][1] = NullObject()
    writer.write(path)
    parsed = read(path)
    assert text_of(parsed).split() == ["one", "three"]
    assert parsed.pages == {"garbled": [2]}
    assert parsed.problems == ["damaged: page 2"]


def test_figures_at_page_edges_are_text_and_page_numbers_are_not(tmp_path):
    pages = [f"{n * 17}\nReport text {'abcdef'[n]}\n{n * n + 40}\n{n + 1}" for n in range(6)]
    text = text_of(read(write_pdf(tmp_path / "a.pdf", pages)))
    for n in range(6):
        assert str(n * n + 40) in text.split()
        assert str(n * 17) in text.split()
    assert text.split()[-1] == "65"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<html><head><title>T</title><body><p>no end of head", "no end of head"),
        ("<p>a" * 3000 + "<p>end", "end"),
        ("<ul>" + "<li>x" * 3000 + "</ul>end", "end"),
        ("<table>" + "<tr><td>1" * 2000 + "</table>end", "end"),
        ("<div>" * 200 + "deep" + "</div>" * 200, "deep"),
        ("<![foo bar> text <p>more", "more"),
    ],
)
def test_html_as_people_write_it(tmp_path, source, text):
    path = tmp_path / "a.html"
    path.write_text(source)
    assert text_of(read(path)).endswith(text)


def test_a_heading_cannot_grow_without_bound(tmp_path):
    path = tmp_path / "a.html"
    path.write_text(f"<title>{'t' * 99999}</title><h1>{'h' * 99999}</h1><p>text</p>")
    parsed = Parsed.from_dict(read(path).as_dict())
    assert len(parsed.title) == 160
    assert all(len(h) <= 160 for b in parsed.blocks for h in b.section)
    assert text_of(parsed).endswith("text")
