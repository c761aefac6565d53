"""What one generation adds to the choice of each token: a constraint, and log-probabilities."""

from collections.abc import Callable
from typing import Any

from mixtral_rag.engines.constraint import Constraint, is_constrained
from mixtral_rag.engines.logprobs import token_logprob
from mixtral_rag.tokenizer import Tokenizer
from mixtral_rag.types import SamplingOptions, TokenLogprob


class Choice:
    """For engines whose logits are at hand: call `look`, choose, then call `made`.

    Raises:
        SettingsError: the options hold a JSON schema or pattern that cannot be enforced.
    """

    def __init__(self, options: SamplingOptions, tokenizer: Tokenizer) -> None:
        self._options, self._tokenizer = options, tokenizer
        self._constraint = Constraint(options, tokenizer) if is_constrained(options) else None
        self._logits: Any = None
        self._logprobs: list[TokenLogprob] = []
        self.look: Callable[[Any], None] | None = None
        """Reads the logits, a numpy array of shape (vocabulary,), and drops what may not be
        chosen; None where there is nothing to do."""
        if self._constraint is not None or options.logprobs:
            self.look = self._look

    @property
    def is_finished(self) -> bool:
        """Whether the text is complete and nothing can follow."""
        return self._constraint is not None and self._constraint.is_finished

    def _look(self, logits: Any) -> None:
        import numpy as np

        if self._options.logprobs:
            self._logits = logits.copy()
        if self._constraint is not None:
            logits[~self._constraint.allowed()] = -np.inf

    def made(self, token: int) -> None:
        """Take note of the token that was chosen; not of one that ends the generation."""
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._options.logprobs:
            n_top = self._options.top_logprobs
            self._logprobs.append(token_logprob(self._logits, token, n_top, self._tokenizer))

    def take_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those of the tokens since this was last called."""
        taken, self._logprobs = tuple(self._logprobs), []
        return taken
