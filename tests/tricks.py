"""Documents made to do harm: bombs, nesting, entities, paths out of their folder."""

import base64
import io
import json
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import samples
from samples import zipped

Trick = tuple[str, Callable[[], bytes]]  # a file name that says what it is, and its content

MAIN_PARTS = {
    ".docx": "word/document.xml",
    ".pptx": "ppt/slides/slide1.xml",
    ".xlsx": "xl/worksheets/sheet1.xml",
    ".epub": "a/c.xhtml",
}
LAUGHS = '<!DOCTYPE x [<!ENTITY l0 "lol">' + "".join(
    f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10)
) + "]>"  # fmt: skip


def tricks(secret: Path, *, scale: float = 1.0) -> Iterator[Trick]:
    """All tricks; those with a secret try to show what `secret` holds.

    Args:
        secret: a file that no document may read.
        scale: 1 for bombs of some hundred megabytes, less for quick ones.
    """
    yield from _pdfs(scale)
    yield from _xml(secret, scale)
    yield from _archives(scale)
    yield from _texts(secret, scale)
    yield from _mails(scale)


def _pdf(objects: list[str | bytes], trailer: str = "") -> bytes:
    """A PDF of the given objects; the first is the catalog."""
    out, offsets = bytearray(b"%PDF-1.7\n"), []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n" % number + (body.encode() if isinstance(body, str) else body)
        out += b"\nendobj\n"
    at = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    out += f"trailer\n<< /Size {size} /Root 1 0 R {trailer} >>\nstartxref\n{at}\n%%EOF\n".encode()
    return bytes(out)


def _stream(data: bytes, extra: str = "") -> bytes:
    return f"<< /Length {len(data)} {extra} >>\nstream\n".encode() + data + b"\nendstream"


_CATALOG = "<< /Type /Catalog /Pages 2 0 R >>"
_PAGES = "<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
_FONT = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
_SHOW = b"BT /F1 12 Tf 72 720 Td (Foxes) Tj ET"


def _page(resources: str = "") -> str:
    return ("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
            f"/Resources << /Font << /F1 5 0 R >> {resources} >> >>")  # fmt: skip


def _pdfs(scale: float) -> Iterator[Trick]:
    form = "/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X {} 0 R >> >>"
    yield "form-in-itself.pdf", lambda: _pdf([
        _CATALOG, _PAGES, _page("/XObject << /X 6 0 R >>"), _stream(_SHOW + b" /X Do"), _FONT,
        _stream(b"/X Do /X Do", form.format(6)),
    ])  # fmt: skip
    deep = [_stream(b"/X Do " * 10, form.format(n + 1)) for n in range(6, 26)]
    yield "forms-of-forms.pdf", lambda: _pdf([
        _CATALOG, _PAGES, _page("/XObject << /X 6 0 R >>"), _stream(b"/X Do"), _FONT, *deep,
        _stream(_SHOW, "/Type /XObject /Subtype /Form /BBox [0 0 9 9]"),
    ])  # fmt: skip
    yield "million-pages-claimed.pdf", lambda: _pdf([
        _CATALOG, "<< /Type /Pages /Kids [3 0 R] /Count 1000000 >>", _page(), _stream(_SHOW), _FONT,
    ])  # fmt: skip
    million = int(1e6 * scale)
    yield "same-page-a-million-times.pdf", lambda: _pdf([
        _CATALOG, f"<< /Type /Pages /Kids [{'3 0 R ' * million}] /Count {million} >>", _page(),
        _stream(_SHOW), _FONT,
    ])  # fmt: skip
    yield "pages-in-a-circle.pdf", lambda: _pdf([
        _CATALOG, "<< /Type /Pages /Kids [3 0 R] /Count 5 >>",
        "<< /Type /Pages /Parent 2 0 R /Kids [2 0 R 3 0 R] /Count 5 >>",
    ])  # fmt: skip
    yield "outline-in-a-circle.pdf", lambda: _pdf([
        "<< /Type /Catalog /Pages 2 0 R /Outlines 6 0 R >>", _PAGES, _page(), _stream(_SHOW), _FONT,
        "<< /First 7 0 R /Last 7 0 R /Count 9 >>",
        "<< /Title (a) /Parent 6 0 R /Next 8 0 R /First 6 0 R /Dest [3 0 R /Fit] >>",
        "<< /Title (b) /Parent 6 0 R /Next 7 0 R /First 7 0 R /Dest [3 0 R /Fit] >>",
    ])  # fmt: skip
    size = int(scale * (1 << 30))
    for name, data in (("zeros", bytes(1 << 20)), ("text", (b"(aaaa) Tj " * 104858)[: 1 << 20])):
        yield f"bomb-of-{name}.pdf", lambda data=data: _pdf([
            _CATALOG, _PAGES, _page(),
            _stream(_deflated(b"BT /F1 1 Tf ", data, size), "/Filter /FlateDecode"), _FONT,
        ])  # fmt: skip
    yield "bomb-in-bombs.pdf", lambda: _pdf([
        _CATALOG, _PAGES, _page(),
        _stream(zlib.compress(_deflated(b"", bytes(1 << 20), size)),
                "/Filter [/FlateDecode /FlateDecode]"), _FONT,
    ])  # fmt: skip
    yield (
        "xref-in-a-circle.pdf",
        lambda: _pdf([_CATALOG, _PAGES, _page(), _stream(_SHOW), _FONT], "/Prev 9"),
    )
    yield "nested-arrays.pdf", lambda: _pdf([
        _CATALOG, _PAGES, _page(), _stream(_SHOW), _FONT, "[" * 200_000 + "]" * 200_000,
    ])  # fmt: skip
    yield "huge-page.pdf", lambda: _pdf([
        _CATALOG, _PAGES, _page().replace("612 792", "1e9 1e9"), _stream(_SHOW), _FONT,
    ])  # fmt: skip
    cmap = b"/CIDInit /ProcSet findresource begin\n1 beginbfrange\n<0000> <ffffffff> <0041>\n"
    yield "huge-cmap.pdf", lambda: _pdf([
        _CATALOG, _PAGES, _page(), _stream(_SHOW), _FONT[:-2] + " /ToUnicode 6 0 R >>",
        _stream(cmap + b"endbfrange\n"),
    ])  # fmt: skip


