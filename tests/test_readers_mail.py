"""Mails: EML as mail programs write it, MSG as Outlook does."""

import io
import struct
import zipfile
from email import policy
from email.header import Header
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest
from documents import write_pdf
from ole_writer import message as msg
from ole_writer import write_ole

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers import read


def text_of(parsed):
    return "\n".join(b.text for b in parsed.blocks)


def mail(subject="会议 schedule", text="Hello\n\n第二段\n"):
    message = EmailMessage()
    message["From"] = "张三 <zhang@example.com>"
    message["To"] = "li@example.com"
    message["Date"] = "Mon, 06 May 2024 10:00:00 +0800"
    message["Subject"] = subject
    message.set_content(text)
    return message


def write(path, message):
    path.write_bytes(message.as_bytes(policy=policy.SMTP))
    return path


def test_headers_and_text(tmp_path):
    parsed = read(write(tmp_path / "a.eml", mail()))
    assert parsed.title == "会议 schedule"
    text = text_of(parsed)
    assert text.startswith("From: 张三 <zhang@example.com>\nTo: li@example.com\nDate: Mon, 06 May")
    assert "Subject: 会议 schedule\nHello\n\n第二段" in text


def test_attachments_are_read_by_their_own_reader(tmp_path):
    message = mail()
    data = write_pdf(tmp_path / "x.pdf", ["one", "page two"]).read_bytes()
    message.add_attachment(data, maintype="application", subtype="pdf", filename="报告.pdf")
    message.add_attachment(b"x", maintype="image", subtype="png", filename="logo.png")
    message.add_attachment("a,b\n1,2\n", subtype="csv", filename="../../t.csv")
    parsed = read(write(tmp_path / "a.eml", message))
    assert "Attachments: 报告.pdf, logo.png, t.csv" in parsed.blocks[0].text
    assert (2, ("报告.pdf",), "page two") in [(b.page, b.section, b.text) for b in parsed.blocks]
    assert ("t.csv", "row 2") in {b.section for b in parsed.blocks}
    assert parsed.problems == []


def test_an_attachment_that_cannot_be_read_costs_only_itself(tmp_path):
    message = mail()
    data = write_pdf(tmp_path / "x.pdf", ["one"], password="p").read_bytes()
    message.add_attachment(data, maintype="application", subtype="pdf", filename="x.pdf")
    message.add_attachment("fine", filename="b.txt")
    parsed = read(write(tmp_path / "a.eml", message))
    assert [p.split(";")[0] for p in parsed.problems] == ["x.pdf needs a password"]
    assert ("b.txt",) in {b.section for b in parsed.blocks}


def test_html_that_cannot_be_read_is_told_under_the_name_of_the_mail(tmp_path):
    message = EmailMessage()
    message["Subject"] = "Plans"
    message.set_content("<p>" + "\x01\x02" * 50, subtype="html", cte="base64")
    message.add_attachment("fine", filename="b.txt")
    path = write(tmp_path / "a.eml", message)
    parsed = read(path)
    assert ("b.txt",) in {b.section for b in parsed.blocks}
    assert [p.split(" is ")[0] for p in parsed.problems] == [f"{path}: its HTML"]


def test_of_two_forms_the_one_with_the_text_is_taken(tmp_path):
    message = mail(text="Plain form of it")
    message.add_alternative("<h1>T</h1><p>HTML form of it</p>", subtype="html")
    text = text_of(read(write(tmp_path / "a.eml", message)))
    assert "Plain form" in text
    assert "HTML form" not in text
    message = mail(text="See web")
    message.add_alternative(
        "<p>真正的内容在这里，纯文本只是一个提示。" + "内容" * 20, subtype="html"
    )
    text = text_of(read(write(tmp_path / "b.eml", message)))
    assert "真正的内容在这里" in text
    assert "See web" not in text


def test_gbk_under_the_name_of_gb2312(tmp_path):
    """Characters such as 镕 are in GBK but not in GB 2312, which senders name."""
    outer = MIMEMultipart()
    words = Header("朱镕基的報告", "gbk").encode().replace("gbk", "gb2312")
    body = MIMEText("镕", "plain", "gbk")
    body.replace_header("Content-Type", 'text/plain; charset="gb2312"')
    outer.attach(body)
    raw = b"From: a@b.c\r\nSubject: " + words.encode() + b"\r\n" + outer.as_bytes()
    (tmp_path / "a.eml").write_bytes(raw)
    parsed = read(tmp_path / "a.eml")
    assert parsed.title == "朱镕基的報告"
    assert text_of(parsed).endswith("镕")


