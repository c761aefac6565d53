"""Which characters people use: what tells right text from text decoded wrongly."""

import re
from functools import cache
from itertools import pairwise

_EASTERN = frozenset({"gb18030", "cp950", "big5hkscs", "cp932", "euc_jp", "cp949"})
_LATIN = frozenset({"cp1252", "iso8859-15", "cp1250", "iso8859-2", "cp1254", "iso8859-9"})
_OTHERS = frozenset({"cp1251", "koi8-u", "cp866", "iso8859-5", "cp1253", "iso8859-7", "cp1255",
                     "cp1256", "cp874"})  # fmt: skip
_HEAD = 65_536  # characters looked at
_SIGNS = "\u00a0¡¢£¥§©«®°±²³´µ·º»¼½¾¿ª×÷‘’‚“”„†•…‰‹›€™–—"
_WESTERN = frozenset(_SIGNS + "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüÿŒœ")
_CANTONESE = "佢哋喺嗰嘅嘢啲咗冇咁噉嚟嘞喇唔睇嗌啱俾畀吓嗱喎啩噃嘥攞揾瞓"
# A single sign inside a Latin word: a letter with an accent, decoded wrongly.
_LONELY = re.compile(r"[A-Za-z][^\x00-\x7f](?=[A-Za-z])|(?<![^\x00-\x7f])[^\x00-\x7f](?=[a-z])")


def eastern(name: str) -> bool:
    """Whether an encoding, named as Python does, is a Chinese, Japanese or Korean one."""
    return name in _EASTERN


def known(name: str) -> bool:
    """Whether an encoding is common enough to be believed of a short text."""
    return name in _EASTERN | _LATIN | _OTHERS


def strange(text: str) -> int:
    """Characters beyond ASCII at the beginning of a text."""
    return sum(not c.isascii() for c in text[:_HEAD])


def likely(text: str, name: str) -> bool:
    """Whether text decoded from an encoding holds the characters people use in it."""
    text = text[:_HEAD]
    beyond = [c for c in text if not c.isascii()]
    if not beyond:
        return True
    if eastern(name):
        usual_ones = _usual_of(name)
        if 4 * len(_LONELY.findall(text)) > len(beyond):
            return False
        return sum(c in usual_ones for c in beyond) >= 0.8 * len(beyond)
    if _swapped_case(text) > 0.05 * len(beyond):
        return False
    if name in _LATIN:
        letters = [c for c in text if c.isalpha()]
        foreign = sum(not c.isascii() for c in letters)
        western = name != "cp1252" or sum(c in _WESTERN for c in beyond) >= 0.9 * len(beyond)
        return western and foreign <= 0.5 * len(letters)
    return True


def _swapped_case(text: str) -> int:
    """Capitals that stand right after a small letter, both beyond ASCII."""
    pairs = pairwise(text)
    return sum(a > "\x7f" and b > "\x7f" and a.islower() and b.isupper() for a, b in pairs)


def usual(text: str) -> float:
    """Share of usual characters of any script at the beginning of a text."""
    usual_ones = _usual_of("any")
    head = text[:_HEAD]
    return sum(c in usual_ones for c in head) / max(1, len(head))


@cache
def _usual_of(name: str) -> frozenset[str]:
    """The usual characters of an encoding: those that its standard puts first."""
    signs = _span(0xA0, 0x100) + _span(0x2010, 0x2040) + _span(0x3000, 0x3020)
    signs += _span(0x2500, 0x2580) + _span(0xFF01, 0xFF5F)
    simple = _rows("gb2312", (0xB0, 0xD8), (0xA1, 0xFF))
    traditional = _rows("big5", (0xA4, 0xC7), (0x40, 0xFF)) + _CANTONESE
    japanese = _rows("euc_jp", (0xB0, 0xD0), (0xA1, 0xFF)) + _span(0x3041, 0x3100)
    hangul = _rows("euc_kr", (0xB0, 0xC9), (0xA1, 0xFF))
    if name == "any":
        signs += "\t\n\r" + _span(0x20, 0x7F) + _span(0x100, 0x180) + _span(0x370, 0x530)
        signs += _span(0x5D0, 0x6FF) + _span(0xE01, 0xE5C)
        return frozenset(signs + simple + traditional + japanese + hangul)
    first = {"gb18030": simple + traditional, "cp932": japanese, "euc_jp": japanese,
             "cp949": hangul}  # fmt: skip
    return frozenset(signs + first.get(name, traditional))


def _span(start: int, end: int) -> str:
    return "".join(map(chr, range(start, end)))


def _rows(name: str, leads: tuple[int, int], trails: tuple[int, int]) -> str:
    pairs = (bytes((a, b)) for a in range(*leads) for b in range(*trails))
    return "".join(pair.decode(name, "ignore") for pair in pairs)
