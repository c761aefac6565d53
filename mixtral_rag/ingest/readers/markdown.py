"""Markdown: the source text, cut at its headings."""

import itertools
from pathlib import Path

from mixtral_rag.ingest.readers import Block, Parsed, ReadOptions
from mixtral_rag.ingest.readers.encoding import decode


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read a Markdown file; headings become sections, the text stays as written."""
    from markdown_it import MarkdownIt

    source, encoding = decode(path)
    lines = source.split("\n")
    tokens = MarkdownIt("commonmark").parse(source)
    cuts = []  # line, level, heading
    for token, inline in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.map and token.level == 0:
            name = "".join(c.content for c in inline.children or [] if c.type in _TEXT)
            cuts.append((token.map[0], int(token.tag[1]), name.strip()))
    blocks: list[Block] = []
    headings: list[tuple[int, str]] = []
    start = 0
    for line, level, name in cuts:
        _add(blocks, lines[start:line], headings)
        headings = [h for h in headings if h[0] < level] + [(level, name)]
        start = line
    _add(blocks, lines[start:], headings)
    title = next((name for _, level, name in cuts if level == 1), "")
    return Parsed(title, blocks, encoding=encoding)


_TEXT = frozenset({"text", "code_inline"})


def _add(blocks: list[Block], lines: list[str], headings: list[tuple[int, str]]) -> None:
    if text := "\n".join(lines).strip():
        blocks.append(Block(text, None, tuple(name for _, name in headings)))
