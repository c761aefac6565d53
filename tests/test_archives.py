"""Archives: every document inside is read, and none can do harm."""

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import tempfile
import zipfile
import zlib

import pytest
from documents import write_pdf
from test_pdf_pages import drawn, picture_page, text_page

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.pool import ReaderPool
from mixtral_rag.ingest.readers import inside, read, zips


def found(parsed):
    return [(b.section, b.text) for b in parsed.blocks]


def pack(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def pdf(tmp_path):
    return write_pdf(tmp_path / "x.pdf", ["first", "second"]).read_bytes()


def members(pdf):
    return {"docs/a.md": "# 标题\n正文".encode(), "docs/b.pdf": pdf, "pic.png": b"\x89PNG",
            ".hidden.md": b"# no", "__MACOSX/docs/a.md": b"# no",
            "node_modules/x/readme.md": b"# no"}  # fmt: skip


EXPECTED = [
    (None, ("docs/a.md", "标题"), "# 标题\n正文"),
    (1, ("docs/b.pdf",), "first"),
    (2, ("docs/b.pdf",), "second"),
]


def test_members_of_a_zip_keep_pages_and_sections(tmp_path, pdf):
    parsed = read(pack(tmp_path / "a.zip", members(pdf)))
    assert [(b.page, b.section, b.text) for b in parsed.blocks] == EXPECTED
    assert (parsed.problems, parsed.n_pages) == ([], None)


@pytest.mark.parametrize("end", ["tar", "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz"])
def test_members_of_a_tar(tmp_path, pdf, end):
    kind = {"tgz": "gz", "tbz2": "bz2", "txz": "xz", "tar": ""}.get(end, end[4:])
    path = tmp_path / f"a.{end}"
    with tarfile.open(path, f"w:{kind}") as archive:
        for name, data in members(pdf).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    parsed = read(path)
    assert [(b.page, b.section, b.text) for b in parsed.blocks] == EXPECTED
    assert parsed.problems == []


def test_a_member_that_cannot_be_read_costs_only_itself(tmp_path):
    locked = write_pdf(tmp_path / "l.pdf", ["x"], password="p").read_bytes()
    pictures = drawn(tmp_path / "p.pdf", [text_page, lambda canvas: None, picture_page])
    parsed = read(
        pack(
            tmp_path / "a.zip",
            {
                "in/x.pdf": locked,
                "bad.docx": b"no",
                "scan.pdf": pictures.read_bytes(),
                "ok.txt": "fine",
            },
        )
    )
    assert [s for s, _ in found(parsed)] == [("scan.pdf",), ("ok.txt",)]
    assert [p.split(";")[0].split(":")[0] for p in parsed.problems] == [
        "in/x.pdf needs a password",
        "bad.docx is damaged",
        "scan.pdf",
    ]
    assert parsed.problems[2] == "scan.pdf: pages needs ocr: 3"  # and not the blank page
    assert not any(tempfile.gettempdir() in p for p in parsed.problems)


def test_members_with_a_password_are_told(tmp_path):
    path = pack(tmp_path / "a.zip", {"secret.txt": "x", "open.txt": "fine"})
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1  # the flag that says encrypted, of the first member
    path.write_bytes(data)
    parsed = read(path)
    assert found(parsed) == [(("open.txt",), "fine")]
    assert parsed.problems == ["secret.txt needs a password; save a copy without one"]


def test_archives_in_archives_to_a_bounded_depth(tmp_path):
    data = b"deepest"
    name = "t.txt"
    for level in range(5):
        data = pack(tmp_path / "n.zip", {name: data, f"level{level}.txt": "here"}).read_bytes()
        name = f"in{level}.zip"
    parsed = read(pack(tmp_path / "a.zip", {name: data}))
    assert found(parsed) == [
        (("in4.zip", "in3.zip", "level3.txt"), "here"),
        (("in4.zip", "level4.txt"), "here"),
    ]
    assert parsed.problems == ["in4.zip: in3.zip: in2.zip is inside too many other archives"]


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/etc/out.txt", "C:\\out.txt",
                                  "..\\out.txt"])  # fmt: skip
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_are_not_followed(tmp_path, name, kind):
    path = tmp_path / "sub" / f"a.{kind}"
    path.parent.mkdir()
    if kind == "zip":
        pack(path, {name: "evil", "ok.txt": "fine"})
    else:
        with tarfile.open(path, "w") as archive:
            for member, data in ((name, b"evil"), ("ok.txt", b"fine")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    before = set(tmp_path.rglob("*"))
    parsed = read(path)
    assert found(parsed) == [(("ok.txt",), "fine")]
    assert len(parsed.problems) == 1
    assert parsed.problems[0].endswith("leads out of the archive")
    assert set(tmp_path.rglob("*")) == before


def test_links_and_devices_are_not_followed(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("TOPSECRET")
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("s.txt", tarfile.SYMTYPE), ("h.txt", tarfile.LNKTYPE),
                           ("d.txt", tarfile.CHRTYPE), ("f.txt", tarfile.FIFOTYPE)):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
        info = tarfile.TarInfo("ok.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"fine"))
    parsed = read(path)
    assert found(parsed) == [(("ok.txt",), "fine")]
    assert [p.split()[0] for p in parsed.problems] == ["s.txt", "h.txt", "d.txt", "f.txt"]
    link = zipfile.ZipInfo("l.txt")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, str(secret))
        archive.writestr("ok.txt", "fine")
    parsed = read(tmp_path / "a.zip")
    assert found(parsed) == [(("ok.txt",), "fine")]
    assert parsed.problems == ["l.txt is a link, which is not followed"]


def test_nothing_stays_in_the_folder_for_temporary_files(tmp_path, monkeypatch, pdf):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    read(pack(tmp_path / "a.zip", {**members(pdf), "bad.docx": b"no"}))
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize("name", ["合同/甲方.txt", "朱镕基.txt", "报告 2024（终稿）.txt"])
def test_names_in_gbk_without_a_flag(tmp_path, name):
    path = tmp_path / "a.zip"
    raw = name.encode("gbk")
    pack(path, {"x" * len(raw): "fine"})
    path.write_bytes(path.read_bytes().replace(b"x" * len(raw), raw))
    assert found(read(path)) == [((name,), "fine")]


def test_names_that_are_not_chinese_stay_as_they_are(tmp_path):
    path = tmp_path / "a.zip"
    name = "Müller.txt"
    raw = name.encode("cp437")
    pack(path, {"x" * len(raw): "fine"})
    path.write_bytes(path.read_bytes().replace(b"x" * len(raw), raw))
    assert found(read(path)) == [((name,), "fine")]


def test_a_name_in_utf8_beside_the_old_one(tmp_path):
    old, new = b"?.txt", "日本語.txt".encode()
    field = struct.pack("<BI", 1, zlib.crc32(old)) + new
    info = zipfile.ZipInfo(old.decode())
    info.extra = struct.pack("<HH", 0x7075, len(field)) + field
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "fine")
    assert found(read(tmp_path / "a.zip")) == [(("日本語.txt",), "fine")]


