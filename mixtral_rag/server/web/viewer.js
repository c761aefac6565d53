// The source of a citation: the page of a PDF with its words marked, or the passage as text.
import { at, call } from "./api.js";
import { $, make, notice } from "./dom.js";
import { word } from "./words.js";

let shown = null; // { collection, citation, page, pages }
let opener = null;

export function close() {
  $("viewer").hidden = true;
  document.body.classList.remove("with-viewer");
  opener?.focus();
  opener = null;
}

export async function open(collection, citation) {
  opener = document.activeElement;
  $("viewer-title").textContent = citation.name;
  $("original").href = `${at(collection)}/documents/${citation.document}/original`;
  $("viewer").hidden = false;
  document.body.classList.add("with-viewer");
  $("page").replaceChildren();
  $("close-viewer").focus();
  shown = { collection, citation, page: citation.pages?.[0] ?? 1, pages: 1 };
  const isPdf = citation.pages && citation.name.toLowerCase().endsWith(".pdf");
  try {
    if (isPdf) await showQuoted();
    else await showText();
  } catch (error) {
    if (isPdf) await showText().catch((other) => notice(other.message));
    else notice(error.message);
  }
}

// A passage may go over several pages; the quote stands on one of them.
async function showQuoted() {
  const [first, last] = shown.citation.pages;
  for (let page = first; page <= Math.min(last, first + 4); page += 1) {
    const found = await marksOn(page);
    if (found.marks.length || page === last) return showPage(found);
  }
  return showPage(await marksOn(first));
}

const base = () => `${at(shown.collection)}/documents/${shown.citation.document}`;

const marksOn = (page) =>
  call(`${base()}/pages/${page}?words=${encodeURIComponent(shown.citation.quote.slice(0, 500))}`);

function showPage({ page, n_pages: pages, marks }) {
  shown.page = page;
  shown.pages = pages;
  const picture = make("img", { src: `${base()}/pages/${page}.png`, alt: word("pageOf", page, pages) });
  const sheet = make("div", { className: "sheet" }, picture);
  for (const [left, top, width, height] of marks) {
    const mark = make("div", { className: "mark" });
    Object.assign(mark.style, {
      left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * width}%`,
      height: `${100 * height}%`,
    });
    sheet.append(mark);
  }
  $("page").replaceChildren(sheet);
  picture.addEventListener("load", () => sheet.querySelector(".mark")
    ?.scrollIntoView({ block: "center" }));
  $("pager").hidden = false;
  $("page-number").textContent = word("pageOf", page, pages);
  $("previous").disabled = page <= 1;
  $("next").disabled = page >= pages;
}

async function showText() {
  const { citation } = shown;
  const { passages } = await call(`${base()}/passages?position=${citation.position}&around=1`);
  const parts = passages.map((passage) => {
    const isIt = passage.position === citation.position;
    const node = make("div", { className: isIt ? "text" : "text near" });
    node.append(...(isIt ? quoted(passage.text, citation.quote) : [passage.text]));
    return node;
  });
  if (!parts.length) parts.push(make("div", { className: "text" }, ...quoted(citation.text, citation.quote)));
  $("page").replaceChildren(...parts);
  $("pager").hidden = false;
  $("page-number").textContent = citation.where || "";
  $("previous").disabled = $("next").disabled = true;
  $("page").querySelector("mark")?.scrollIntoView({ block: "center" });
}

function quoted(text, quote) {
  const start = quote ? text.indexOf(quote) : -1;
  if (start < 0) return [text];
  return [text.slice(0, start), make("mark", { textContent: quote }),
    text.slice(start + quote.length)];
}

async function turn(by) {
  try {
    showPage(await marksOn(shown.page + by));
  } catch (error) {
    notice(error.message);
  }
}

$("close-viewer").addEventListener("click", close);
$("previous").addEventListener("click", () => turn(-1));
$("next").addEventListener("click", () => turn(1));
