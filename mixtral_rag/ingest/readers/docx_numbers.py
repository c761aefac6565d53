"""Numbers and bullets that Word computes for paragraphs, such as `第三条` and `2.1`."""

import re
from dataclasses import dataclass, field

from mixtral_rag.ingest.readers.ooxml import Element, child, get, local

_HAN = "零一二三四五六七八九"
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"),
          (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))  # fmt: skip
_CHINESE = frozenset({"chineseCounting", "chineseCountingThousand", "japaneseCounting",
                      "ideographDigital", "taiwaneseCounting", "taiwaneseCountingThousand",
                      "koreanDigital2", "chineseLegalSimplified"})  # fmt: skip


@dataclass
class _Level:
    style: str
    pattern: str
    start: int


@dataclass
class Numbers:
    """The lists of a document and where each has got to.

    Args:
        levels: the levels of each list, by the list's identifier.
        series: the identifier of what lists share a count.
    """

    levels: dict[str, dict[int, _Level]] = field(default_factory=dict)
    series: dict[str, str] = field(default_factory=dict)
    _counts: dict[str, dict[int, int]] = field(default_factory=dict)

    def next(self, list_id: str, depth: int) -> str:
        """The mark of the list's next paragraph at `depth`: `2.1 `, `- `, or nothing."""
        levels = self.levels.get(list_id, {})
        level = levels.get(depth)
        if level is None or level.style == "none":
            return ""
        if level.style == "bullet":
            return "  " * min(depth, 8) + "- "
        counts = self._counts.setdefault(self.series[list_id], {})
        counts[depth] = counts.get(depth, level.start - 1) + 1
        for deeper in [d for d in counts if d > depth]:
            del counts[deeper]

        def number(match: re.Match[str]) -> str:
            wanted = int(match[1]) - 1
            of = levels.get(wanted, level)
            return written(counts.get(wanted, of.start), of.style)

        mark = re.sub(r"%([1-9])", number, level.pattern).strip()
        return f"{mark} " if mark else ""


def numbers_of(root: Element) -> Numbers:
    """The lists that `numbering.xml` defines; None gives none."""
    found = Numbers()
    if root is None:
        return found
    abstract = {get(e, "abstractNumId"): e for e in root if local(e) == "abstractNum"}
    for num in (e for e in root if local(e) == "num"):
        list_id, base = get(num, "numId"), get(child(num, "abstractNumId"), "val")
        levels = _levels(abstract.get(base))
        restarted = False
        for change in (e for e in num if local(e) == "lvlOverride"):
            depth = _int(get(change, "ilvl"), 0)
            levels.update(_levels(change))
            start = get(child(change, "startOverride"), "val")
            if start and depth in levels:
                levels[depth].start, restarted = _int(start, 1), True
        found.levels[list_id] = levels
        found.series[list_id] = f"own {list_id}" if restarted else base
    return found


def _levels(element: Element) -> dict[int, _Level]:
    found = {}
    for level in element if element is not None else ():
        if local(level) == "lvl":
            found[_int(get(level, "ilvl"), 0)] = _Level(
                get(child(level, "numFmt"), "val") or "decimal",
                get(child(level, "lvlText"), "val"),
                _int(get(child(level, "start"), "val"), 1),
            )
    return found


def written(number: int, style: str) -> str:
    """A number in one of Word's styles; an unknown style gives digits."""
    if not 0 < number < 10_000:
        return str(number)
    if style in _CHINESE:
        return _chinese(number)
    if style in ("lowerLetter", "upperLetter"):
        letters = chr(ord("a") + (number - 1) % 26) * min(10, (number - 1) // 26 + 1)
        return letters if style == "lowerLetter" else letters.upper()
    if style in ("lowerRoman", "upperRoman"):
        out, rest = "", number
        for value, letters in _ROMAN:
            out += letters * (rest // value)
            rest %= value
        return out if style == "lowerRoman" else out.upper()
    if style.startswith("decimalEnclosedCircle") and number <= 20:
        return chr(0x2460 + number - 1)
    if style == "ideographTraditional" and number <= 10:
        return "甲乙丙丁戊己庚辛壬癸"[number - 1]
    return f"{number:02}" if style == "decimalZero" else str(number)


def _chinese(number: int) -> str:
    out = ""
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // unit % 10
        if digit:
            out += _HAN[digit] + name
        elif out and number % unit and not out.endswith("零"):
            out += "零"
    return out.removeprefix("一") if 10 <= number < 20 else out


def _int(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else default
