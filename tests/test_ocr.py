import difflib
import json
import shutil
import subprocess

import pytest
from test_pdf_pages import FONT, picture_page, with_embedded_font, without_maps

from mixtral_rag.errors import SettingsError, UnreadableError
from mixtral_rag.ingest import heartbeat
from mixtral_rag.ingest.readers import ReadOptions, ocr, read

CHINESE = [
    "图书馆每天上午九点开门，晚上八点关门，周一休息。",
    "读者可以凭借书证一次借五本书，借期为三十天。",
    "请不要在书上写字，也不要把食物带进阅览室。",
]
ENGLISH = [
    "The library opens every day at nine in the morning.",
    "Readers may borrow up to five books for thirty days.",
]


@pytest.fixture(scope="session")
def tesseract():
    if shutil.which("tesseract") is None:
        pytest.skip("tesseract is not installed; apt install tesseract-ocr tesseract-ocr-chi-sim")
    listed = subprocess.run(["tesseract", "--list-langs"], capture_output=True, text=True).stdout
    if "chi_sim" not in listed.split():
        pytest.skip("tesseract does not know chi_sim; apt install tesseract-ocr-chi-sim")


def scanned(path, lines):
    """A PDF of one page that is a picture of these lines."""
    import pypdfium2
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont
    from reportlab.pdfgen.canvas import Canvas

    if not FONT.is_file():
        pytest.skip(f"no {FONT}; on Debian: apt install fonts-wqy-microhei")
    pdfmetrics.registerFont(TTFont("scanned", str(FONT), subfontIndex=0))
    source = path.with_suffix(".source.pdf")
    canvas = Canvas(str(source))
    canvas.setFont("scanned", 13)
    for n, line in enumerate(lines):
        canvas.drawString(70, 740 - 24 * n, line)
    canvas.save()
    document = pypdfium2.PdfDocument(source)
    image = document[0].render(scale=200 / 72).to_pil()
    document.close()
    canvas = Canvas(str(path))
    canvas.drawImage(ImageReader(image), 0, 0, 595, 842)
    canvas.save()
    return path


def likeness(found, lines):
    """Share of characters read right, spaces aside."""
    wanted, got = "".join("".join(lines).split()), "".join(found.split())
    matcher = difflib.SequenceMatcher(None, wanted, got, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / max(len(wanted), len(got))


def text_of(parsed):
    return "\n".join(b.text for b in parsed.blocks)


def test_a_scanned_page_is_read_in_both_languages(tesseract, tmp_path):
    path = scanned(tmp_path / "scan.pdf", CHINESE + ENGLISH)
    with pytest.raises(UnreadableError, match="--ocr"):
        read(path)
    signs = []
    heartbeat.listen(lambda: signs.append(1))
    parsed = read(path, ReadOptions(ocr="chi_sim+eng"))
    assert parsed.pages == {"ocr": [1]}
    assert likeness(text_of(parsed), CHINESE + ENGLISH) >= 0.95
    assert "图书馆每天" in text_of(parsed)  # no spaces between the characters
    assert "library opens every day" in text_of(parsed)
    assert signs


def test_a_chinese_page_is_not_read_as_english_in_places(tesseract, tmp_path, data):
    articles = json.loads((data / "cmrc2018" / "cmrc2018_dev.json").read_text("utf-8"))["data"]
    paragraphs = [p["context"] for a in articles for p in a["paragraphs"]]
    text = paragraphs[3] + paragraphs[4]
    lines = [text[i : i + 34] for i in range(0, min(len(text), 26 * 34), 34)]
    path = scanned(tmp_path / "scan.pdf", lines)
    for languages in ("chi_sim+eng", "eng+chi_sim"):
        found = text_of(read(path, ReadOptions(ocr=languages)))
        assert likeness(found, lines) >= 0.96  # the languages together give 0.93 and 0.88


def test_an_english_page_is_read_as_english(tesseract, tmp_path):
    path = scanned(tmp_path / "scan.pdf", ENGLISH * 6)
    signs = []
    heartbeat.listen(lambda: signs.append(1))
    found = text_of(read(path, ReadOptions(ocr="chi_sim+eng")))
    assert likeness(found, ENGLISH * 6) >= 0.99
    assert len(signs) >= 3  # before, between and after two attempts


def test_a_garbled_page_is_read_from_its_picture(tesseract, tmp_path):
    path = without_maps(with_embedded_font(tmp_path / "a.pdf", [CHINESE[0]]))
    parsed = read(path, ReadOptions(ocr="chi_sim+eng"))
    assert parsed.pages == {"ocr": [1]}
    assert CHINESE[0][:8] in text_of(parsed)


def test_a_photo_without_words_gives_no_text(tesseract, tmp_path):
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "a.pdf"))
    canvas.drawString(60, 700, "A page with a proper sentence of text on it.")
    canvas.showPage()
    picture_page(canvas)
    canvas.save()
    parsed = read(tmp_path / "a.pdf", ReadOptions(ocr="chi_sim+eng"))
    assert "ocr" not in parsed.pages
    assert {b.page for b in parsed.blocks} == {1}
    assert parsed.problems == []


def test_a_failing_tesseract_is_told_of_and_costs_only_its_page(tesseract, tmp_path):
    from pypdf import PdfWriter

    writer = PdfWriter()
    writer.append(scanned(tmp_path / "scan.pdf", ENGLISH))
    writer.append(with_embedded_font(tmp_path / "text.pdf", ENGLISH[:1]))
    writer.write(tmp_path / "both.pdf")
    parsed = read(tmp_path / "both.pdf", ReadOptions(ocr="nonesuch"))
    assert parsed.pages == {"needs_ocr": [1]}
    assert "page 1: tesseract failed" in parsed.problems[0]
    assert "library" in text_of(parsed)


def test_check_before_an_ingest(tesseract):
    ocr.check("chi_sim+eng")
    with pytest.raises(SettingsError, match=r"does not know xyz_abc; .*tesseract-ocr-xyz-abc"):
        ocr.check("eng+xyz_abc")


def test_check_names_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=r"apt install tesseract-ocr tesseract-ocr-chi-sim"):
        ocr.check("chi_sim+eng")
    with pytest.raises(SettingsError, match="brew install tesseract tesseract-lang"):
        ocr.check("eng")


@pytest.mark.parametrize("languages", ["", "-h", "chi sim", "eng;ls", "+eng", "../x y"])
def test_check_refuses_what_are_no_languages(languages):
    with pytest.raises(SettingsError, match="such as chi_sim\\+eng"):
        ocr.check(languages)


def row(text, confidence, line=1):
    return f"5\t1\t1\t1\t{line}\t1\t0\t0\t9\t9\t{confidence}\t{text}"


def test_spaces_go_between_words_and_not_between_chinese_characters():
    words = ["使用", "Python", "语言", "，", "共", "3", "章", "。"]
    found = ocr.from_tsv("\n".join(["head", *(row(w, 95.0) for w in words)]))
    assert found.lines == ["使用 Python 语言，共 3 章。"]


def test_words_that_are_not_sure_give_no_text():
    table = "\n".join(["head", *(row("noise", 31.0, line) for line in range(20))])
    assert ocr.from_tsv(table) == ocr.Recognised([], doubtful=True, confidence=31.0)
    assert ocr.from_tsv("head\n" + row("~", 12.0)) == ocr.Recognised([], False, 12.0)
