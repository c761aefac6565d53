"""Choosing the next token from logits in torch, as llama.cpp's sampler chain does."""

import math
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mixtral_rag.types import SamplingOptions


class _HasLogits(Protocol):
    @property
    def logits(self) -> Any: ...


class TorchSampler:
    """Chooses the tokens of one generation, in llama.cpp's default order.

    penalties, top-k, top-p, min-p, temperature, draw. The last tokens of the prompt count as
    recent for the repeat penalty. Everything is computed on the CPU, from 32,000 numbers or so, and
    drawn from a generator of its own: one seed means the same on every device.
    """

    def __init__(self, options: SamplingOptions, prompt: Sequence[int]) -> None:
        import torch

        self._options = options
        n_recent = options.repeat_last_n if options.repeat_penalty != 1.0 else 0
        self._recent = deque(prompt[-n_recent:] if n_recent else (), maxlen=n_recent)
        self._generator = torch.Generator()
        seed = secrets.randbits(32) if options.seed is None else options.seed % 2**32
        self._generator.manual_seed(seed)

    def sample(self, context: _HasLogits, look: Callable[[Any], None] | None = None) -> int:
        """Choose from the logits of the last computed token, and remember the choice.

        `look` is given the logits first, a float32 numpy array, to read or change them.
        """
        logits = context.logits
        if look is not None:
            look(logits.numpy())  # the same memory
        self.penalise(logits)
        token = int(logits.argmax()) if self._options.temperature <= 0 else self._draw(logits)
        self._recent.append(token)
        return token

    def penalise(self, logits: Any) -> None:
        """Lower the logits of recent tokens, in place."""
        if self._recent:
            ids = list(set(self._recent))
            values, penalty = logits[ids], self._options.repeat_penalty
            logits[ids] = values.where(values > 0, values * penalty).where(
                values <= 0, values / penalty
            )

    def _draw(self, logits: Any) -> int:
        import torch

        ids, chances = self.chances(logits)
        return int(ids[torch.multinomial(chances, 1, generator=self._generator)])

    def chances(self, logits: Any) -> tuple[Any, Any]:
        """The tokens that top-k, top-p and min-p leave, and the chance of each, likeliest first."""
        import torch

        options = self._options
        k = min(options.top_k or len(logits), len(logits))
        logits, ids = torch.topk(logits, k)
        if options.top_p < 1:
            before = logits.softmax(0).cumsum(0).roll(1)
            before[0] = 0  # so that one always stays
            logits = logits[before < options.top_p]
        if options.min_p > 0:
            logits = logits[logits >= logits[0] + math.log(options.min_p)]
        return ids[: len(logits)], (logits / options.temperature).softmax(0)
