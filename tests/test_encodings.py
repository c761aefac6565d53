import pytest
from languages import CASES, TEXTS

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers import read
from mixtral_rag.ingest.readers.encoding import decode


def cut(text: str, length: int) -> list[str]:
    return [text[i : i + length] for i in range(0, len(text) - length, length)]


def outcomes(tmp_path, language, encoding, length):
    """How many pieces of a text were read right, wrong, and refused."""
    right = wrong = refused = 0
    for piece in cut(TEXTS[language], length):
        data = piece.encode(encoding)
        if data.isascii() and encoding != "iso2022_jp":
            continue
        try:
            text, _ = decode(tmp_path / "x.txt", data)
        except UnreadableError:
            refused += 1
        else:
            right, wrong = right + (text == piece), wrong + (text != piece)
    return right, wrong, refused


@pytest.mark.parametrize(("language", "encoding"), CASES)
def test_a_page_of_text_is_read_in_any_encoding(tmp_path, language, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(TEXTS[language].encode(encoding))
    parsed = read(path)
    assert parsed.blocks[0].text.replace("\n", " ") == TEXTS[language]
    same = {"big5": "cp950", "big5hkscs": "cp950", "koi8-r": "koi8-u"}
    assert parsed.encoding == same.get(encoding, encoding)


@pytest.mark.parametrize("length", [12, 30])
def test_short_text_is_read_right_or_refused(tmp_path, length):
    total = [0, 0, 0]
    for language, encoding in CASES:
        found = outcomes(tmp_path, language, encoding, length)
        total = [a + b for a, b in zip(total, found, strict=True)]
    right, wrong, _ = total
    assert wrong <= 0.02 * sum(total), total
    assert right >= 0.85 * sum(total), total


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(tmp_path, mark):
    text, encoding = decode(tmp_path / "x", "你好\r\nworld\r".encode(mark))
    assert (text, encoding) == ("你好\nworld\n", mark.removesuffix("-sig"))


def test_big_endian_marks(tmp_path):
    for name in ("utf-16", "utf-32"):
        data = ("\ufeff" + "你好").encode(f"{name}-be")
        assert decode(tmp_path / "x", data) == ("你好", name)


def test_hong_kong_characters(tmp_path):
    text = "佢哋喺嗰度嘅嘢食得啦，我哋去睇吓啲新書喇。"
    assert decode(tmp_path / "x", text.encode("big5hkscs")) == (text, "big5hkscs")


def test_logs_with_colours_and_bells_are_text(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("The \x1b[31mred\x1b]0;title\x07 gate opens.\n", "\x1b[32m通过\x1b(B\x0f 三项\n",
                 "10 %\b\b\b\b20 %\b\b\b\bdone\x07\n"):  # fmt: skip
        path.write_text(text, "utf-8")
        assert decode(path) == (text, "utf-8")


@pytest.mark.parametrize(
    "text",
    ["\x07\x01 text \x02\x03", "ab\x00c" + "d" * 999, "caf\ufffd na\ufffdve", "\x9d\x81text"],
)
def test_what_is_hardly_text_is_refused_in_utf8_too(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_text(text, "utf-8")
    with pytest.raises(UnreadableError, match=r"a\.txt is binary data"):
        read(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x01\x00",
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01" + bytes(range(200)),
        bytes(range(256)),
        bytes(range(1, 256)) * 3,
        b"plain text\x00\x00\x00\x00",
        b"\x01\x02\x03\x04\x05\x06\x07",
    ],
)
def test_binary_data_is_refused(tmp_path, data):
    path = tmp_path / "photo.txt"
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match=r"photo\.txt.*(binary|cannot be told|torn|wrong)"):
        read(path)


def test_an_unsure_encoding_names_the_candidates_and_the_way_out(tmp_path):
    with pytest.raises(UnreadableError, match=r"x\.txt: .*cannot be told.*convert it to UTF-8"):
        decode(tmp_path / "x.txt", bytes([0xC1, 0x41, 0xF5, 0x20, 0xE1, 0x42, 0xD0]))


def test_utf8_cut_inside_a_character_is_named_with_its_place(tmp_path):
    data = TEXTS["zh-Hans"].encode()
    with pytest.raises(UnreadableError, match=r"is utf-8 but ends inside a character at byte"):
        decode(tmp_path / "x", data[:-1])
    with pytest.raises(UnreadableError, match=r"is utf-8 but holds wrong bytes at byte 300 "):
        decode(tmp_path / "x", data[:300] + b"\xff" + data[300:])


@pytest.mark.parametrize(("language", "encoding"), [("zh-Hans", "gb18030"), ("ja", "cp932")])
def test_a_late_wrong_byte_does_not_become_something_else(tmp_path, language, encoding):
    data = (TEXTS[language] + "\n").encode(encoding) * 1000
    assert decode(tmp_path / "x", data) == ((TEXTS[language] + "\n") * 1000, encoding)
    with pytest.raises(UnreadableError, match=f"is {encoding} but"):
        decode(tmp_path / "x", data + b"\xff\n" + data[:300])


def test_a_mostly_english_file_with_late_foreign_text(tmp_path):
    text = "nothing but English here\n" * 20_000 + TEXTS["zh-Hans"]
    assert decode(tmp_path / "x", text.encode("gb18030")) == (text, "gb18030")


@pytest.mark.parametrize(
    ("declared", "really"),
    [("gb2312", "gb18030"), ("utf-8", "gb18030"), ("gbk", "utf-8"), ("iso-8859-1", "gb18030"),
     ("big5", "big5"), ("nonsense", "gb18030"), ("rot13", "gb18030"), ("gb2312", "utf-16")],
)  # fmt: skip
def test_html_that_declares_its_encoding_wrongly(tmp_path, declared, really):
    text = TEXTS["zh-Hant" if really == "big5" else "zh-Hans"]
    if declared == "gb2312" and really == "gb18030":
        text += "朱镕基、㐂"  # in GBK and GB 18030, not in GB 2312
    path = tmp_path / "a.html"
    meta = f'<meta http-equiv="Content-Type" content="text/html; charset={declared}">'
    path.write_bytes(f"<html><head>{meta}</head><body><p>{text}</p></body></html>".encode(really))
    assert read(path).blocks[0].text == text


def test_html_with_a_declared_encoding_of_few_characters(tmp_path):
    path = tmp_path / "a.html"
    path.write_bytes('<meta charset="windows-1254"><p>Işık, ağaç</p>'.encode("cp1254"))
    parsed = read(path)
    assert (parsed.blocks[0].text, parsed.encoding) == ("Işık, ağaç", "cp1254")
