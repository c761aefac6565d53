"""The loop over tokens, for the engines that choose them here."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from mixtral_rag.engines import Cancellation, Interrupted
from mixtral_rag.engines.choice import Choice
from mixtral_rag.engines.text import TextStream
from mixtral_rag.engines.turns import Turns
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


def run(
    ids: list[int],
    options: SamplingOptions,
    limit: int,
    *,
    turns: Turns,
    context: Callable[[], Context],
    sampler: Sampler,
    choice: Choice,
    tokenizer: Tokenizer,
    cancel: Cancellation,
    whole: bool,
    keep: Callable[[], None] = lambda: None,
) -> Iterator[Piece]:
    """Generate up to `limit` tokens after `ids`, which grow; see `Engine.generate`.

    Args:
        turns: who may use the context.
        context: gives the context, loading weights the first time.
        whole: give all text in the one last piece, and never wait for the reader before.
        keep: called at the end, when the context holds all but the last token.
    """
    n_prompt, held = len(ids), ""
    text = TextStream(options.stop)
    finish: FinishReason = "length"
    cached: int | None = None
    try:
        with turns.turn(cancel) as turn:
            if cancel.cancelled:
                raise Interrupted
            model = context()
            while len(ids) - n_prompt < limit:
                if cancel.cancelled:
                    raise Interrupted
                started = time.monotonic()
                reused = model.advance(ids, cancel)
                token = sampler.sample(model, choice.look)
                if cached is None or reused < len(ids) - 1:
                    turn.cost = time.monotonic() - started
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
                    with turn.paused():
                        yield Piece(piece, logprobs=choice.take_logprobs())
                if text.stopped or choice.is_finished:
                    finish = "stop"
                    break
            keep()
    except Interrupted:
        finish = "cancelled"
    usage = Usage(n_prompt, len(ids) - n_prompt, cached or 0)
    yield Piece(held + text.finish(), finish, usage, choice.take_logprobs())
