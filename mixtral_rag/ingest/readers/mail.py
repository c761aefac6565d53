"""EML: who wrote to whom, when and about what; the text; the attachments."""

import email
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.errors import MessageError
from email.header import decode_header
from email.message import Message
from pathlib import Path

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers import Block, Parsed, ReadOptions
from mixtral_rag.ingest.readers.encoding import decode
from mixtral_rag.ingest.readers.inside import Inside, collecting, read_as

_SHOWN = ("From", "To", "Cc", "Date", "Subject")
# What senders name is often the smaller set of characters than what they send.
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "gb_2312-80": "gb18030", "big5": "big5hkscs",
          "ks_c_5601-1987": "cp949", "euc-kr": "cp949", "us-ascii": "utf-8", "iso-8859-1": "cp1252",
          "shift_jis": "cp932"}  # fmt: skip


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read a mail; each attachment that has a reader is a section under its name."""
    try:
        message = email.message_from_bytes(path.read_bytes())
        if not any(message[name] for name in _SHOWN):
            raise UnreadableError(f"{path} is no mail, or is damaged")
        with collecting(options) as inside:
            mail = _Mail(path, options)
            body = [b for b in _blocks(message, mail) if b.text.strip()]
            inside.problems += mail.problems
            subject = header(message, "Subject")
            head = [f"{name}: {value}" for name in _SHOWN if (value := header(message, name))]
            blocks = together(head, body, mail.attached, inside)
            return Parsed(subject, blocks, problems=inside.problems)
    except (MessageError, ValueError, LookupError, AttributeError) as error:
        raise UnreadableError(f"{path} is damaged: {error}") from error


def together(
    head: list[str], body: list[Block], attached: list[tuple[str, bytes]], inside: Inside
) -> list[Block]:
    """The headers as text, the body, and what the attachments hold."""
    if attached:
        head = [*head, "Attachments: " + ", ".join(name for name, _ in attached)]
    for name, data in attached:
        if inside.wants(name):
            inside.take(name, io.BytesIO(data))
    return [Block("\n".join(head)), *body, *inside.blocks]


@dataclass
class _Mail:
    """A mail being read: what was found attached, and what could not be read."""

    path: Path
    options: ReadOptions
    attached: list[tuple[str, bytes]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _blocks(part: Message, mail: _Mail) -> Iterator[Block]:
    """The text of a mail's part; attachments in it are added to the mail's."""
    kind = part.get_content_type()
    name = _words(part.get_filename() or "")
    if kind == "message/rfc822" or (kind == "message/global" and part.is_multipart()):
        inner = part.get_payload(0) if part.is_multipart() else None
        if isinstance(inner, Message):
            title = name.removesuffix(".eml") or header(inner, "Subject") or "mail"
            mail.attached.append((f"{_plain(title)}.eml", inner.as_bytes()))
    elif kind == "multipart/alternative":
        parts = [p for p in part.get_payload() if isinstance(p, Message)]
        yield from _best([list(_blocks(p, mail)) for p in parts])
    elif part.is_multipart():
        for inner in part.get_payload():
            if isinstance(inner, Message):
                yield from _blocks(inner, mail)
    elif name or part.get_content_disposition() == "attachment":
        mail.attached.append((_plain(name) or "attachment", _payload(part)))
    elif kind == "text/html":
        data = b"\xef\xbb\xbf" + _text(part).encode("utf-8", "replace")
        try:
            yield from read_as(".html", data, mail.options, name=f"{mail.path}: its HTML").blocks
        except UnreadableError as error:
            mail.problems.append(str(error))
    elif part.get_content_maintype() == "text":
        yield Block(_text(part))


def _best(forms: list[list[Block]]) -> list[Block]:
    """Of the same text in several forms the first, unless that only points to another."""
    sizes = [sum(len(b.text) for b in form) for form in forms]
    most = max(sizes, default=0)
    return next((f for f, size in zip(forms, sizes, strict=True) if size * 4 >= most), [])


def _payload(part: Message) -> bytes:
    data = part.get_payload(decode=True)
    return data if isinstance(data, bytes) else b""


def _text(part: Message) -> str:
    data = _payload(part)
    text = decoded(data, str(part.get_content_charset() or ""))
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")


def decoded(data: bytes, charset: str) -> str:
    """Bytes as text: in the character set named, else in what they seem to be."""
    charset = charset.lower()
    try:
        return data.decode(_WIDER.get(charset, charset or "utf-8"))
    except (UnicodeDecodeError, LookupError):
        pass
    try:
        return decode(Path("mail"), data)[0]
    except UnreadableError:
        return data.decode("utf-8", "replace")


def header(message: Message, name: str) -> str:
    """A header as a person reads it, on one line."""
    for key, value in message.raw_items():
        if key.lower() == name.lower():
            return " ".join(_words(str(value)).split())
    return ""


def _words(value: str) -> str:
    """Text of a header with its encoded words, or its plain bytes, made readable."""
    if not value.isascii() and any("\udc80" <= c <= "\udcff" for c in value):
        value = decoded(value.encode("utf-8", "surrogateescape"), "")
    if "=?" not in value:
        return value
    try:
        parts = decode_header(re.sub(r"\r?\n[ \t]", " ", value))
    except MessageError:
        return value
    return "".join(
        decoded(part, charset or "") if isinstance(part, bytes) else part for part, charset in parts
    )


def _plain(name: str) -> str:
    """A file's name without folders."""
    return " ".join(re.split(r"[/\\]", name)[-1].split())
