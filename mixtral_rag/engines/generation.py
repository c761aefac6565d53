"""The loop over tokens, for the engines that choose them here."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, Protocol

from mixtral_rag.engines import Cancellation, Interrupted
from mixtral_rag.engines.choice import Choice
from mixtral_rag.engines.text import TextStream
from mixtral_rag.engines.turns import Turn, Turns
from mixtral_rag.tokenizer import Tokenizer
from mixtral_rag.types import FinishReason, Piece, SamplingOptions, Usage


class Context(Protocol):
    """A model with one KV cache."""

    def advance(self, ids: Sequence[int], cancel: Cancellation) -> int:
        """Make the cache hold exactly `ids`, with logits for the last; return how many it held.

        Raises:
            Interrupted: `cancel` was thrown meanwhile.
            GenerationError: the engine failed.
        """
        ...


class Sampler(Protocol):
    """Chooses tokens for one generation."""

    def sample(self, context: Any, look: Callable[[Any], None] | None) -> int:
        """Choose from the logits of the last token; `look` is given them first, to change them."""
        ...


class Place:
    """Where one generation computes: in the context of its engine, while it has its turn.

    Args:
        turn: who may use the context.
        context: the model.
        sampler: chooses tokens.
        look: is given logits before a choice.
    """

    def __init__(
        self, turn: Turn, context: Any, sampler: Sampler, look: Callable[[Any], None] | None
    ) -> None:
        self._turn, self._context, self._sampler, self._look = turn, context, sampler, look

    def step(self, ids: Sequence[int], cancel: Cancellation) -> tuple[int, int]:
        """The token after `ids`, and how many of them needed no computing.

        Raises:
            Interrupted: `cancel` was thrown meanwhile.
            GenerationError: the engine failed.
        """
        started = time.monotonic()
        reused = self._context.advance(ids, cancel)
        token = self._sampler.sample(self._context, self._look)
        if reused < len(ids) - 1:
            self._turn.cost = time.monotonic() - started
        return token, reused

    def paused(self) -> AbstractContextManager[None]:
        """Around a `yield`: the reader may take its time, others need not wait for it."""
        return self._turn.paused()

    def keep(self) -> None:
        """Called at the end, when all but the last token have been computed."""

    def close(self) -> None:
        """Called when the generation is over, however it ended."""


def run(
    ids: list[int],
    options: SamplingOptions,
    limit: int,
    *,
    turns: Turns,
    place: Callable[[Turn], Place],
    choice: Choice,
    tokenizer: Tokenizer,
    cancel: Cancellation,
    whole: bool,
) -> Iterator[Piece]:
    """Generate up to `limit` tokens after `ids`, which grow; see `Engine.generate`.

    Args:
        turns: who may use the context.
        place: makes the place, loading weights the first time.
        whole: give all text in the one last piece, and never wait for the reader before.
    """
    n_prompt, held = len(ids), ""
    text = TextStream(options.stop)
    finish: FinishReason = "length"
    cached: int | None = None
    try:
        with turns.turn(cancel) as turn, closing(_place(place, turn, cancel)) as here:
            while len(ids) - n_prompt < limit:
                if cancel.cancelled:
                    raise Interrupted
                token, reused = here.step(ids, cancel)
                cached = reused if cached is None else cached
                ids.append(token)
                if token in tokenizer.end_ids:
                    finish = "stop"
                    break
                choice.made(token)
                piece = text.push(tokenizer.piece(token))
                if whole:
                    held += piece
                elif piece:
                    with here.paused():
                        yield Piece(piece, logprobs=choice.take_logprobs())
                if text.stopped or choice.is_finished:
                    finish = "stop"
                    break
            here.keep()
    except Interrupted:
        finish = "cancelled"
    usage = Usage(n_prompt, len(ids) - n_prompt, cached or 0)
    yield Piece(held + text.finish(), finish, usage, choice.take_logprobs())


def _place(make: Callable[[Turn], Place], turn: Turn, cancel: Cancellation) -> Place:
    if cancel.cancelled:  # before weights are loaded
        raise Interrupted
    return make(turn)
