"""Perplexity as llama.cpp's own tool defines it.

Source: `tools/perplexity/perplexity.cpp` of https://github.com/ggml-org/llama.cpp, function
`perplexity`. The text is tokenised with BOS in front and cut into chunks of n_ctx tokens; the first
token of every chunk is replaced by BOS where the vocabulary wants one; only the second half of a
chunk is scored, so that every scored token has at least half a window before it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixtral_rag.engines import Cancellation
from mixtral_rag.errors import GenerationError, SettingsError

if TYPE_CHECKING:
    from mixtral_rag.engines.llama_context import LlamaContext
    from mixtral_rag.tokenizer import Tokenizer

SMALLEST_CTX = 8
_ROWS = 64  # rows of logits looked at together: 8 MB for a vocabulary of 32,000


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity over `n_scored` tokens in `n_chunks` chunks; `error` is its standard error."""

    n_ctx: int
    value: float
    error: float
    n_chunks: int
    n_scored: int


def tokens_for_perplexity(tokenizer: "Tokenizer", text: str) -> list[int]:
    """`text` as the tool reads a file: without its last line feed, with BOS where it is usual."""
    ids = tokenizer.encode(text.removesuffix("\n"))
    return [tokenizer.bos_id, *ids] if tokenizer.adds_bos else ids


def count_chunks(n_tokens: int, n_ctx: int, n_chunks: int | None = None) -> int:
    """How many whole chunks a text of `n_tokens` gives, at most `n_chunks`.

    Raises:
        SettingsError: a context too small, no chunk asked for, or a text too short for one.
    """
    if n_ctx < SMALLEST_CTX:
        raise SettingsError(f"a context of {n_ctx} is too small; {SMALLEST_CTX} is the least")
    if n_chunks is not None and n_chunks < 1:
        raise SettingsError(f"n_chunks is {n_chunks}; it must be at least 1")
    if n_tokens < n_ctx:
        raise SettingsError(
            f"the text has {n_tokens:,} tokens, too few for a context of {n_ctx:,}; give a longer "
            "text or a smaller context"
        )
    return min(n_tokens // n_ctx, n_chunks or n_tokens)


def perplexity(
    context: "LlamaContext",
    ids: Sequence[int],
    *,
    n_ctx: int,
    n_chunks: int,
    bos_id: int | None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Perplexity of `n_chunks` chunks of `ids`; `bos_id` goes first in each unless it is None.

    `on_progress` gets tokens done and tokens in all.

    Raises:
        GenerationError: the engine failed, or the model gives numbers that are not finite.
    """
    first, total = n_ctx // 2, n_chunks * n_ctx
    n, mean, squares = 0, 0.0, 0.0  # Welford: the spread of many near-equal values stays exact
    for start in range(0, total, n_ctx):
        chunk = list(ids[start : start + n_ctx])
        if bos_id is not None:
            chunk[0] = bos_id
        for position, rows in context.logits(chunk, first=first, cancel=Cancellation()):
            for loss in _losses(rows, chunk[position + 1 : position + 1 + len(rows)]):
                n += 1
                delta = loss - mean
                mean += delta / n
                squares += delta * (loss - mean)
            if on_progress is not None:
                on_progress(start + position + len(rows), total)
    if not math.isfinite(mean):
        raise GenerationError("the model gives logits that are not finite; the file is damaged")
    value = math.exp(mean) if mean < 700 else math.inf
    error = math.sqrt(squares / n / (n - 1)) * value if n > 1 else math.inf
    return Perplexity(n_ctx, value, error, n_chunks, n)


def _losses(rows: Any, targets: Sequence[int]) -> list[float]:
    """Negative log-likelihood of each target under its row of logits (n, vocabulary).

    Exponentials in float32 and their sum in float64, as the tool has them. The last row of a chunk
    has no target.
    """
    import numpy as np

    losses: list[float] = []
    for start in range(0, len(targets), _ROWS):
        part = np.asarray(targets[start : start + _ROWS])
        logits = rows[start : start + len(part)]
        highest = logits.max(axis=1)
        sums = np.exp(logits - highest[:, None]).sum(axis=1, dtype=np.float64)
        chosen = logits[np.arange(len(part)), part].astype(np.float64)
        losses += (np.log(sums) + highest - chosen).tolist()
    return losses
