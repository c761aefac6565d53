"""Whether each sentence of an answer is held by the passages it names.

What can be checked without another model is checked: quoted words must stand in the passage, and so
must numbers and names; most of a sentence's words should. That a sentence passes does not make it
true, but one that fails should not be relied on.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mixtral_rag.language import fold, sentences, terms
from mixtral_rag.types import Claim, Passage

_OPEN, _CLOSE, _BETWEEN = r"\[［【", r"\]］】", r"\s*[,，、;；]\s*"
NUMBERS = re.compile(rf"[{_OPEN}](\d{{1,3}}(?:{_BETWEEN}\d{{1,3}})*)[{_CLOSE}]")
_LEADING_MARKS = re.compile(rf"(?:\s*{NUMBERS.pattern})+\s*")
_HALF_MARK = re.compile(r"[\[［【][\d\s,，、;；]{0,80}$")
_QUOTED = re.compile(
    r"“([^“”]{2,})”|\"([^\"]{2,})\"|「([^「」]{2,})」|『([^『』]{2,})』|《([^《》]{2,})》"
)
_ARABIC = re.compile(r"\d+(?:[,，]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)*")
_DIGITS = dict(zip("零〇一二两三四五六七八九", (0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000}
_HAN_NUMBER = re.compile(f"[{''.join([*_DIGITS, *_UNITS])}]+")
_NAME = re.compile(r"(?<=[^\W\d_] )[A-Z][\w’'-]+|(?<![\w])[A-Z]{2,}[A-Z0-9]*(?![\w])")
_LEAST_SHARED = 0.3  # of a sentence's terms that its passages must hold


def marks_pattern(numbers: Iterable[int]) -> str:
    """A regular expression of the texts whose marks name only passages of these numbers.

    A number in brackets is a mark unless it is a year, as in 国发[2008]5号: a model that may write
    `[7.` on its way out of an impossible `[7]` would.
    """
    known = f"(?:{'|'.join(str(number) for number in sorted(numbers, reverse=True))})"
    mark = f"{known}(?:{_BETWEEN}{known})*[{_CLOSE}]"
    no_mark = rf"[^\d{_OPEN}]|(?:19|20)[0-9]{{2}}[{_CLOSE}]"
    return f"(?:[^{_OPEN}]|[{_OPEN}]+(?:{mark}|{no_mark}))*[{_OPEN}]*"


def checked(answer: str, passages: Sequence[Passage]) -> tuple[Claim, ...]:
    """The sentences of an answer, each with the passages it names and what is wrong with it."""
    return tuple(check(s, passages) for s in statements(answer) if _says_something(s))


def _says_something(sentence: str) -> bool:
    """Not a mark alone, nor what leads up to a list."""
    said = NUMBERS.sub("", sentence).strip()
    return bool(terms(said)) and not said.endswith((":", "："))


def statements(text: str) -> list[str]:
    """The sentences of a text, each with the marks that follow it; joined they give the text."""
    parts: list[str] = []
    for sentence in sentences(text):
        lead = _LEADING_MARKS.match(sentence)
        rest = sentence[lead.end() :] if lead else sentence
        if parts and lead and (not rest.strip() or not numbers_in(parts[-1])):
            parts[-1] += sentence[: lead.end()]
        elif parts and not rest.strip():
            parts[-1], rest = parts[-1] + sentence, ""
        else:
            rest = sentence
        if rest:
            parts.append(rest)
    return parts


def check(sentence: str, passages: Sequence[Passage]) -> Claim:
    """One sentence against the passages it names, or against all where it names none."""
    named = numbers_in(sentence)
    known = [n for n in named if 1 <= n <= len(passages)]
    problems = [f"there is no passage [{n}]" for n in named if n not in known]
    said = NUMBERS.sub("", sentence).strip()
    if known:
        problems += _missing(said, [passages[n - 1] for n in known])
        return Claim(said, tuple(known), tuple(problems))
    if not any(not _missing(said, [p]) for p in passages):
        problems.append("no passage is named, and none holds all of it")
    return Claim(said, (), tuple(problems))


def numbers_in(text: str) -> list[int]:
    """The passages that a text names, in order, each once."""
    said = (int(n) for group in NUMBERS.findall(text) for n in re.findall(r"\d+", group))
    return list(dict.fromkeys(said))


def renumbered(text: str, numbers: Mapping[int, int]) -> str:
    """A text with other numbers in its marks; those that are not among `numbers` become 0."""
    return NUMBERS.sub(
        lambda mark: re.sub(r"\d+", lambda n: str(numbers.get(int(n[0]), 0)), mark[0]), text
    )


def _missing(said: str, passages: Sequence[Passage]) -> list[str]:
    """What a sentence says that some passages do not hold."""
    held = " ".join(" ".join((p.title, *p.section, p.text)) for p in passages)
    plain = _spaced(held)
    quotes = [q for found in _QUOTED.findall(said) for q in found if q]
    problems = [f"“{q}” does not stand there" for q in quotes if _spaced(q) not in plain]
    values = set(_numbers(held, least=1))
    problems += [f"{n} does not stand there" for n in _numbers(said, least=2) if n not in values]
    problems += [
        f"{name} does not stand there" for name in _NAME.findall(said) if fold(name) not in plain
    ]
    wanted = terms(said)
    if len(wanted & terms(held)) < _LEAST_SHARED * len(wanted):
        problems.append("few of its words stand there")
    return list(dict.fromkeys(problems))


def _spaced(text: str) -> str:
    return " ".join(fold(text).split())


def _numbers(text: str, *, least: int) -> Iterator[str]:
    """Numbers as digits without separators; Chinese ones of at least so many characters."""
    text = fold(text)
    for found in _ARABIC.findall(text):
        yield found.replace(",", "").replace("，", "")
    for run in _HAN_NUMBER.findall(text):
        if len(run) >= least:
            yield str(_value(run))


def _value(run: str) -> int:
    """The value of a Chinese number: 三百二十 is 320, 二〇〇八 is 2008."""
    if not any(c in _UNITS for c in run):
        return int("".join(str(_DIGITS[c]) for c in run))
    total = section = digit = 0
    for c in run:
        if c in _DIGITS:
            digit = _DIGITS[c]
        elif (unit := _UNITS[c]) >= 10_000:
            total = (total + section + digit) * unit if section + digit else total + unit
            section = digit = 0
        else:
            section += (digit or 1) * unit
            digit = 0
    return total + section + digit


def whole_marks(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces of text such that no mark like `[12]` is in two of them."""
    held = ""
    for piece in pieces:
        held += piece
        mark = _HALF_MARK.search(held)
        ready = held[: mark.start()] if mark else held
        if ready:
            yield ready
        held = held[len(ready) :]
    if held:
        yield held


def supported_only(pieces: Iterable[str], passages: Sequence[Passage]) -> Iterator[str]:
    """A text sentence by sentence, without those that `check` finds something wrong with."""
    held = ""
    for piece in pieces:
        held += piece
        *done, held = statements(held) or [""]
        yield from (s for s in done if _may_stay(s, passages))
    if held and _may_stay(held, passages):
        yield held


def _may_stay(sentence: str, passages: Sequence[Passage]) -> bool:
    return not _says_something(sentence) or not check(sentence, passages).problems
