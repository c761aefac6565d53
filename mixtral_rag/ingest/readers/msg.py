"""MSG, the mails of Outlook: headers, text and attachments."""

import datetime as dt
import struct
from pathlib import Path
from typing import Any

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers import Block, Parsed, ReadOptions, ole
from mixtral_rag.ingest.readers.inside import collecting, read_as
from mixtral_rag.ingest.readers.mail import decoded, together

_DEEPEST = 3  # messages inside messages
_TIMES = (0x0039, 0x0E06)  # sent, received
_CODE_PAGES = {65001: "utf-8", 20127: "us-ascii", 28591: "iso-8859-1", 52936: "gb18030",
               54936: "gb18030", 936: "gb18030", 950: "big5hkscs", 51932: "euc_jp"}  # fmt: skip


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read a mail saved by Outlook; each attachment that has a reader is a section."""
    import olefile

    if not ole.is_ole(path):
        raise UnreadableError(f"{path} is no mail of Outlook, or is damaged")
    try:
        with olefile.OleFileIO(path) as file:
            if not file.exists("__properties_version1.0"):
                raise UnreadableError(f"{path} is no mail of Outlook, or is damaged")
            return _Message(path, file, [], 32).parsed(options, 0)
    except (OSError, struct.error, IndexError, ValueError, TypeError, AttributeError) as error:
        raise UnreadableError(f"{path} is damaged: {error}") from error


class _Message:
    """A message, which is the file or a folder in it, by the numbers of its properties."""

    def __init__(self, path: Path, file: Any, folder: list[str], header_size: int) -> None:
        self._path, self._file, self._folder = path, file, folder
        data = self._stream("__properties_version1.0")[header_size:]
        self._fixed: dict[int, bytes] = {}
        for at in range(0, len(data) - 15, 16):
            _, number, _, value = struct.unpack_from("<HHI8s", data, at)
            self._fixed[number] = value

    def parsed(self, options: ReadOptions, depth: int) -> Parsed:
        subject = self.text(0x0037)
        sender, address = self.text(0x0C1A), self.text(0x5D01) or self.text(0x0C1F)
        if "@" in address and address not in sender:
            sender = f"{sender} <{address}>".strip()
        values = {"From": sender, "To": self.text(0x0E04), "Cc": self.text(0x0E03),
                  "Date": self._date(), "Subject": subject}  # fmt: skip
        head = [f"{name}: {' '.join(value.split())}" for name, value in values.items() if value]
        with collecting(options) as inside:
            attached: list[tuple[str, bytes]] = []
            nested: list[Block] = []
            for folder in self._folders("__attach_version1.0_"):
                part = _Message(self._path, self._file, folder, 8)
                name = part.text(0x3707) or part.text(0x3704) or part.text(0x3001) or "attachment"
                inner = [*folder, "__substg1.0_3701000D"]
                if not self._file.exists("/".join(inner)):
                    attached.append((" ".join(name.split()), part.binary(0x3701)))
                elif depth >= _DEEPEST:
                    inside.problems.append(f"{name} is inside too many other mails")
                else:
                    found = _Message(self._path, self._file, inner, 24).parsed(options, depth + 1)
                    nested += [Block(b.text, b.page, (name, *b.section)) for b in found.blocks]
                    inside.problems += [f"{name}: {problem}" for problem in found.problems]
            body = self._body(options)
            if not body and self.binary(0x1009):
                inside.problems.append("its text is only in RTF, which is not read")
            blocks = together(head, body, attached, inside)
            return Parsed(subject, [*blocks, *nested], problems=inside.problems)

    def _body(self, options: ReadOptions) -> list[Block]:
        text = self.text(0x1000).replace("\r\n", "\n").replace("\x00", "")
        if text.strip():
            return [Block(text.strip())]
        page = self.text(0x1013) or decoded(self.binary(0x1013), self._code_page(0x3FDE))
        if not page.strip():
            return []
        data = b"\xef\xbb\xbf" + page.encode("utf-8", "replace")
        return read_as(".html", data, options, name=f"{self._path}: its HTML").blocks

    def _stream(self, name: str) -> bytes:
        path = "/".join([*self._folder, name])
        if not self._file.exists(path):
            return b""
        with self._file.openstream(path) as stream:
            return bytes(stream.read())

    def text(self, number: int) -> str:
        """A property that is text, empty when absent."""
        wide = self._stream(f"__substg1.0_{number:04X}001F")
        if wide:
            return wide.decode("utf-16-le", "replace").rstrip("\x00")
        narrow = self._stream(f"__substg1.0_{number:04X}001E")
        return decoded(narrow, self._code_page(0x3FFD)).rstrip("\x00") if narrow else ""

    def binary(self, number: int) -> bytes:
        """A property that is bytes."""
        return self._stream(f"__substg1.0_{number:04X}0102")

    def _code_page(self, number: int) -> str:
        value = self._fixed.get(number)
        page = struct.unpack("<I", value[:4])[0] if value else 0
        return _CODE_PAGES.get(page, f"cp{page}" if page else "")

    def _date(self) -> str:
        for number in _TIMES:
            ticks = struct.unpack("<Q", self._fixed.get(number, bytes(8)))[0]
            if 0 < ticks < 1 << 60:
                start = dt.datetime(1601, 1, 1, tzinfo=dt.UTC)
                sent = start + dt.timedelta(microseconds=ticks // 10)
                return sent.strftime("%Y-%m-%d %H:%M UTC")
        return ""

    def _folders(self, prefix: str) -> list[list[str]]:
        deep = len(self._folder)
        found = {
            tuple(entry) for entry in self._file.listdir(streams=False, storages=True)
            if len(entry) == deep + 1 and entry[:deep] == self._folder
            and entry[-1].startswith(prefix)
        }  # fmt: skip
        return [list(entry) for entry in sorted(found)]
