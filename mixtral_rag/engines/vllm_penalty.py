"""The repeat penalty of llama.cpp inside vLLM; loaded by vLLM's own process.

vLLM's `repetition_penalty` counts the whole prompt: with documents in it, that pushes away the very
words an answer is made of. This one counts the last tokens alone, prompt included.
"""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality


class RecentRepeatPenalty(LogitsProcessor):  # type: ignore[misc]
    """Divides positive logits of recent tokens by the penalty and multiplies negative ones.

    A request asks for it by `extra_args={"recent_repeat_penalty": (penalty, last_n)}`.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        self._rows: dict[int, tuple[float, int, list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """It changes which token is the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they come, go and change rows."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, prompt, made in batch_update.added:
            self._rows.pop(row, None)
            wanted = (params.extra_args or {}).get("recent_repeat_penalty")
            if wanted and wanted[1] > 0:
                penalty, last_n = wanted
                self._rows[row] = (float(penalty), int(last_n), (prompt or [])[-last_n:], made)
        for source, target, direction in batch_update.moved:
            moved, other = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if other is not None and direction is MoveDirectionality.SWAP:
                self._rows[source] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Change the logits, of shape (requests, vocabulary), in place."""
        rows: list[int] = []
        tokens: list[int] = []
        penalties: list[float] = []
        for row, (penalty, last_n, prompt, made) in self._rows.items():
            recent = {t for t in (prompt + made[-last_n:])[-last_n:] if t >= 0}
            rows += [row] * len(recent)
            tokens += recent
            penalties += [penalty] * len(recent)
        if not rows:
            return logits
        at = torch.tensor([rows, tokens], device=self._device)
        factor = torch.tensor(penalties, device=self._device, dtype=logits.dtype)
        values = logits[at[0], at[1]]
        logits[at[0], at[1]] = torch.where(values > 0, values / factor, values * factor)
        return logits