def _deflated(head: bytes, unit: bytes, size: int) -> bytes:
    packer = zlib.compressobj(6)
    parts = [packer.compress(head)]
    parts += [packer.compress(unit) for _ in range(max(1, size // len(unit)))]
    return b"".join([*parts, packer.flush()])


def _xml(secret: Path, scale: float) -> Iterator[Trick]:
    outside = f'<!DOCTYPE x [<!ENTITY s SYSTEM "file://{secret}">]>'
    include = (
        f'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{secret}" parse="text"/>'
    )
    for suffix, part in MAIN_PARTS.items():
        make = samples.SAMPLES[suffix][0]
        for name, edit in (
            ("laughs", lambda xml: _with_entity(xml, LAUGHS, "&l9;")),
            ("secret", lambda xml: _with_entity(xml, outside, "&s;")),
            ("secret-include", lambda xml: _with_entity(xml, "", include)),
            ("deep", lambda xml: _with_entity(xml, "", "<a>" * 100_000 + "</a>" * 100_000)),
        ):
            yield (
                f"{name}{suffix}",
                lambda make=make, part=part, edit=edit: _edited(make(), part, edit),
            )
        yield f"bomb{suffix}", lambda make=make, part=part: _bomb(make(), part, scale)
    page = samples.html().decode().replace("<!DOCTYPE html>", "")
    for suffix in (".html", ".xhtml"):
        yield f"laughs{suffix}", lambda: (LAUGHS + page.replace("Foxes", "&l9;")).encode()
        yield f"secret{suffix}", lambda: (outside + page.replace("Foxes", "&s;")).encode()
        yield (
            f"secret-frame{suffix}",
            lambda: page.replace(
                "<p>",
                f'<iframe src="file://{secret}"></iframe><object data="{secret}"></object><p>',
            ).encode(),
        )
    yield "far-cell.xlsx", lambda: _edited(
        samples.xlsx(), MAIN_PARTS[".xlsx"],
        lambda xml: xml.replace(b"A3", b"XFD1048576").replace(b"A1:", b"A1:XFD1048576"),
    )  # fmt: skip


def _with_entity(xml: bytes, doctype: str, text: str) -> bytes:
    """XML with a document type, and `text` where its first text stood."""
    head, mark, rest = xml.rpartition(b"?>")
    rest = re.sub(rb">(Foxes|name)<", b">" + text.encode() + b"<", rest, count=1)
    return head + mark + doctype.encode() + rest


def _edited(data: bytes, part: str, edit: Callable[[bytes], bytes]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    strings = "xl/sharedStrings.xml"  # where the texts of sheets stand
    part = strings if strings in members and b"Foxes" in members[strings] else part
    members[part] = edit(members[part])
    return zipped(members)


def _bomb(data: bytes, part: str, scale: float) -> bytes:
    """The document with its main part grown by some hundred megabytes of text."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as file, zipfile.ZipFile(out, "w", 8) as bomb:
        for name in file.namelist():
            if name != part:
                bomb.writestr(name, file.read(name))
                continue
            xml = file.read(name)
            at = max(xml.find(b"Foxes"), xml.find(b"<sheetData>") + 11, 0)
            with bomb.open(name, "w", force_zip64=True) as member:
                member.write(xml[:at])
                for _ in range(max(1, int(500 * scale))):
                    member.write(b"text " * 209715)
                member.write(xml[at:])
    return out.getvalue()


def _archives(scale: float) -> Iterator[Trick]:
    yield "nested-bomb.zip", lambda: _nested_zip(scale)
    yield "bomb.zip", lambda: zipped({"a.txt": b"text " * int(2e8 * scale)})
    yield "many.zip", lambda: zipped({f"{i}.txt": b"x" for i in range(int(50_000 * scale))})
    yield "paths.zip", lambda: zipped({
        "../escaped.txt": b"escaped", "/tmp/../tmp/escaped.txt": b"escaped",
        "..\\escaped.txt": b"escaped", "C:\\escaped.txt": b"escaped", "a/../../escaped.txt": b"e",
        "n" * 300 + ".txt": b"long", "con.txt": b"x", "good.txt": b"good",
    })  # fmt: skip
    yield "itself.zip", lambda: zipped({"a.zip": zipped({"a.zip": samples.archive()})})
    yield "lying.zip", _lying_zip
    yield "paths.tar", _tar_of_paths
    yield "bomb.tar.gz", lambda: _gzip(_tar_with_size(int(5e8 * scale), full=True))
    yield "claims.tar", lambda: _tar_with_size(1 << 50, full=False)
    yield "bomb.tgz", lambda: _gzip(bytes(int(5e8 * scale)))


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(data) + packer.flush()


def _nested_zip(scale: float) -> bytes:
    data = zipped({"a.txt": bytes(int(1e8 * scale))})
    for _ in range(6):
        data = zipped({f"{i}.zip": data for i in range(10)})
    return data


def _lying_zip() -> bytes:
    """The directory says that a member is small, and its data says otherwise."""
    data = bytearray(zipped({"a.txt": b"text " * 5_000_000}))
    size = (25_000_000).to_bytes(4, "little")
    for at in range(len(data) - 4):
        if data[at : at + 4] == size:
            data[at : at + 4] = (100).to_bytes(4, "little")
    return bytes(data)


def _tar_of_paths() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name in ("../escaped.txt", "/tmp/escaped.txt", "good.txt"):
            info = tarfile.TarInfo(name)
            info.size = 7
            file.addfile(info, io.BytesIO(b"escaped"))
        for name, kind, target in (
            ("link.txt", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.txt", tarfile.LNKTYPE, "/etc/passwd"),
            ("loop.txt", tarfile.SYMTYPE, "loop.txt"),
            ("up", tarfile.SYMTYPE, ".."),
            ("up/escaped.txt", tarfile.REGTYPE, ""),
            ("pipe.txt", tarfile.FIFOTYPE, ""),
            ("null.txt", tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.devmajor, info.devminor = kind, target, 1, 5
            file.addfile(info)
    return out.getvalue()


def _tar_with_size(size: int, *, full: bool) -> bytes:
    info = tarfile.TarInfo("a.txt")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + b"text" * ((size if full else 1024) // 4)


def _texts(secret: Path, scale: float) -> Iterator[Trick]:
    yield (
        "secret-include.rst",
        lambda: (
            f"Foxes\n=====\n\n.. include:: {secret}\n\n.. raw:: html\n   :file: {secret}\n\n"
            f".. csv-table:: x\n   :file: {secret}\n\n.. literalinclude:: {secret}\n\ntext\n"
        ).encode(),
    )
    yield "secret-image.md", lambda: f"# F\n\n![x]({secret}) <iframe src='{secret}'>\n".encode()
    long = int(2e7 * scale)
    for suffix in (".txt", ".md", ".html", ".csv", ".rst", ".py", ".json", ".eml"):
        yield f"long-line{suffix}", lambda: b"word " * (long // 5)
        yield f"long-word{suffix}", lambda: "长".encode() * (long // 3)
        yield f"brackets{suffix}", lambda: b"[" * int(100_000 * scale**0.5)
        yield f"nothing-but-zeros{suffix}", lambda: bytes(100_000)
        yield f"line-feeds{suffix}", lambda: b"\n" * (long // 4)
    n = int(100_000 * scale**0.5)
    yield "deep.json", lambda: b"[" * n + b"]" * n
    yield "deep-objects.json", lambda: b'{"a":' * n + b"1" + b"}" * n
    yield "big-number.json", lambda: b'{"a": ' + b"9" * n + b', "b": 1e99999}'
    yield "keys.json", lambda: json.dumps({str(i): i for i in range(n)}).encode()
    yield "deep.ipynb", lambda: b'{"cells":' + b"[" * n + b"]" * n + b"}"
    yield "deep.html", lambda: b"<div>" * n + b"text"
    yield "deep-tables.html", lambda: b"<table><tr><td>" * (n // 5) + b"text"
    yield "deep-bold.html", lambda: b"<b>" * n + b"text" + b"</b>" * n
    yield "attributes.html", lambda: b"<p " + b"a=b " * n + b">text"
    yield "quotes.md", lambda: b">" * n + b"text"
    yield "lists.md", lambda: b"".join(b" " * i * 2 + b"- a\n" for i in range(2000))
    yield "stars.md", lambda: b"*a " * n + b"**a*" * n
    yield "links.md", lambda: b"[a](" * n
    yield "images.md", lambda: b"![" * n + b"a"
    yield "ticks.md", lambda: b"".join(b"`" * i + b" " for i in range(1500))
    yield "references.md", lambda: b"".join(b"[a%d]: b\n" % i for i in range(n)) + b"[a]" * n
    yield "headings.md", lambda: b"# a\n" * n
    yield "headings.rst", lambda: b"A\n=\n\nB\n-\n\n" * (n // 10)
    yield "deep.rst", lambda: b"".join(b" " * i + b"- a\n\n" for i in range(1000))
    yield "numbers.txt", lambda: b"1.1.1.1.1.1.1 " * n
    yield "columns.csv", lambda: b"a," * 1_000_000 + b"\n" + b"1," * 1_000_000
    yield "rows.csv", lambda: b"a,b\n" * int(2e6 * scale)
    yield "quote.csv", lambda: b'a,"' + b"b\n" * n


def _mails(scale: float) -> Iterator[Trick]:
    n = int(100_000 * scale**0.5)
    for name, make in {
        "headers.eml": lambda: b"".join(b"X-%d: a\n" % i for i in range(n)) + b"\ntext",
        "long-header.eml": lambda: b"X: " + b"=?utf-8?q?a?= " * n + b"\n\ntext",
        "deep.eml": lambda: _parts_in_parts(2000),
        "messages.eml": lambda: b"Content-Type: message/rfc822\n\n" * 3000 + b"\ntext",
        "outside.eml": lambda: (
            b"Content-Type: message/external-body; access-type=local-file; "
            b'name="/etc/passwd"\n\nContent-Type: text/plain\n\ntext'
        ),
        "attachment.eml": lambda: (
            b'Content-Type: application/zip; name="a.zip"\n'
            b"Content-Transfer-Encoding: base64\n"
            b'Content-Disposition: attachment; filename="../../escaped.zip"\n\n'
            + base64.encodebytes(_nested_zip(scale))
        ),
    }.items():
        yield name, lambda make=make: b"From: a@a.example\nSubject: Foxes\n" + make()


def _parts_in_parts(depth: int) -> bytes:
    parts = [
        f'Content-Type: multipart/mixed; boundary="b{i}"\n\n--b{i}\n'.encode() for i in range(depth)
    ]
    return b"".join(parts) + b"Content-Type: text/plain\n\ntext\n"


def paths(folder: Path) -> Iterator[Path]:
    """Names in a folder that are no regular files."""
    for name, target in (("loop.txt", "loop.txt"), ("a.md", "b.md"), ("b.md", "a.md"),
                         ("folder.txt", "."), ("null.txt", "/dev/null"), ("zero.txt", "/dev/zero"),
                         ("gone.pdf", "nowhere.pdf")):  # fmt: skip
        link = folder / name
        link.symlink_to(target)
        yield link
    pipe = folder / "pipe.html"
    os.mkfifo(pipe)
    yield pipe
    (folder / "folder.docx").mkdir()
    yield folder / "folder.docx"
