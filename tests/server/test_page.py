"""The page in a real browser, as a person uses it."""

import re
import shutil

import pytest
from documents import write_pdf
from model_servers import LOCAL_HTTP
from served import running, wait

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [*LOCAL_HTTP, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]
expect = playwright.expect


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        one = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory, smollm):
    """A server of this module's own, with nothing in it."""
    with running(tmp_path_factory.mktemp("site"), smollm) as one:
        yield one


@pytest.fixture
def page(browser, site):
    """A page that must not ask any other host, nor stumble."""
    context = browser.new_context(locale="en-US", viewport={"width": 1280, "height": 800})
    one = context.new_page()
    asked, faults = [], []
    one.on("request", lambda request: asked.append(request.url))
    one.on("pageerror", lambda error: faults.append(str(error)))
    one.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    one.goto(site.url)
    one.asked = asked
    yield one
    context.close()
    assert all(url.startswith((site.url, "blob:", "data:")) for url in asked), asked
    assert [f for f in faults if "Failed to load resource" not in f] == []


@pytest.fixture
def manual(tmp_path):
    pages = [
        "Pump P-7. This manual is for the people who run it.",
        "Oil. The pump P-7 takes 4.5 litres of mineral oil, changed every 900 hours.",
    ]
    write_pdf(tmp_path / "pump.pdf", pages)
    return tmp_path / "pump.pdf"


def upload(page, path):
    page.set_input_files("#files", str(path))
    expect(page.locator("#documents li", has_text=path.name)).to_be_visible(timeout=60_000)


def ask(page, question):
    page.fill("#question", question)
    page.press("#question", "Enter")


def answered(page):
    expect(page.locator("#send")).to_be_visible(timeout=120_000)


def test_upload_ask_and_open_the_source(page, manual):
    upload(page, manual)
    ask(page, "What oil does the pump P-7 take?")
    answered(page)
    source = page.locator(".sources button").first
    expect(source).to_contain_text("pump.pdf")
    source.click()
    picture = page.locator("#page img")
    expect(picture).to_be_visible()
    wait(lambda: picture.evaluate("node => node.complete && node.naturalWidth > 500"))
    expect(page.locator("#page-number")).to_have_text("Page 2 of 2")
    box = page.locator("#page .mark").first.bounding_box()
    assert box["width"] > 50
    assert box["height"] > 3
    page.click("#previous")
    expect(page.locator("#page-number")).to_have_text("Page 1 of 2")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(source).to_be_focused()


def test_a_file_can_be_dropped_and_deleted(page):
    page.evaluate("""() => {
        const data = new DataTransfer();
        data.items.add(new File(["# Lamp\\n\\nThe lamp is green."], "灯.md"));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
    }""")
    row = page.locator("#documents li", has_text="灯.md")
    expect(row).to_be_visible(timeout=60_000)
    page.on("dialog", lambda dialog: dialog.accept())
    row.locator("button").click()
    expect(row).to_have_count(0, timeout=30_000)


def test_an_answer_streams_and_stops(page, site):
    page.uncheck("#grounded")
    page.evaluate("localStorage.setItem('mixtral_rag.settings', '{\"maxTokens\": 1500}')")
    page.reload()
    page.uncheck("#grounded")
    ask(page, "Write a very long story about a river.")
    said = page.locator(".message.assistant").last
    expect(page.locator("#stop")).to_be_visible()
    wait(lambda: len(said.inner_text()) > 20)
    first = len(said.inner_text())
    wait(lambda: len(said.inner_text()) > first)
    page.click("#stop")
    expect(said).to_contain_text("(stopped)")
    wait(site.is_idle, seconds=5)
    expect(page.locator("#send")).to_be_visible()


def test_chats_are_kept_and_can_be_deleted(page):
    page.uncheck("#grounded")
    ask(page, "Say a word.")
    answered(page)
    page.reload()
    page.locator("#chats li button").first.click()
    expect(page.locator(".message.user")).to_have_text("Say a word.")
    page.click("#new-chat")
    expect(page.locator(".message")).to_have_count(0)
    page.locator("#chats li button").nth(1).click()
    expect(page.locator("#chats li")).to_have_count(0)


def test_collections_are_apart(page, manual, tmp_path):
    page.on("dialog", lambda d: d.accept("second" if d.type == "prompt" else ""))
    page.click("#new-collection")
    expect(page.locator("#collection")).to_have_value("second")
    note = tmp_path / "note.md"
    note.write_text("# Note\n\nThe gate opens at seven.")
    upload(page, note)
    page.select_option("#collection", "default")
    expect(page.locator("#documents li", has_text="note.md")).to_have_count(0)
    page.select_option("#collection", "second")
    page.click("#delete-collection")
    expect(page.locator("#collection")).to_have_value("default")


