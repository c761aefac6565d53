// Making elements; text only ever becomes text, never HTML.
export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

let noticed;
export function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = false;
  clearTimeout(noticed);
  noticed = setTimeout(() => { $("notice").hidden = true; }, 8000);
}

const LIST = /^\s*([-*+]|\d+[.)、])\s+/;

// A small part of Markdown: paragraphs, lists, code, headings, bold; `cite` makes what stands for [1].
export function marked(text, cite) {
  const nodes = [];
  for (const [i, part] of text.split("```").entries()) {
    if (i % 2) {
      nodes.push(make("pre", {}, make("code", { textContent: part.replace(/^[\w+-]*\n/, "") })));
      continue;
    }
    for (const block of part.split(/\n{2,}/)) {
      const lines = block.split("\n").filter((line) => line.trim());
      if (!lines.length) continue;
      if (lines.every((line) => LIST.test(line))) {
        const kind = /^\s*\d/.test(lines[0]) ? "ol" : "ul";
        const items = lines.map((line) => make("li", {}, ...inline(line.replace(LIST, ""), cite)));
        nodes.push(make(kind, {}, ...items));
      } else {
        const paragraph = make("p");
        for (const [n, line] of lines.entries()) {
          if (n) paragraph.append(make("br"));
          const heading = /^#{1,6}\s+/.test(line);
          const shown = inline(line.replace(/^#{1,6}\s+/, ""), cite);
          paragraph.append(...(heading ? [make("strong", {}, ...shown)] : shown));
        }
        nodes.push(paragraph);
      }
    }
  }
  return nodes;
}

function inline(text, cite) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\[\d+(?:\s*[,，]\s*\d+)*\])/).flatMap((part) => {
    if (/^`[^`]+`$/.test(part)) return [make("code", { textContent: part.slice(1, -1) })];
    if (/^\*\*[^*]+\*\*$/.test(part)) return [make("strong", { textContent: part.slice(2, -2) })];
    if (/^\[[\d\s,，]+\]$/.test(part)) return part.match(/\d+/g).map((n) => cite(Number(n)));
    return part ? [part] : [];
  });
}
