"""Small questions about text: which language, which words, which sentences."""

import re

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

_STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "can",
        "do",
        "does",
        "for",
        "from",
        "have",
        "how",
        "i",
        "if",
        "in",
        "is",
        "it",
        "its",
        "me",
        "my",
        "not",
        "of",
        "on",
        "or",
        "that",
        "the",
        "their",
        "them",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "why",
        "will",
        "with",
        "you",
        "your",
        "about",
        "into",
        "than",
        "then",
        "also",
        "more",
        "some",
        "such",
        "only",
        "should",
        "would",
        "could",
        "may",
    ]
)


def language_of(text: str) -> Language:
    """`zh` when the text has at least as many Chinese characters as other words, else `en`."""
    han = len(_HAN_CHAR.findall(text))
    return "zh" if han and han >= len(_WORD.findall(text)) else "en"


def terms(text: str) -> set[str]:
    """What two texts can share: lower-case words, and pairs of neighbouring Chinese characters."""
    found = {w.lower() for w in _WORD.findall(text)} - _STOP_WORDS
    for run in _HAN_RUN.findall(text):
        found.update(run[i : i + 2] for i in range(max(1, len(run) - 1)))
    return found


def keywords(text: str) -> list[str]:
    """Every term of a text for keyword search, in order and with repetitions.

    Lower-case words, stop words left out, and Chinese characters singly and in pairs of neighbours.
    """
    found = [w for word in _WORD.findall(text) if (w := word.lower()) not in _STOP_WORDS]
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
