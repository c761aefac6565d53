"""Log-probabilities of tokens from logits."""

from typing import Any

from mixtral_rag.tokenizer import Tokenizer
from mixtral_rag.types import TokenLogprob


def token_logprob(logits: Any, token: int, n_top: int, tokenizer: Tokenizer) -> TokenLogprob:
    """The log-probability of `token` under `logits`, with those of the `n_top` likeliest.

    Args:
        logits: float array of shape (vocabulary,), as the model gave them.
        token: the one that was chosen.
        n_top: how many of the likeliest to add.
        tokenizer: the model's vocabulary.
    """
    import numpy as np

    values = np.asarray(logits, np.float64)
    highest = values.max()
    total = highest + np.log(np.exp(values - highest).sum())
    likeliest = np.argpartition(values, -n_top)[-n_top:] if n_top else np.empty(0, np.int64)
    ordered = sorted(likeliest.tolist(), key=lambda i: (-values[i], i))
    top = tuple(described(i, float(values[i] - total), tokenizer) for i in ordered)
    return described(token, float(values[token] - total), tokenizer, top)


def described(
    token: int, logprob: float, tokenizer: Tokenizer, top: tuple[TokenLogprob, ...] = ()
) -> TokenLogprob:
    """A token with its text and bytes."""
    data = tokenizer.piece(token)
    return TokenLogprob(data.decode("utf-8", "replace"), data, logprob, top)