def test_a_file_that_cannot_be_read_is_told(page, tmp_path):
    bad = tmp_path / "bad.pdf"
    bad.write_bytes(b"%PDF-1.4 nonsense")
    page.set_input_files("#files", str(bad))
    expect(page.locator("#notice")).to_contain_text("bad.pdf", timeout=60_000)
    expect(page.locator("#documents li.bad")).to_be_visible()
    other = tmp_path / "evil.exe"
    other.write_bytes(b"MZ")
    page.set_input_files("#files", str(other))
    expect(page.locator("#notice")).to_contain_text("known are")


def test_html_of_documents_and_answers_never_runs(page, tmp_path):
    evil = tmp_path / "evil.md"
    evil.write_text("# Parrots\n\n<img src=x onerror=\"document.title='run'\"> Parrots are green.")
    upload(page, evil)
    ask(page, "What colour are parrots? <img src=x onerror=\"document.title='run'\">")
    answered(page)
    if page.locator(".sources button").count():
        page.locator(".sources button").first.click()
        expect(page.locator("#page")).to_contain_text("<img src=x")
    assert page.title() == "mixtral_rag"
    assert page.locator("#messages img").count() == 0


def test_it_speaks_chinese(browser, site):
    context = browser.new_context(locale="zh-CN")
    page = context.new_page()
    page.goto(site.url)
    expect(page.locator("#send")).to_have_text("发送")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.click("#open-settings")
    page.select_option("#set-language", "en")
    page.click("#settings button[value=close]")
    expect(page.locator("#send")).to_have_text("Send")
    context.close()


def test_both_languages_have_every_word(page):
    text = page.request.get(f"{page.url}web/words.js").text()
    english, chinese = text.split("  zh: {")
    parts = english, chinese.split("};")[0]
    names = [set(re.findall(r"(\w+): (?:\"|\()", part)) for part in parts]
    assert names[0] == names[1]
    assert len(names[0]) > 50


def test_it_works_on_a_phone(browser, site):
    context = browser.new_context(viewport={"width": 390, "height": 800}, locale="en-US")
    page = context.new_page()
    page.goto(site.url)
    for part in ("#send", "#question", "#open-settings", "#messages"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    expect(page.locator("#side")).to_be_hidden()
    page.click("#menu")
    expect(page.locator("#new-chat")).to_be_visible()
    page.click("#new-chat")
    expect(page.locator("#side")).to_be_hidden()
    expect(page.locator("#question")).to_be_focused()
    context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_bars_a_person(browser, site, theme, width, tmp_path):
    """Axe finds no violation of WCAG 2.1 AA, with an answer and its source open."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(
        color_scheme=theme, viewport={"width": width, "height": 800}, locale="en-US",
        bypass_csp=True,
    )  # fmt: skip
    page = context.new_page()
    page.goto(site.url)
    note = tmp_path / "river.md"
    note.write_text("# River\n\nThe river Lo is 312 kilometres long and ends in the sea.")
    page.set_input_files("#files", str(note))
    expect(page.locator("#documents li", has_text="river.md")).to_be_attached(timeout=60_000)
    ask(page, "How long is the river Lo?")
    answered(page)
    found = [axe.run(page)]
    if page.locator(".sources button").count():
        page.locator(".sources button").first.click()
        expect(page.locator("#page .text").first).to_be_visible()
        found.append(axe.run(page))
        page.click("#close-viewer")
    page.click("#open-settings")
    found.append(axe.run(page))
    violations = [v["id"] for f in found for v in f.response["violations"]]
    context.close()
    assert violations == []


def test_a_key_opens_the_page(browser, tmp_path, smollm):
    with running(tmp_path, smollm, keys=("ann",), preload=False) as one:
        context = browser.new_context()
        page = context.new_page()
        page.goto(one.url)
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        expect(page.locator("#key")).to_be_visible()
        page.goto(one.url)
        page.fill("#key", one.made["ann"])
        page.press("#key", "Enter")
        expect(page.locator("#question")).to_be_visible()
        chat = [{"id": "1", "turns": [{"question": "a secret", "text": "x", "citations": []}]}]
        page.evaluate("c => localStorage.setItem('mixtral_rag.chats', JSON.stringify(c))", chat)
        page.reload()
        page.click("#open-settings")
        page.once("dialog", lambda dialog: dialog.dismiss())
        page.click("#log-out")
        expect(page.locator("#log-out")).to_be_visible()
        assert "secret" in page.evaluate("localStorage.getItem('mixtral_rag.chats')")
        other = context.new_page()
        other.goto(one.url)
        expect(other.locator("#question")).to_be_visible()
        page.once("dialog", lambda dialog: dialog.accept())
        page.click("#log-out")
        expect(page.locator("#key")).to_be_visible()
        expect(other.locator("#key")).to_be_visible()
        assert page.evaluate("localStorage.getItem('mixtral_rag.chats')") is None
        context.close()