def test_headers_in_bare_gbk(tmp_path):
    raw = (
        "From: 王五 <w@x.cn>\nSubject: 关于今年的工作安排\n"
        "Content-Type: text/plain; charset=gbk\n\n你好世界"
    )
    (tmp_path / "a.eml").write_bytes(raw.encode("gbk"))
    parsed = read(tmp_path / "a.eml")
    assert parsed.title == "关于今年的工作安排"
    assert text_of(parsed).endswith("你好世界")


def test_mails_in_mails_to_a_bounded_depth(tmp_path):
    message = mail("level 0")
    for level in range(1, 7):
        outer = mail(f"level {level}")
        outer.add_attachment(message)
        message = outer
    parsed = read(write(tmp_path / "a.eml", message))
    assert "Subject: level 4" in text_of(parsed)
    assert "Subject: level 0" not in text_of(parsed)
    assert any("inside too many" in p for p in parsed.problems)


def test_an_archive_in_a_mail(tmp_path):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("in/notes.md", "# Plan\ndo it")
    message = mail()
    message.add_attachment(
        data.getvalue(), maintype="application", subtype="zip", filename="docs.zip"
    )
    parsed = read(write(tmp_path / "a.eml", message))
    assert ("docs.zip", "in/notes.md", "Plan") in {b.section for b in parsed.blocks}


@pytest.mark.parametrize(
    "data", [b"\x00\x01\x02", b"just text\n", b"Content-Type: multipart/mixed\n\n"]
)
def test_what_is_no_mail_is_named(tmp_path, data):
    (tmp_path / "a.eml").write_bytes(data)
    with pytest.raises(UnreadableError, match=r"a\.eml is no mail"):
        read(tmp_path / "a.eml")


SENT = (0x0040, 0x0039, struct.pack("<Q", 133_594_344_000_000_000))  # 2024-05-06 08:00
TEXTS = {
    0x0037: "会议纪要",
    0x0C1A: "张三",
    0x5D01: "z@example.com",
    0x0E04: "李四",
    0x1000: "正文\r\n第二行",
}


def attachment(name, data):
    return msg({0x3707: name}, binaries={0x3701: data}, header=8)


def test_outlook_mail_with_attachments(tmp_path):
    inner = msg({0x0037: "Inner", 0x1000: "inner text"}, header=24)
    nested = msg({0x3707: "fwd.msg"}, header=8) | {"__substg1.0_3701000D": inner}
    files = [attachment("表.csv", b"a,b\n1,2\n" * 900), attachment("x.bin", b"1"), nested]
    path = write_ole(tmp_path / "a.msg", msg(TEXTS, fixed=[SENT], attachments=files))
    parsed = read(path)
    assert parsed.title == "会议纪要"
    assert parsed.blocks[0].text == (
        "From: 张三 <z@example.com>\nTo: 李四\nDate: 2024-05-06 02:00 UTC\nSubject: 会议纪要\n"
        "Attachments: 表.csv, x.bin"
    )
    assert parsed.blocks[1].text == "正文\n第二行"
    assert any(b.section[0] == "表.csv" for b in parsed.blocks if b.section)
    assert (("fwd.msg",), "inner text") in [(b.section, b.text) for b in parsed.blocks]


def test_outlook_mail_of_old_in_the_code_page_it_names(tmp_path):
    path = write_ole(tmp_path / "a.msg", msg(TEXTS, code_page=(936, "gbk")))
    parsed = read(path)
    assert parsed.title == "会议纪要"
    assert "正文\n第二行" in text_of(parsed)


def test_outlook_mail_in_html(tmp_path):
    page = "<html><body><h1>标题</h1><p>段落</p></body></html>".encode("gbk")
    code_page = (0x0003, 0x3FDE, struct.pack("<II", 936, 0))
    path = write_ole(
        tmp_path / "a.msg", msg({0x0037: "S"}, fixed=[code_page], binaries={0x1013: page})
    )
    assert (("标题",), "标题\n段落") in [(b.section, b.text) for b in read(path).blocks]


def test_outlook_mail_in_rtf_alone_is_not_done_in_silence(tmp_path):
    path = write_ole(tmp_path / "a.msg", msg({0x0037: "S"}, binaries={0x1009: b"LZFu"}))
    assert read(path).problems == ["its text is only in RTF, which is not read"]


def test_damaged_outlook_mails_are_named(tmp_path):
    path = write_ole(tmp_path / "a.msg", msg(TEXTS))
    data = path.read_bytes()
    for broken in (
        data[:700],
        data[:512] + bytes(len(data) - 512),
        b"no mail",
        data[:8] + bytes(2000),
    ):
        path.write_bytes(broken)
        with pytest.raises(UnreadableError, match=r"a\.msg"):
            read(path)
