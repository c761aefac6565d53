"""Bytes of a text file to text: which encoding they are in, refused where that is not sure."""

import codecs
import re
from pathlib import Path

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers.characters import eastern, known, likely, strange, usual

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What a detector says -> what to try for it: the form that people use, then what contains it.
_FORMS = {
    "gb2312": ["gb18030"],
    "gbk": ["gb18030"],
    "big5": ["cp950", "big5hkscs"],
    "cp950": ["cp950", "big5hkscs"],
    "big5hkscs": ["cp950", "big5hkscs"],
    "shift_jis": ["cp932"],
    "shift_jis_2004": ["cp932"],
    "euc_jis_2004": ["euc_jp"],
    "euc_kr": ["cp949"],
    "koi8-r": ["koi8-u"],  # the same but for four letters and their frames
    "iso8859-1": ["cp1252"],
    "iso8859-8": ["cp1255"],
}
# Declared, these tell nothing or are no way to keep text.
_NEVER = ("utf", "unicode", "raw", "idna", "punycode", "ascii")
# No text holds these: control characters but for white space, backspace and escape.
_CONTROL = re.compile("[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffd-\uffff]")
# Those of ASCII but NUL, which logs of terminals hold: bells, marks, ends of titles.
_STEERING = re.compile("[\x01-\x07\x0e-\x1a\x1c-\x1f\x7f]")
_MOST_STEERING, _MOST_CONTROL = 0.1, 0.005  # share of a text, the first in UTF-8 alone
_WHOLE, _PART, _PARTS = 65_536, 4_096, 12  # bytes
_SURE = 0.9  # share of usual characters
_ENOUGH = 20  # characters beyond ASCII that let a rare encoding or a single vote count


def decode(path: Path, data: bytes | None = None) -> tuple[str, str]:
    """Text of a file, its lines ending in line feeds, and the encoding it was in.

    The encoding is named as Python does, `utf-8` with or without a byte order mark. Detection
    takes samples of a long file; decoding takes every byte and is strict.

    Args:
        path: the file, named in errors.
        data: its bytes; None reads them.

    Raises:
        UnreadableError: the encoding cannot be told, or the file holds binary data.
    """
    if data is None:
        data = path.read_bytes()
    mark = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if mark is not None:
        name = "utf-8" if mark == "utf-8-sig" else mark
        return _finished(path, _strict(path, data, mark), name)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = _utf16(data) or _detected(path, data, error)
    else:
        found = _in_ascii(data, text)
    return _finished(path, *found)


def decode_as(path: Path, data: bytes, declared: str) -> tuple[str, str]:
    """The same where the file itself names an encoding, which counts if its bytes bear it out.

    A file that calls itself GB 2312 may be GB 18030; one of valid UTF-8 is that, whatever it says.
    """
    name = _normal(declared)
    if any(data.startswith(mark) for mark, _ in _MARKS) or not name or name.startswith(_NEVER):
        return decode(path, data)
    if not data.isascii():
        try:
            return _finished(path, data.decode("utf-8"), "utf-8")
        except UnicodeDecodeError:
            pass
    for form in _FORMS.get(name, [name]):
        text = _decoded(data, form)
        if text is not None and not _CONTROL.search(text) and likely(text, form):
            return _finished(path, text, form)
    return decode(path, data)


def _finished(path: Path, text: str, name: str) -> tuple[str, str]:
    if _is_binary(text, name):
        raise UnreadableError(
            f"{path} is binary data, not text; if it is text, convert it to UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n"), name


def _is_binary(text: str, name: str) -> bool:
    if "\x00" in text:
        return True
    controls = len(_CONTROL.findall(text))
    if controls and name == "utf-8":
        steering = len(_STEERING.findall(text))
        if steering > _MOST_STEERING * len(text):
            return True
        controls -= steering
    return controls > _MOST_CONTROL * len(text)


def _strict(path: Path, data: bytes, name: str) -> str:
    try:
        return _exactly(data, name)
    except UnicodeDecodeError as error:
        raise _torn(path, name.removesuffix("-sig"), data, error) from error


def _torn(path: Path, name: str, data: bytes, error: UnicodeDecodeError) -> UnreadableError:
    where = "ends inside a character" if error.end >= len(data) else "holds wrong bytes"
    return UnreadableError(
        f"{path} is {name} but {where} at byte {error.start:,} of {len(data):,}; "
        f"mend it or convert it to UTF-8"
    )


def _in_ascii(data: bytes, text: str) -> tuple[str, str]:
    """UTF-8, or what hides in its bytes: UTF-16 without a mark, ISO-2022-JP, HZ."""
    if "\x00" in text:
        return _utf16(data) or (text, "utf-8")
    for sign, name in ((b"\x1b$", "iso2022_jp"), (b"~{", "hz")):
        if sign in data and data.isascii():
            hidden = _decoded(data, name)
            if hidden is not None and not hidden.isascii() and usual(hidden) >= _SURE:
                return hidden, name
    return text, "utf-8"


