"""Readers of office documents, on files that the usual libraries write."""

import base64
import datetime as dt
import io
import itertools
import re
import zipfile
import zlib

import pytest

from mixtral_rag.errors import EncryptedError, UnreadableError, UnsupportedError
from mixtral_rag.ingest.readers import read

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def found(parsed):
    return [(b.section, b.text) for b in parsed.blocks]


def text_of(parsed):
    return "\n".join(b.text for b in parsed.blocks)


def rewrite(path, name, change):
    """Change one part of a ZIP file."""
    with zipfile.ZipFile(path) as source:
        parts = {i.filename: source.read(i) for i in source.infolist()}
    parts[name] = change(parts.get(name, b""))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for part, data in parts.items():
            target.writestr(part, data)
    return path


def encrypt(path, password="secret"):
    from msoffcrypto.format.ooxml import OOXMLFile

    out = io.BytesIO()
    OOXMLFile(io.BytesIO(path.read_bytes())).encrypt(password, out)
    path.write_bytes(out.getvalue())
    return path


@pytest.fixture
def word(tmp_path):
    from docx import Document

    document = Document()
    document.core_properties.title = "年度报告"
    document.add_heading("第一部分", 1)
    document.add_paragraph("正文在此。")
    document.add_heading("Details", 2)
    document.add_paragraph("first", style="List Bullet")
    document.add_paragraph("second", style="List Number")
    document.add_paragraph("third", style="List Number")
    table = document.add_table(rows=2, cols=2)
    for i, value in enumerate(["姓名", "电话", "张三", "123"]):
        table.cell(i // 2, i % 2).text = value
    document.add_heading("Next", 1)
    document.add_paragraph("end")
    document.sections[0].header.paragraphs[0].text = "Confidential"
    document.save(tmp_path / "a.docx")
    return tmp_path / "a.docx"


def test_word_headings_lists_tables_and_running_lines(word):
    parsed = read(word)
    assert parsed.title == "年度报告"
    assert found(parsed) == [
        (("第一部分",), "第一部分\n正文在此。"),
        (
            ("第一部分", "Details"),
            "Details\n- first\n1. second\n2. third\n姓名 | 电话\n张三 | 123",
        ),
        (("Next",), "Next\nend"),
        ((), "Confidential"),
    ]


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def with_body(path, body):
    def change(data):
        new = re.sub(
            rb"<w:body>.*</w:body>", b"<w:body>%s</w:body>" % body.encode(), data, flags=16
        )
        assert new != data
        return new

    return rewrite(path, "word/document.xml", change)


def test_word_text_that_other_readers_miss(word):
    with_body(
        word,
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>control</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        "<w:p><w:r><w:t>kept </w:t></w:r><w:ins><w:r><w:t>inserted</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del></w:p>"
        "<w:p><w:r><w:t>before</w:t><w:pict><w:txbxContent>"
        "<w:p><w:r><w:t>in a box</w:t></w:r></w:p></w:txbxContent></w:pict></w:r></w:p>",
    )
    assert text_of(read(word)).split("\n")[:4] == ["control", "kept inserted", "before", "in a box"]


def test_word_numbers_articles_as_it_shows_them(word):
    rewrite(
        word,
        "word/numbering.xml",
        lambda _: f"""<w:numbering {W}><w:abstractNum w:abstractNumId="7">
        <w:lvl w:ilvl="0"><w:start w:val="9"/><w:numFmt w:val="chineseCountingThousand"/>
        <w:lvlText w:val="第%1条"/></w:lvl>
        <w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="decimal"/>
        <w:lvlText w:val="%2）"/></w:lvl></w:abstractNum>
        <w:num w:numId="3"><w:abstractNumId w:val="7"/></w:num></w:numbering>""".encode(),
    )

    def item(text, depth):
        return (
            f'<w:p><w:pPr><w:numPr><w:ilvl w:val="{depth}"/><w:numId w:val="3"/></w:numPr></w:pPr>'
            f"<w:r><w:t>{text}</w:t></w:r></w:p>"
        )

    with_body(word, item("甲", 0) + item("乙", 1) + item("丙", 1) + item("丁", 0) + item("戊", 1))
    lines = text_of(read(word)).split("\n")
    assert lines[:5] == ["第九条 甲", "1） 乙", "2） 丙", "第十条 丁", "1） 戊"]


def test_word_footnotes_follow_their_paragraph(word):
    rewrite(
        word,
        "word/footnotes.xml",
        lambda _: (
            f"<w:footnotes {W}><w:footnote w:id='2'><w:p><w:r><w:t>the note</w:t></w:r></w:p>"
            "</w:footnote></w:footnotes>".encode()
        ),
    )
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/footnotes"
    rewrite(
        word,
        "word/_rels/document.xml.rels",
        lambda d: d.replace(
            b"</Relationships>",
            f'<Relationship Id="n" Type="{kind}" Target="footnotes.xml"/></Relationships>'.encode(),
        ),
    )
    with_body(
        word, "<w:p><w:r><w:t>claim</w:t></w:r><w:r><w:footnoteReference w:id='2'/></w:r></w:p>"
    )
    assert text_of(read(word)).startswith("claim[^1]\n[^1]: the note")


def test_word_in_the_strict_variant(word):
    def strict(data):
        return re.sub(
            rb"http://schemas.openxmlformats.org/(\w+)/2006/",
            rb"http://purl.oclc.org/ooxml/\1/",
            data,
        )

    for name in ("word/document.xml", "word/styles.xml", "_rels/.rels"):
        rewrite(word, name, strict)
    assert ("Next",) in {b.section for b in read(word).blocks}


def test_a_template_that_lives_elsewhere_is_not_fetched(word):
    rewrite(
        word,
        "word/_rels/document.xml.rels",
        lambda d: d.replace(
            b"</Relationships>",
            b'<Relationship Id="t" Type="http://x/header" TargetMode="External" '
            b'Target="http://127.0.0.1:1/h.xml"/></Relationships>',
        ),
    )
    assert text_of(read(word)).endswith("Confidential")


def test_word_files_loaded_with_entities_give_away_nothing(word, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("TOPSECRET")
    attack = (
        f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY x SYSTEM "file://{secret}">'
        '<!ENTITY a "LOLLOL"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
        '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
        f"<w:document {W}><w:body><w:p><w:r><w:t>safe &x; &c;</w:t></w:r></w:p></w:body>"
        "</w:document>"
    )
    rewrite(word, "word/document.xml", lambda _: attack.encode())
    text = text_of(read(word))
    assert "safe" in text
    assert "TOPSECRET" not in text
    assert "LOLLOL" not in text


def test_a_word_file_that_grows_without_measure_is_refused(word):
    with_body(word, "<w:p><w:r><w:t>" + "bomb " * 12_000_000 + "</w:t></w:r></w:p>")
    assert word.stat().st_size < 1 << 20
    with pytest.raises(UnreadableError, match=r"a\.docx would grow to \d+ MiB"):
        read(word)


@pytest.fixture
def slides(tmp_path):
    from pptx import Presentation
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE
    from pptx.util import Inches

    deck = Presentation()
    deck.core_properties.title = "Quarterly review"
    first = deck.slides.add_slide(deck.slide_layouts[1])
    first.shapes.title.text = "销售情况"
    frame = first.placeholders[1].text_frame
    frame.text = "增长百分之十"
    below = frame.add_paragraph()
    below.text, below.level = "华东最快", 1
    first.notes_slide.notes_text_frame.text = "Thank the team"
    second = deck.slides.add_slide(deck.slide_layouts[5])
    second.shapes.title.text = "Figures"
    box = (Inches(1), Inches(1), Inches(4), Inches(2))
    table = second.shapes.add_table(2, 2, *box).table
    for i, value in enumerate(["Year", "Sales", "2024", "17"]):
        table.cell(i // 2, i % 2).text = value
    chart = CategoryChartData()
    chart.categories = ["East", "West"]
    chart.add_series("Profit", (1.5, 2.5))
    second.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, *box, chart)
    group = second.shapes.add_group_shape()
    group.shapes.add_textbox(*box).text_frame.text = "in a group"
    deck.slides.add_slide(deck.slide_layouts[6])
    picture = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (4, 4)).save(picture, "PNG")
    deck.slides.add_slide(deck.slide_layouts[6]).shapes.add_picture(picture, *box[:2])
    deck.save(tmp_path / "a.pptx")
    return tmp_path / "a.pptx"


def test_slides_are_pages_under_their_titles(slides):
    parsed = read(slides)
    assert (parsed.title, parsed.n_pages, parsed.pages) == (
        "Quarterly review",
        4,
        {"empty": [3, 4]},
    )
    assert parsed.problems == ["slides that are only pictures: 4"]
    assert [(b.page, b.section, b.text) for b in parsed.blocks] == [
        (1, ("销售情况",), "销售情况\n- 增长百分之十\n  - 华东最快"),
        (1, ("销售情况",), "Notes: Thank the team"),
        (
            2,
            ("Figures",),
            "Figures\nYear | Sales\n2024 | 17\n | Profit\nEast | 1.5\nWest | 2.5\nin a group",
        ),
    ]


def sheet(path, rows, name="员工"):
    import xlsxwriter

    with xlsxwriter.Workbook(str(path), {"default_date_format": "yyyy-mm-dd"}) as book:
        page = book.add_worksheet(name)
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                if value is not None:
                    page.write(i, j, value)
    return path


def test_sheets_keep_the_header_with_every_block(tmp_path):
    rows = [["姓名", "入职", "工资"]]
    rows += [[f"员工{n}", dt.datetime(2024, 1, 2), n + 0.5] for n in range(100)]
    parsed = read(sheet(tmp_path / "a.xlsx", rows))
    assert len(parsed.blocks) > 3
    assert all(b.text.startswith("姓名 | 入职 | 工资\n员工") for b in parsed.blocks)
    assert all(b.section[0] == "员工" for b in parsed.blocks)
    assert "员工7 | 2024-01-02 | 7.5" in text_of(parsed)
    places = [re.fullmatch(r"rows (\d+)-(\d+)", b.section[1]).groups() for b in parsed.blocks]
    assert (places[0][0], places[-1][1]) == ("2", "101")
    assert all(int(a[1]) + 1 == int(b[0]) for a, b in itertools.pairwise(places))
    for block, (start, end) in zip(parsed.blocks, places, strict=True):
        assert f"员工{int(start) - 2} " in block.text
        assert f"员工{int(end) - 2} " in block.text


def test_sheets_that_begin_late_and_with_a_caption(tmp_path):
    rows = [
        [],
        [None, "2023 年预算"],
        [],
        [None, "部门", "金额"],
        [None, "财务", 5],
        [None, "人事", True],
    ]
    parsed = read(sheet(tmp_path / "a.xlsx", rows))
    assert len(parsed.blocks) == 1
    assert parsed.blocks[0].section == ("员工", "rows 5-6")
    lines = [line.lstrip(" |") for line in parsed.blocks[0].text.split("\n")]
    assert lines == ["2023 年预算", "部门 | 金额", "财务 | 5", "人事 | TRUE"]


def test_wide_sheets_name_the_column_of_each_value(tmp_path):
    rows = [[f"a rather long column {n}" for n in range(30)], [None] * 29 + ["x"]]
    parsed = read(sheet(tmp_path / "a.xlsx", rows))
    assert parsed.blocks[0].text == "a rather long column 29: x"


def test_a_sheet_with_a_cell_at_the_far_corner_costs_no_crash(tmp_path):
    path = tmp_path / "a.xlsx"
    rewrite(
        sheet(path, [["a", "b"], ["c", "d"]]),
        "xl/worksheets/sheet1.xml",
        lambda d: d.replace(b'<c r="B2"', b'<c r="XFD1048576"'),
    )
    with pytest.raises(UnreadableError, match=r"sheet1\.xml spans more than"):
        read(path)


@pytest.mark.parametrize(
    "content", ["<html><table><tr><td>甲</td><td>乙</td></tr></table>", "甲\t乙\n"]
)
def test_exports_that_only_call_themselves_excel(tmp_path, content):
    path = tmp_path / "a.xls"
    path.write_text(content)
    assert "甲 | 乙" in text_of(read(path))


def test_open_document_sheets(tmp_path):
    path = tmp_path / "a.ods"
    office = "urn:oasis:names:tc:opendocument:xmlns"
    cells = "".join(
        f'<table:table-cell office:value-type="string"><text:p>{c}</text:p></table:table-cell>'
        for c in ("甲", "乙")
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        kind = "urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"
        archive.writestr("META-INF/manifest.xml", f'<m:manifest xmlns:m="{kind}"/>')
        archive.writestr(
            "content.xml",
            f'<office:document-content xmlns:office="{office}:office:1.0" '
            f'xmlns:table="{office}:table:1.0" xmlns:text="{office}:text:1.0"><office:body>'
            f'<office:spreadsheet><table:table table:name="S"><table:table-row>{cells}'
            "</table:table-row></table:table></office:spreadsheet></office:body>"
            "</office:document-content>",
        )
    assert "甲 | 乙" in text_of(read(path))


OLD_SHEET = (  # a sheet of Excel 97 with the rows 名 日 and 甲 2020-01-02
    "c-rk)O=uHA6#izDG(Y5L6H}!XN+?*hwg>g%rQIsko>Hm^{vg!WE+~~$f*$ms)f(_32%Z!#g?bRA>ct=Qpf?XfMGt"
    "}?B$eX9lc3<C&HCQUuB5ev25g~azGc37^XBjE&b*nOc|Vmbjz4KEVF5bfL)i(Vu1cpUguR3b%6A+Vy*Na{(O6Rmh"
    "iD+{0(cpF7vwSI@h-u@WB(gsV4A`SoI~$O&d#hN_K6Jxif!m1R=7u+I2y#Nl<+Cx4Z@G4<SXGW(cBd7pt41E98*?"
    "r>mGL&A2pgKFAi?^nbi3#nw_Y}Tb{*NZmCMy0QTn344hqK8BP8uCO`w)W9RHVrxUo32yl$hp3Sy*cNdYS!Jfb`Cj"
    "<QSy!v%U>sME=K>FYF^}!|dAsWPm`rC#d7=?3EoTPv#%0A99)HnO|jah60Cw($IRO~R(j7_xbLWEay@qTlj_s7I5"
    "qQpZ;h@2GPFsb|52R}Y!2m7pk(TvK9U)dM7uo-Z0m1|Jtxa1grxm9?F@HJ_5v&fCYX_~kcxAfJ!!hta<b6s*<sGr"
    "?}kJi>Ic^k=v?+2eZ6~0>ANuKN}T}n@Wvc}O&`_vG>Fg;^vQ*G+*9mWgGi<P^Ed=YN=XFUlSrfa+7Zhi^Ou?G>7!"
    "j%+%9p#o+i<DPVo?E<ZM8uvHrXL#UG*WmfpQo#8hmAl(LqkJDLqkJDV<n;7|8qVd@E?4@Jp}~ad!0E7WqnPuZgB`"
    "B^qi+d<$mNS&f{WD^JgOh%4<t4vyOLP$T&j1=P`^yv17RA`AerbRsBB8u4w*07pk@YaxHeQaQ}Y*ob}8Z"
)


def test_sheets_of_excel_97(tmp_path):
    path = tmp_path / "a.xls"
    path.write_bytes(zlib.decompress(base64.b85decode(OLD_SHEET)))
    assert found(read(path)) == [(("旧表", "row 2"), "名 | 日\n甲 | 2020-01-02")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030"])
def test_delimited_text(tmp_path, name, encoding):
    sign = "\t" if name.endswith("tsv") else ";"
    rows = ['姓名;城市;"备注; 长"', "张三;北京;好", '"李, 四";上海;"两\n行"']
    path = tmp_path / name
    path.write_bytes("\r\n".join(rows).replace(";", sign).encode(encoding))
    parsed = read(path)
    assert parsed.encoding == encoding.removesuffix("-sig")
    assert parsed.blocks[0].section == ("rows 2-3",)
    assert parsed.blocks[0].text.split("\n")[1:] == ["张三 | 北京 | 好", "李, 四 | 上海 | 两 行"]


def test_a_quote_that_never_ends_loses_nothing(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('size,name\n3,"pipe\n' + "4,valve\n" * 200_000)
    parsed = read(path)
    assert text_of(parsed).count("4 | valve") == 200_000
    assert len(parsed.blocks) > 1000


@pytest.mark.parametrize("kind", ["docx", "pptx", "xlsx"])
def test_protected_documents_say_so(kind, word, slides, tmp_path):
    path = {"docx": word, "pptx": slides, "xlsx": tmp_path / "a.xlsx"}[kind]
    if kind == "xlsx":
        sheet(path, [["a", "b"]])
    encrypt(path)
    assert path.read_bytes().startswith(OLE)
    with pytest.raises(EncryptedError, match=rf"a\.{kind} needs a password"):
        read(path)


@pytest.mark.parametrize(("old", "new"), [("doc", "docx"), ("ppt", "pptx"), ("docx", "docx")])
def test_old_formats_say_what_to_do(tmp_path, old, new):
    path = tmp_path / f"a.{old}"
    path.write_bytes(OLE + bytes(600))
    with pytest.raises(UnsupportedError, match=rf"a\.{old} is in an old .*save it as \.{new}"):
        read(path)


def test_new_documents_by_old_names_are_read(word, slides):
    assert read(word.rename(word.with_suffix(".doc"))).title == "年度报告"
    assert read(slides.rename(slides.with_suffix(".ppt"))).title == "Quarterly review"


@pytest.mark.parametrize("kind", ["docx", "pptx", "xlsx"])
@pytest.mark.parametrize("harm", ["cut", "zeros", "text", "other"])
def test_damage_is_named(kind, harm, word, slides, tmp_path):
    path = {"docx": word, "pptx": slides, "xlsx": tmp_path / "a.xlsx"}[kind]
    if kind == "xlsx":
        sheet(path, [["a", "b"]])
    data = path.read_bytes()
    if harm == "other":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    else:
        path.write_bytes(
            {"cut": data[: len(data) // 2], "zeros": bytes(5000), "text": b"hello there"}[harm]
        )
    with pytest.raises(UnreadableError, match=rf"a\.{kind}"):
        read(path)