def test_names_in_gbk_in_a_tar(tmp_path):
    with tarfile.open(
        tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="gbk"
    ) as archive:
        info = tarfile.TarInfo("合同.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"fine"))
    assert found(read(tmp_path / "a.tar")) == [(("合同.txt",), "fine")]


def test_a_zip_that_grows_without_measure_is_refused(tmp_path):
    path = pack(tmp_path / "a.zip", {"a.txt": b"0" * (64 << 20)})
    with pytest.raises(UnreadableError, match=r"a\.zip would grow to 64 MiB"):
        read(path)


def test_a_zip_that_says_it_is_small_gives_no_more_than_it_says(tmp_path):
    size = (64 << 20) - 0x010203
    path = pack(tmp_path / "a.zip", {"bomb.txt": b"0" * size, "ok.txt": "fine"})
    small = struct.pack("<I", 100)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", size), small))
    parsed = read(path)
    assert found(parsed) == [(("ok.txt",), "fine")]
    assert parsed.problems[0].startswith("bomb.txt is damaged")


@pytest.mark.parametrize(("end", "squeeze"), [("gz", gzip.compress), ("bz2", bz2.compress),
                                              ("xz", lzma.compress)])  # fmt: skip
def test_a_tar_that_grows_without_measure_is_left(tmp_path, end, squeeze):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in (("ok.txt", b"fine"), ("skipped.bin", bytes(48 << 20)), ("b.txt", b"b")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path = tmp_path / f"a.tar.{end}"
    path.write_bytes(squeeze(raw.getvalue()))
    parsed = read(path)
    assert found(parsed) == [(("ok.txt",), "fine")]
    assert parsed.problems == [
        "the rest was left out: it grows too much when unpacked and may be a trap"
    ]


def test_limits_hold_across_archives_in_archives(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "MOST_MEMBERS", 40)
    monkeypatch.setattr(inside._Room, "__init__", _small_room(members=25))
    inner = pack(tmp_path / "i.zip", {f"{n}.txt": f"text {n}" for n in range(10)}).read_bytes()
    parsed = read(pack(tmp_path / "a.zip", {f"{n}.zip": inner for n in range(10)}))
    assert 15 < len(parsed.blocks) < 25
    assert any("the rest was left out" in p for p in parsed.problems)


def _small_room(**limits):
    real = inside._Room.__init__

    def init(self):
        real(self, **limits)

    return init


def test_what_fits_of_an_archive_with_too_much_text_is_read(tmp_path):
    text = "A line of an ordinary text, which is long.\n" * 100_000  # 4.3 million characters
    path = pack(tmp_path / "a.zip", {f"{n}.txt": text for n in range(6)} | {"7.png": "no"})
    with ReaderPool(1) as pool:
        parsed = pool.submit(path).result()
    assert {b.section[0] for b in parsed.blocks} == {"0.txt", "1.txt", "2.txt"}
    assert parsed.problems == [
        "the rest was left out, from 3.txt on: more text than one document may have",
        "4.txt was left out",
        "5.txt was left out",
    ]


def test_a_member_whose_stored_size_lies_costs_only_itself(tmp_path):
    data = os.urandom(30_000).hex().encode()
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("big.txt", data)
        archive.writestr("ok.txt", "fine")
    size = struct.pack("<I", len(data))
    raw = path.read_bytes()
    assert raw.count(size) == 4  # two sizes, in front of the member and in the directory
    path.write_bytes(raw.replace(size + size, struct.pack("<II", 1 << 30, 100 << 20)))
    with zipfile.ZipFile(path) as archive, pytest.raises(UnreadableError, match=r"at big\.txt"):
        zips.part(archive, "big.txt")
    path.write_bytes(raw.replace(size + size, struct.pack("<II", 1 << 30, len(data))))
    parsed = read(path)
    assert found(parsed) == [(("ok.txt",), "fine")]
    assert parsed.problems == ["big.txt is damaged at big.txt: it ends too soon"]


def test_a_quine_of_many_overlapping_members_is_refused(tmp_path):
    """The directory names one stored kilobyte a great many times."""
    path = pack(tmp_path / "a.zip", {"a.txt": os.urandom(1 << 20)})
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry = data[start:end]
    count = 5000
    tail = struct.pack(
        "<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(entry) * count, start, 0
    )
    path.write_bytes(data[:start] + entry * count + tail)
    with pytest.raises(UnreadableError, match="would grow to"):
        read(path)


@pytest.mark.parametrize("end", ["zip", "tar", "tar.gz", "tar.xz"])
def test_damage_is_named(tmp_path, end):
    path = tmp_path / f"a.{end}"
    for data in (b"hello", bytes(3000), os.urandom(3000)):
        path.write_bytes(data)
        with pytest.raises(UnreadableError, match=rf"a\.{end}"):
            read(path)


def test_a_torn_tar_gives_what_it_has(tmp_path):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for n in range(4):
            data = os.urandom(20_000).hex().encode()
            info = tarfile.TarInfo(f"{n}.txt")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path = tmp_path / "a.tgz"
    path.write_bytes(raw.getvalue()[: len(raw.getvalue()) * 5 // 8])
    parsed = read(path)
    assert {s for s, _ in found(parsed)} == {("0.txt",), ("1.txt",)}
    assert any("damaged" in p for p in parsed.problems)
