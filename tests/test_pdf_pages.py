import io
from pathlib import Path

import pytest
from documents import write_pdf

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.pool import ReaderPool
from mixtral_rag.ingest.readers import read
from mixtral_rag.ingest.readers.pdf_page import is_garbled, ranges

CODE = (
    "if (x != NULL && !(y->z & 0x3F)) { return *p++ ^ ~q[i]; } /* {}|\\ */\n#define A(b) ((b) << 2)"
)
FONT = Path("/usr/share/fonts/truetype/wqy/wqy-microhei.ttc")


@pytest.fixture
def read_apart():
    """Reads in a process with limits, as anything hostile must be."""
    with ReaderPool(1, timeout=20, memory=1 << 30) as pool:
        yield lambda path: pool.submit(path).result()


def text_of(parsed):
    return "\n".join(b.text for b in parsed.blocks)


def without_maps(path, *, cids=False):
    """The same PDF with fonts that do not say which characters their glyphs are."""
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import NameObject, StreamObject, TextStringObject

    writer = PdfWriter(clone_from=PdfReader(path))
    for item in writer._objects:
        if isinstance(item, StreamObject) or not hasattr(item, "get"):
            continue
        if item.get("/Type") == "/Font":
            item.pop("/ToUnicode", None)
            if cids and item.get("/Subtype") == "/Type0":
                item[NameObject("/Encoding")] = NameObject("/Identity-H")
                system = item["/DescendantFonts"][0].get_object()["/CIDSystemInfo"].get_object()
                system[NameObject("/Ordering")] = TextStringObject("Identity")
    writer.write(path)
    return path


def with_embedded_font(path, pages):
    """A PDF whose font is part of it, as most programs write them: glyphs by number."""
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont
    from reportlab.pdfgen.canvas import Canvas

    if not FONT.is_file():
        pytest.skip(f"no {FONT}; on Debian: apt install fonts-wqy-microhei")
    pdfmetrics.registerFont(TTFont("embedded", str(FONT), subfontIndex=0))
    canvas = Canvas(str(path))
    for text in pages:
        canvas.setFont("embedded", 12)
        for n in range(8):
            canvas.drawString(60, 700 - 20 * n, text)
        canvas.showPage()
    canvas.save()
    return path


def drawn(path, draw):
    """A PDF of pages that `draw` each fill: functions of a canvas."""
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path))
    for page in draw:
        page(canvas)
        canvas.showPage()
    canvas.save()
    return path


