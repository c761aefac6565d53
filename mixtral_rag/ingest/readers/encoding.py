"""Bytes of a text file to text: which encoding they are in."""

import codecs
from pathlib import Path

from mixtral_rag.errors import UnreadableError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"),
          (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


def decode(path: Path, data: bytes | None = None) -> tuple[str, str]:
    """Text of a file, its lines ending in line feeds, and the encoding it was in.

    Args:
        path: the file, named in errors.
        data: its bytes; None reads them.

    Raises:
        UnreadableError: the encoding cannot be told, or the file holds binary data.
    """
    if data is None:
        data = path.read_bytes()
    encodings = [name for mark, name in _MARKS if data.startswith(mark)] or ["utf-8", "gb18030"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\x00" not in text and (encoding != "gb18030" or _is_chinese(text)):
            return text.replace("\r\n", "\n").replace("\r", "\n"), encoding
    raise UnreadableError(f"{path} is not text in UTF-8, UTF-16 or GB18030; convert it to UTF-8")


def _is_chinese(text: str) -> bool:
    """Whether text decoded as GB18030 is Chinese, and not another encoding mistaken for it.

    Nearly all bytes decode as something, but hardly ever as the 3,755 usual characters, which
    GB 2312 puts first.
    """
    strange = [c for c in text if not c.isascii()]
    usual = 0
    for c in strange:
        code = c.encode("gb2312", errors="ignore")
        usual += len(code) == 2 and (0xB0 <= code[0] <= 0xD7 or code[0] in (0xA1, 0xA3))
    return usual >= 0.75 * len(strange)
