"""One KV cache of transformers: which tokens it holds, and how to compute more."""

import inspect
from collections.abc import Sequence
from typing import Any

from mixtral_rag.engines import Cancellation, Interrupted
from mixtral_rag.errors import GenerationError

STEP = 512  # prompt tokens computed at once: cancelling acts between steps


class TorchContext:
    """A cache over `model`; not safe for concurrent use, its engine gives out turns."""

    def __init__(self, model: Any) -> None:
        self._model = model
        # Transformers 5.20 gave the argument another name.
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of peft
        known = inspect.signature(inner.forward).parameters
        self._cache_argument = "cache" if "cache" in known else "past_key_values"
        self._cache: Any = None
        self._held: list[int] = []  # the tokens whose keys and values are in the cache
        self._current: Sequence[int] | None = None  # the list `advance` was last given
        self.logits: Any = None
        """Of the last token: a float32 tensor of shape (vocabulary,) on the CPU, free to change."""

    def advance(self, ids: Sequence[int], cancel: Cancellation) -> int:
        """Make the cache hold exactly `ids`, with logits for the last; return how many it held.

        Raises:
            Interrupted: `cancel` was thrown meanwhile.
            GenerationError: torch failed.
        """
        if ids is not self._current or len(ids) != len(self._held) + 1:
            self._truncate(min(_common_prefix(self._held, ids), len(ids) - 1))
            self._current = ids
        kept = len(self._held)
        for start in range(kept, len(ids), STEP):
            if cancel.cancelled:
                raise Interrupted
            self._compute(ids[start : start + STEP])
        return kept

    def _compute(self, ids: Sequence[int]) -> None:
        import torch

        is_done = False
        try:
            with torch.inference_mode():
                out = self._model(
                    input_ids=torch.tensor([ids], device=self._model.device),
                    use_cache=True,
                    logits_to_keep=1,
                    **{self._cache_argument: self._cache},
                )
            # Outside of that mode, so that the copy may be changed.
            self.logits = out.logits[0, -1].to("cpu", torch.float32, copy=True)
            is_done = True
        except RuntimeError as error:  # also where a GPU has no memory left
            reason = " ".join(str(error).split())[:200]
            raise GenerationError(
                f"torch failed to compute {len(ids)} tokens after {len(self._held):,}: {reason}"
            ) from error
        finally:
            if not is_done:  # also after Ctrl-C: some layers may hold the tokens, others not
                self._restart()
        self._held += ids

    def _truncate(self, size: int) -> None:
        """Keep the first `size` tokens; all or nothing where a model cannot forget a part."""
        surplus = len(self._held) - size
        if self._cache is not None and surplus and size:
            try:
                self._cache.crop(-surplus)
            except (RuntimeError, ValueError, NotImplementedError):  # a sliding window, or a state
                size = 0
        if self._cache is None or not size or self._cache.get_seq_length() != size:
            self._restart()
        del self._held[size:]

    def _restart(self) -> None:
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self._model.config)
        self._held = []


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
