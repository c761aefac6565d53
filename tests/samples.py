"""A small good document of each format, made by the libraries people make them with."""

import bz2
import email.message
import gzip
import importlib.util
import io
import json
import lzma
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from ole_writer import message, write_ole

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


ROWS = (["name", "age"], ["Reineke", 7], ["小狐狸", 2.5])


def xlsx() -> bytes:
    import xlsxwriter

    out = io.BytesIO()
    with xlsxwriter.Workbook(out) as book:
        sheet = book.add_worksheet("Foxes")
        for i, row in enumerate(ROWS):
            sheet.write_row(i, 0, row)
        book.add_worksheet("More").write(0, 0, TEXT)
    return out.getvalue()


def xls() -> bytes:
    import xlwt

    book = xlwt.Workbook()
    sheet = book.add_sheet("Foxes")
    for i, row in enumerate(ROWS):
        for j, value in enumerate(row):
            sheet.write(i, j, value)
    return _saved(book)


def ods() -> bytes:
    namespaces = "".join(
        f' xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for name in ("office", "table", "text")
    )
    rows = "".join(
        "<table:table-row>"
        + "".join(
            f'<table:table-cell office:value-type="string"><text:p>{value}</text:p>'
            "</table:table-cell>"
            for value in row
        )
        + "</table:table-row>"
        for row in ROWS
    )
    kind = "application/vnd.oasis.opendocument.spreadsheet"
    manifest = (
        "<?xml version='1.0'?><m:manifest xmlns:m='urn:oasis:names:tc:opendocument:xmlns:manifest"
        f":1.0'><m:file-entry m:full-path='/' m:media-type='{kind}'/></m:manifest>"
    )
    return zipped({
        "mimetype": kind.encode(),
        "META-INF/manifest.xml": manifest.encode(),
        "content.xml": (
            f"<?xml version='1.0'?><office:document-content{namespaces}><office:body>"
            f'<office:spreadsheet><table:table table:name="Foxes">{rows}</table:table>'
            "</office:spreadsheet></office:body></office:document-content>"
        ).encode(),
    })  # fmt: skip


def msg() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tree = message({0x0037: "Foxes", 0x1000: TEXT, 0x0C1A: "Reineke"})
        return bytes(write_ole(Path(folder, "a.msg"), tree).read_bytes())


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
    ".ods": [ods],
    ".csv": [csv],
    ".tsv": [tsv],
    ".epub": [epub],
    ".eml": [eml],
    ".msg": [msg],
    ".ipynb": [notebook],
    ".json": [json_],
    ".jsonl": [jsonl],
    ".py": [code],
    ".zip": [archive],
    ".tar": [tar],
    ".tar.gz": [lambda: gzip.compress(tar(), mtime=0)],
    ".tar.bz2": [lambda: bz2.compress(tar())],
    ".txz": [lambda: lzma.compress(tar())],
    ".doc": [html, docx],
}
"""By suffix; where formats share a reader, one suffix of each format."""
if importlib.util.find_spec("xlwt"):  # no longer developed, so not asked for
    SAMPLES[".xls"] = [xls]