def picture():
    from PIL import Image
    from reportlab.lib.utils import ImageReader

    image = Image.effect_noise((6, 8), 90).resize((300, 400), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG")
    return ImageReader(file)


def text_page(canvas):
    canvas.drawString(60, 700, "A page with a proper sentence of text on it.")


def picture_page(canvas):
    canvas.drawImage(picture(), 40, 40, 500, 750)


def numbered_picture_page(canvas):
    picture_page(canvas)
    canvas.drawString(290, 20, "17")


def outlines_page(canvas):
    for n in range(400):  # text as curves looks like this to a reader
        x, y = 60 + n % 40 * 12, 700 - n // 40 * 18
        canvas.bezier(x, y, x + 3, y + 12, x + 8, y - 4, x + 9, y + 10)


def background_page(canvas):
    canvas.setFillGray(0.9)
    canvas.rect(0, 0, 700, 900, stroke=0, fill=1)


def title_page(canvas):
    canvas.setFont("Helvetica-Bold", 40)
    canvas.drawString(60, 400, "Part II")


def test_every_page_ends_as_what_it_is(tmp_path):
    pages = [text_page, lambda canvas: None, picture_page, numbered_picture_page, outlines_page,
             background_page, title_page]  # fmt: skip
    parsed = read(drawn(tmp_path / "a.pdf", pages))
    assert parsed.pages == {"empty": [2, 6], "needs_ocr": [3, 4, 5]}
    assert parsed.n_pages == 7
    assert [b.page for b in parsed.blocks if b.text.strip()] == [1, 4, 7]


def test_a_page_whose_fonts_lack_their_map_is_garbled_and_gives_no_text(tmp_path):
    pages = [
        "这一页没有字符映射表，所以读出来全是乱码。",
        "Plain English text is told by its codes.",
    ]
    path = without_maps(with_embedded_font(tmp_path / "a.pdf", pages))
    parsed = read(path)
    assert parsed.pages == {"garbled": [1]}
    assert "English" in text_of(parsed)
    assert {b.page for b in parsed.blocks} == {2}


def test_glyph_numbers_are_not_taken_for_characters(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", ["这一页没有字符映射表，所以读出来全是乱码。"])
    with pytest.raises(UnreadableError, match=r"a\.pdf: no text in any of its 1 pages: 1 give no"):
        read(without_maps(path, cids=True))


def test_good_pages_are_not_garbled(tmp_path):
    pages = ["普通的中文，夹着 English 和数字 3.14。\n「引号」《书名》……", "Plain English.", CODE]
    assert read(write_pdf(tmp_path / "a.pdf", pages)).pages == {}
    assert read(with_embedded_font(tmp_path / "b.pdf", [p[:40] for p in pages])).pages == {}


def test_real_books_have_no_garbled_page(data, examples):
    for path in (*(data / "docs").glob("*.pdf"), examples / "bzip2-manual.pdf"):
        assert "garbled" not in read(path).pages
        assert "needs_ocr" not in read(path).pages


@pytest.mark.parametrize(
    ("text", "garbled"),
    [
        ("\ufffd" * 5 + "text", True),
        ("\ue001\ue002 \ue003 ab", True),
        ("\x01\x02\x03\x04\r\n\x05\x06", True),
        ("\uf0b7 a list\n\uf0b7 of two items", False),
        ("a hyphen\ufffe\r\nated word", False),
        ("naïve café — “quoted” … ½ ∑ → ①", False),
        ("", False),
    ],
)
def test_the_share_of_invalid_characters(text, garbled):
    assert is_garbled(text) is garbled


def test_a_document_of_lost_pages_says_how_many_and_what_to_do(tmp_path):
    path = drawn(tmp_path / "scan.pdf", [picture_page, picture_page])
    with pytest.raises(UnreadableError, match=r"scan\.pdf: .*2 pages: 2 are pictures; --ocr"):
        read(path)


def test_a_claimed_million_pages_is_refused(tmp_path, read_apart):
    path = write_pdf(tmp_path / "a.pdf", ["one"])
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"/Count 1 ", b"/Count 1000000 ", 1))
    with pytest.raises(UnreadableError, match=r"a\.pdf has 1,000,000 pages; at most 20,000 are"):
        read_apart(path)


def test_forms_that_hold_themselves_end(tmp_path, read_apart):
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    path = write_pdf(tmp_path / "a.pdf", ["text beside the form, enough of it"])
    writer = PdfWriter(clone_from=PdfReader(path))
    form = DecodedStreamObject()
    form.set_data(b"/F Do")
    form.update({NameObject("/Type"): NameObject("/XObject"),
                 NameObject("/Subtype"): NameObject("/Form")})  # fmt: skip
    reference = writer._add_object(form)
    forms = DictionaryObject({NameObject("/F"): reference})
    form[NameObject("/Resources")] = DictionaryObject({NameObject("/XObject"): forms})
    page = writer.pages[0]
    page["/Resources"][NameObject("/XObject")] = forms
    content = DecodedStreamObject()
    content.set_data(page.get_contents().get_data() + b"\n/F Do")
    page[NameObject("/Contents")] = writer._add_object(content)
    writer.write(path)
    assert "text beside the form" in text_of(read_apart(path))


def test_an_outline_that_runs_in_a_circle_ends(tmp_path, read_apart):
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import NameObject

    path = write_pdf(tmp_path / "a.pdf", ["First chapter\nits text", "Second chapter\nits text"])
    writer = PdfWriter(clone_from=PdfReader(path))
    first = writer.add_outline_item(title="First chapter", page_number=0)
    second = writer.add_outline_item(title="Second chapter", page_number=1)
    second.get_object()[NameObject("/Next")] = first.indirect_reference
    writer.write(path)
    parsed = read_apart(path)
    assert [b.section for b in parsed.blocks] == [("First chapter",), ("Second chapter",)]


def test_ranges_of_pages():
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
