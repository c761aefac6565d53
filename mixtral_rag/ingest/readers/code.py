"""Source code: cut at its functions and classes, whose names are the sections."""

import ast
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from mixtral_rag.ingest.readers import Block, Parsed, ReadOptions
from mixtral_rag.ingest.readers.encoding import decode

_KEYWORD = re.compile(
    r"^(?:[\w@]+\s+){0,5}(?:class|struct|interface|enum|trait|impl|union|record|object|protocol"
    r"|namespace|module|func|fun|fn|function|def|sub|proc|message|service)\b(?:<[^>]*>)?\s+"
    r"(?:\([^)]*\)\s*)?([\w$.:~]+)"
)
# What stands before the bracket of a function in C's manner: types and the name, nothing else.
_BEFORE_BRACKET = re.compile(r"^[A-Za-z_~][\w\s*&<>:,~\[\]]*$")
_ARROW = re.compile(r"^(?:export\s+)?(?:const|let|var)\s+([\w$]+)\s*=\s*(?:async\b|function|\()")
_SQL = re.compile(
    r"^create\s+(?:or\s+replace\s+)?(?:table|view|function|procedure|trigger)\s+"
    r"(?:if\s+not\s+exists\s+)?([\w.`\"\[\]]+)",
    re.IGNORECASE,
)
_TABLE = re.compile(r"^\[+([^\]]+)\]+\s*$")
_NO_NAMES = frozenset({"if", "for", "while", "switch", "return", "else", "catch", "do", "elif"})
_SETTINGS = frozenset({".ini", ".cfg", ".conf", ".toml"})
_PLAIN = frozenset({".yaml", ".yml", ".properties", ".bat", ".cmake"})


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read a source file, with the functions and classes as sections."""
    source, encoding = decode(path)
    lines = source.split("\n")
    suffix = path.suffix.lower()
    starts = _python(source) if suffix in (".py", ".pyi") else None
    if starts is None:
        starts = [] if suffix in _PLAIN else list(_others(lines, suffix in _SETTINGS))
    return Parsed("", list(_blocks(lines, starts)), encoding=encoding)


def _blocks(lines: list[str], starts: list[tuple[int, tuple[str, ...]]]) -> Iterator[Block]:
    """Blocks of the lines, cut where 0-based `starts` begin a section."""
    cuts: list[tuple[int, tuple[str, ...]]] = [(0, ()), *starts, (len(lines), ())]
    for (start, section), (end, _) in itertools.pairwise(cuts):
        if text := "\n".join(lines[start:end]).strip("\n"):
            yield Block(text, None, section)


def _python(source: str) -> list[tuple[int, tuple[str, ...]]] | None:
    """Where functions, classes and methods begin, None when it is not Python 3."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # the last two are the parser's own, for what nests too deeply
    found: list[tuple[int, tuple[str, ...]]] = []

    def visit(nodes: list[ast.stmt], section: tuple[str, ...]) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                found.append((first - 1, (*section, node.name)))
                if isinstance(node, ast.ClassDef) and len(section) < 3:
                    visit(node.body, (*section, node.name))
                found.append((node.end_lineno or node.lineno, section))

    visit(tree.body, ())
    return found


def _others(lines: list[str], is_settings: bool) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Where definitions begin that stand at the left edge, with the comment above them."""
    paragraph = 0  # where the run of lines without an empty one began
    is_inside = False
    for at, line in enumerate(lines):
        if not line.strip():
            paragraph = at + 1
        elif not line[0].isspace():
            name = _name(line[:200], is_settings)
            if name:
                yield (paragraph if _are_comments(lines[paragraph:at]) else at), (name,)
                is_inside = True
            elif is_inside and paragraph == at and line[0].isalpha() and not is_settings:
                yield at, ()
                is_inside = False


def _are_comments(lines: list[str]) -> bool:
    return all(x.lstrip().startswith(("//", "/*", "*", "#", "--", "@", ";")) for x in lines)


def _name(line: str, is_settings: bool) -> str:
    if is_settings:
        match = _TABLE.match(line)
        return match[1].strip() if match else ""
    for pattern in (_KEYWORD, _ARROW, _SQL):
        if match := pattern.match(line):
            return match[1].strip(':`"[]')
    head, bracket, rest = line.partition("(")
    words = re.split(r"[\s*&]+", head.strip())
    if not bracket or words[0] in _NO_NAMES or not _BEFORE_BRACKET.match(head):
        return ""
    return "" if ";" in rest or "=" in rest else words[-1]
