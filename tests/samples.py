"""A small good document of each format, made by the libraries people make them with."""

import email.message
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable

TEXT = "Chapter 1. Foxes\n\nThe quick brown fox jumps over the lazy dog. 你好，世界。\n" * 3


def pdf(*, compressed: int = 1) -> bytes:
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.pdfgen.canvas import Canvas

    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    out = io.BytesIO()
    canvas = Canvas(out, pageCompression=compressed, invariant=True)
    canvas.setTitle("Foxes")
    for number in (1, 2, 3):
        canvas.bookmarkPage(f"p{number}")
        canvas.addOutlineEntry(f"Chapter {number}", f"p{number}", level=0)
        canvas.setFont("STSong-Light", 11)
        for i, line in enumerate(TEXT.split("\n")):
            canvas.drawString(60, 780 - 16 * i, line)
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def markdown() -> bytes:
    return (
        "# Foxes\n\n" + TEXT + "\n## Table\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "- one\n- two\n\n```python\nprint(1)\n```\n\n> said [x](http://a.example)\n"
    ).encode()


def html() -> bytes:
    return (
        "<!DOCTYPE html><html><head><meta charset='utf-8'><title>Foxes</title></head><body>"
        f"<h1>Foxes</h1><p>{TEXT}</p><table><tr><td>1</td><td>2</td></tr></table>"
        "<ul><li>one</li></ul><pre>code</pre></body></html>"
    ).encode()


def rst() -> bytes:
    return (
        f"Foxes\n=====\n\n{TEXT}\nMore\n----\n\n- one\n- two\n\n.. note:: said\n\n"
        "=== ===\n a   b\n=== ===\n 1   2\n=== ===\n\n::\n\n   code\n"
    ).encode()


def docx() -> bytes:
    import docx

    document = docx.Document()
    document.add_heading("Foxes", 1)
    document.add_paragraph(TEXT)
    table = document.add_table(rows=2, cols=2)
    table.cell(0, 0).text, table.cell(1, 1).text = "head", "value"
    document.add_heading("More", 2)
    document.add_paragraph("one", style="List Bullet")
    return _saved(document)


def pptx() -> bytes:
    from pptx import Presentation

    deck = Presentation()
    for title in ("Foxes", "More"):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = title, TEXT
        slide.notes_slide.notes_text_frame.text = "a note"
    return _saved(deck)


def xlsx() -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "Foxes"
    for row in (["name", "age"], ["Reineke", 7], ["小狐狸", 2.5]):
        book.active.append(row)
    book.create_sheet("More").append([TEXT])
    return _saved(book)


def _saved(document) -> bytes:
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def csv() -> bytes:
    return 'name,age,say\nReineke,7,"a, b"\n小狐狸,2,你好\n'.encode() * 5


def tsv() -> bytes:
    return csv().replace(b",", b"\t")


def epub() -> bytes:
    page = "<?xml version='1.0' encoding='utf-8'?><html xmlns='http://www.w3.org/1999/xhtml'>"
    page += f"<head><title>Foxes</title></head><body><h1>Foxes</h1><p>{TEXT}</p></body></html>"
    return zipped({
        "mimetype": b"application/epub+zip",
        "META-INF/container.xml": b"<?xml version='1.0'?><container version='1.0' xmlns="
        b"'urn:oasis:names:tc:opendocument:xmlns:container'><rootfiles><rootfile full-path="
        b"'a/b.opf' media-type='application/oebps-package+xml'/></rootfiles></container>",
        "a/b.opf": b"<?xml version='1.0'?><package xmlns='http://www.idpf.org/2007/opf' version="
        b"'3.0'><metadata xmlns:dc='http://purl.org/dc/elements/1.1/'><dc:title>Foxes</dc:title>"
        b"</metadata><manifest><item id='c' href='c.xhtml' media-type='application/xhtml+xml'/>"
        b"</manifest><spine><itemref idref='c'/></spine></package>",
        "a/c.xhtml": page.encode(),
    })  # fmt: skip


def eml() -> bytes:
    message = email.message.EmailMessage()
    message["From"], message["To"] = "a@a.example", "b@b.example"
    message["Subject"], message["Date"] = "Foxes 狐狸", "Mon, 02 Nov 2026 10:00:00 +0000"
    message.set_content(TEXT)
    message.add_alternative(html().decode(), subtype="html")
    message.add_attachment(csv(), maintype="text", subtype="csv", filename="a.csv")
    return message.as_bytes()


def notebook() -> bytes:
    output = {"output_type": "stream", "name": "stdout", "text": ["1\n"]}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Foxes\n", TEXT]},
        {"cell_type": "code", "metadata": {}, "source": ["print(1)"], "outputs": [output],
         "execution_count": 1},
    ]  # fmt: skip
    book = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    return json.dumps(book, ensure_ascii=False).encode()


def json_() -> bytes:
    return json.dumps({"title": "Foxes", "text": TEXT, "n": [1, 2.5, None, {"a": "b"}]}).encode()


def jsonl() -> bytes:
    return b"\n".join([json_()] * 5)


def code() -> bytes:
    return f'"""Foxes."""\n\n\ndef fox(n):\n    """{TEXT}"""\n    return n + 1\n'.encode()


def archive() -> bytes:
    return zipped({"a/foxes.txt": TEXT.encode(), "b.md": markdown(), "c.html": html()})


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name, data in {"a/foxes.txt": TEXT.encode(), "b.md": markdown()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


SAMPLES: dict[str, list[Callable[[], bytes]]] = {
    ".pdf": [pdf, lambda: pdf(compressed=0)],
    ".md": [markdown],
    ".html": [html],
    ".xhtml": [html],
    ".txt": [TEXT.encode, lambda: TEXT.encode("gb18030"), lambda: TEXT.encode("utf-16")],
    ".rst": [rst],
    ".docx": [docx],
    ".pptx": [pptx],
    ".xlsx": [xlsx],
    ".csv": [csv],
    ".tsv": [tsv],
    ".epub": [epub],
    ".eml": [eml],
    ".ipynb": [notebook],
    ".json": [json_],
    ".jsonl": [jsonl],
    ".py": [code],
    ".zip": [archive],
    ".tar": [tar],
    ".tgz": [lambda: gzip.compress(tar(), mtime=0)],
    ".doc": [html, docx],
}
"""By suffix; where formats share a reader, one suffix of each format."""
