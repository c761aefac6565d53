"""Small questions about text: which language, which words, which sentences."""

import functools
import re
import string

from mixtral_rag.types import Language

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HAN_CHAR = re.compile(f"[{_HAN}]")
_HAN_RUN = re.compile(f"[{_HAN}]+")
_WORD = re.compile(rf"[^\W_{_HAN}]+(?:[.'’-][^\W_{_HAN}]+)*")

# A sentence ends after Chinese or Western end marks with the quotes and brackets that close it,
# or at a line break. A Western full stop ends one only before white space: not in 3.5 or a.py.
# Possessive, and never from inside a run of marks: so that no text takes quadratic time.
_SENTENCE_END = re.compile(
    r"[。！？；…]++[”’」』）】》]*+|(?<![.!?;])[.!?;]++[\"'”’)\]]*+(?=\s|$)|\n++"
)

_STOP_WORDS = frozenset([
    "a", "an", "and", "are", "as", "at", "be", "by", "can", "do", "does", "for", "from", "have",
    "how", "i", "if", "in", "is", "it", "its", "me", "my", "not", "of", "on", "or", "that", "the",
    "their", "them", "there", "these", "they", "this", "to", "was", "were", "what", "when",
    "where", "which", "who", "why", "will", "with", "you", "your", "about", "into", "than",
    "then", "also", "more", "some", "such", "only", "should", "would", "could", "may",
])  # fmt: skip


def language_of(text: str) -> Language:
    """`zh` when the text has at least as many Chinese characters as other words, else `en`."""
    han = len(_HAN_CHAR.findall(text))
    return "zh" if han and han >= len(_WORD.findall(text)) else "en"


def fold(text: str) -> str:
    """The text as it is compared: lower case, half width, Traditional characters as Simplified."""
    pattern, table = _folding()
    return pattern.sub(lambda match: table[match[0]], text).lower()


@functools.cache
def _folding() -> tuple[re.Pattern[str], dict[str, str]]:
    """What is replaced: full-width letters and digits, and Traditional characters by OpenCC.

    Character by character, though OpenCC knows whole words: as good for finding, and much quicker.
    """
    import opencc

    ranges = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00))
    characters = [chr(code) for start, end in ranges for code in range(start, end)]
    converted = opencc.OpenCC("t2s").convert("\n".join(characters)).split("\n")
    table = {a: b for a, b in zip(characters, converted, strict=True) if a != b}
    table |= {chr(ord(c) + 0xFEE0): c for c in string.ascii_letters + string.digits}
    return re.compile(f"[{''.join(table)}]"), table


def terms(text: str) -> set[str]:
    """What two texts can share: words, and pairs of neighbouring Chinese characters, folded."""
    text = fold(text)
    found = set(_WORD.findall(text)) - _STOP_WORDS
    for run in _HAN_RUN.findall(text):
        found.update(run[i : i + 2] for i in range(max(1, len(run) - 1)))
    return found


def words(text: str) -> list[str]:
    """The words of a folded text that are not Chinese, stop words left out."""
    return [word for word in _WORD.findall(text) if word not in _STOP_WORDS]


def is_han(term: str) -> bool:
    """Whether a term is of Chinese characters."""
    return _HAN_CHAR.match(term) is not None


def keywords(text: str) -> list[str]:
    """Every term of a text for keyword search, folded, in order and with repetitions.

    Words, stop words left out, and Chinese characters singly and in pairs of neighbours.
    """
    text = fold(text)
    found = words(text)
    for run in _HAN_RUN.findall(text):
        found += run
        found += (run[i : i + 2] for i in range(len(run) - 1))
    return found


def sentences(text: str) -> list[str]:
    """The text cut after each sentence and line; joined they give the text back unchanged."""
    cuts = [m.end() for m in _SENTENCE_END.finditer(text)]
    if not cuts or cuts[-1] < len(text):
        cuts.append(len(text))
    parts, start = [], 0
    for cut in cuts:
        if cut > start:
            parts.append(text[start:cut])
            start = cut
    return parts