def _utf16(data: bytes) -> tuple[str, str] | None:
    """The text of UTF-16 or UTF-32 without a mark, if the bytes make usual characters so."""
    head = data[: _WHOLE - _WHOLE % 4]
    if b"\x00" not in head and (len(head) < 16 or _western(head)):
        return None
    found = []
    for name in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        # The last character of the head may be cut in two.
        text = _decoded(head, name) or _decoded(head[:-2], name)
        if text and "\x00" not in text and len(text) > 3:
            found.append((usual(text), name))
    if not found:
        return None
    score, name = max(found)
    text = _decoded(data, name)
    return (text, name) if text is not None and score >= _SURE else None


def _western(data: bytes) -> bool:
    """Whether most bytes are ASCII letters and spaces, so that pairs of them are no characters."""
    return len(re.findall(rb"[A-Za-z ]", data)) > 0.6 * len(data)


def _detected(path: Path, data: bytes, error: UnicodeDecodeError) -> tuple[str, str]:
    """The text as two detectors agree on it, or as only one of them makes usual characters of it.

    Raises:
        UnreadableError: they do not agree, or some byte does not fit.
    """
    if _nearly_utf8(data, error):
        raise _torn(path, "utf-8", data, error)
    sample = data if len(data) <= _WHOLE else _sampled(data)
    guesses = _guesses(sample)
    texts: dict[str, str] = {}
    for form in dict.fromkeys(f for g in (*guesses, *_CHECKED) for f in _FORMS.get(g, [g])):
        text = _mostly(sample, form)
        if text is not None and likely(text, form):
            texts[form] = text
    named = [next((f for f in _FORMS.get(g, [g]) if f in texts), "") for g in guesses]
    name = _chosen(named, texts)
    if name is None:
        names = " or ".join(sorted(texts) or sorted({g for g in guesses if g}))
        may = f"it may be {names}" if names else "no known one fits"
        raise UnreadableError(f"{path}: its encoding cannot be told ({may}); convert it to UTF-8")
    forms = next((f for f in _FORMS.values() if name in f), [name])
    whole = next((w for f in forms if (w := _decoded(data, f)) is not None), None)
    return (_strict(path, data, name) if whole is None else whole), name


_CHECKED = ("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr")


def _chosen(named: list[str], texts: dict[str, str]) -> str | None:
    """What both detectors say in effect, else the only likely one that either of them names."""
    first, second = (texts.get(name) for name in named)
    if first is not None and first == second:
        named.sort(key=lambda name: not name.startswith("cp"))  # what people's computers wrote
        return named[0] if known(named[0]) or strange(first) >= _ENOUGH else None
    # An East Asian encoding must be the only one of its kind whose characters are usual ones.
    eastern_texts = {text for name, text in texts.items() if eastern(name)}
    only = [name for name in named if name in texts and (
        len(eastern_texts) == 1 if eastern(name)
        else not eastern_texts and strange(texts[name]) >= _ENOUGH
    )]  # fmt: skip
    return only[0] if len({texts[name] for name in only}) == 1 else None


def _guesses(sample: bytes) -> list[str]:
    """What each of two detectors takes the bytes for."""
    import chardet
    from chardetng_py import EncodingDetector

    detector = EncodingDetector()
    detector.feed(sample, last=True)
    said = (chardet.detect(sample)["encoding"], detector.guess(tld=None, allow_utf8=False))
    return [_normal(name) for name in said]


def _normal(name: str | None) -> str:
    """Python's name of an encoding, empty where it has none for text."""
    try:
        found = codecs.lookup((name or "").removesuffix("-I").strip()).name
        b"text".decode(found)
    except UnicodeError:
        return found
    except (LookupError, ValueError):
        return ""
    return found


def _decoded(data: bytes, name: str) -> str | None:
    try:
        return _exactly(data, name) if name else None
    except UnicodeError:
        return None


def _exactly(data: bytes, name: str) -> str:
    """The text of all bytes; Python's cp932 gives characters for four that Windows has none for."""
    text = data.decode(name)
    if name == "cp932" and (wrong := re.search("[\x80\xa0\uf8f0-\uf8f3]", text)):
        at = len(text[: wrong.start()].encode("cp932"))
        raise UnicodeDecodeError("cp932", data, at, at + 1, "no character")
    return text


def _sampled(data: bytes) -> bytes:
    """Parts from all over a long file where it is not ASCII, from one line end to another."""
    parts = []
    for n in range(_PARTS):
        found = re.compile(rb"[\x00-\x7f][\x80-\xff]").search(data, len(data) * n // _PARTS)
        if found:
            part = data[found.start() + 1 : found.start() + 1 + _PART]
            parts.append(part[: part.rfind(b"\n") + 1] or part)
    return b"\n".join(dict.fromkeys(parts))


def _nearly_utf8(data: bytes, error: UnicodeDecodeError) -> bool:
    """Whether the bytes are UTF-8 but for a few."""
    text = data[: 16 * _WHOLE].decode("utf-8", "replace") + data[: error.start][-64:].decode(
        "utf-8", "replace"
    )
    return 20 * text.count("\ufffd") < strange(text)


def _mostly(sample: bytes, name: str) -> str | None:
    """The sample's text, which may end inside a character and hold a wrong byte in 200."""
    if not name:
        return None
    text = codecs.getincrementaldecoder(name)("replace").decode(sample)
    return text if 200 * text.count("\ufffd") <= len(text) and not _CONTROL.search(
        text.replace("\ufffd", "")) else None  # fmt: skip
