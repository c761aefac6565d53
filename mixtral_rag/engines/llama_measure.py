"""One model file, loaded once, to measure: how fast it is and how well it predicts a text."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from mixtral_rag.engines import LARGEST_CTX, Cancellation
from mixtral_rag.engines.llama_build import llama_build
from mixtral_rag.engines.llama_context import LlamaContext
from mixtral_rag.engines.llama_library import Model, flash_attention, shared_model
from mixtral_rag.engines.llama_perplexity import Perplexity, count_chunks, perplexity
from mixtral_rag.engines.llama_vocab import LlamaVocabulary
from mixtral_rag.engines.llamacpp import default_threads
from mixtral_rag.errors import SettingsError
from mixtral_rag.machine import others_cpu_seconds
from mixtral_rag.speed import Speed, fit, save_speed, saved_speed
from mixtral_rag.weights.gguf import GGUFHeader, read_header

_WARM_UP, _DEEPEST, _MOST_DECODED = 64, 4096, 24


class MeasuredModel:
    """The weights of one GGUF file, and a fresh context for each measurement.

    Use it in a `with` block: when it ends, the weights are freed, before the next file is loaded.

    Args:
        path: the GGUF file.
        n_threads: threads; None takes the usable cores as the engine does.
        n_gpu_layers: layers on the GPU, -1 for all.
        n_batch: most prompt tokens computed in one step.
        kv_type: type of the KV cache, such as `f16` or `q8_0`.

    Raises:
        ModelError: the file is missing, damaged, truncated, or not for this llama.cpp.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_threads: int | None = None,
        n_gpu_layers: int = -1,
        n_batch: int = 512,
        kv_type: str = "f16",
    ) -> None:
        started = time.perf_counter()
        self.header = read_header(path)
        self.tokenizer = LlamaVocabulary(self.header)
        self._options = speed_options(
            n_threads=n_threads, n_gpu_layers=n_gpu_layers, n_batch=n_batch, kv_type=kv_type
        )
        self._model: Model | None = shared_model(self.header, n_gpu_layers=n_gpu_layers, mmap=True)
        self._load_seconds = time.perf_counter() - started

    def __enter__(self) -> "MeasuredModel":
        return self

    def __exit__(self, *_: object) -> None:
        self._model = None  # nothing else holds the weights, so they are freed here

    def perplexity(
        self,
        ids: Sequence[int],
        *,
        n_ctx: int,
        n_chunks: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Perplexity:
        """Perplexity on token IDs from `tokens_for_perplexity`; n_chunks None takes all of them.

        Raises:
            SettingsError: the text is too short for the context, or the context too large.
            GenerationError: the engine failed.
        """
        n_chunks = count_chunks(len(ids), n_ctx, n_chunks)
        if n_ctx > LARGEST_CTX:
            raise SettingsError(f"a context of {n_ctx:,} is too large; the most is {LARGEST_CTX:,}")
        bos_id = self.tokenizer.bos_id if self.tokenizer.adds_bos else None
        with self._context(n_ctx) as context:
            return perplexity(
                context, ids, n_ctx=n_ctx, n_chunks=n_chunks, bos_id=bos_id, on_progress=on_progress
            )

    def speed(
        self, *, seconds: float = 20.0, on_progress: Callable[[float], None] | None = None
    ) -> Speed:
        """Measure prefill and decode at growing depth, for about so many seconds, and keep it.

        On a machine too slow for that it takes what two short blocks take. The tokens are random,
        as in llama.cpp's own llama-bench. `on_progress` gets the share done, from 0 to 1.

        Raises:
            GenerationError: the engine failed.
        """
        trained = self.header.context_length or _DEEPEST
        n_ctx = max(4 * _WARM_UP, min(trained, _DEEPEST))
        with self._context(n_ctx) as context:
            speed = self._measure(context, n_ctx, seconds, on_progress or (lambda _: None))
        with suppress(OSError):  # it can be measured again
            save_speed(speed, self.header.path, engine=llama_build().identity,
                       options=self._options)  # fmt: skip
        return speed

    def _measure(
        self, context: LlamaContext, n_ctx: int, seconds: float, report: Callable[[float], None]
    ) -> Speed:
        draw = random.Random(0)  # noqa: S311 - the same tokens every time, not a secret
        ids = [draw.randrange(len(self.tokenizer)) for _ in range(n_ctx)]
        clock = _Clock(seconds, report)
        others, started = others_cpu_seconds(), time.perf_counter()
        cold = clock.time(lambda: context.advance(ids[-_WARM_UP:], Cancellation()))
        warm = clock.time(lambda: context.advance(ids[-2 * _WARM_UP : -_WARM_UP], Cancellation()))
        room = n_ctx - _MOST_DECODED
        block = min(room // 2, _block(warm / _WARM_UP, seconds))
        prefill: list[tuple[float, float]] = []
        depth = 0
        while depth + block <= room and (len(prefill) < 2 or clock.share() < 0.7):
            depth += block
            took = clock.time(partial(context.advance, ids[:depth], Cancellation()))
            prefill.append((depth - block / 2, took / block))
        deep = _decode(context, ids[:depth], clock, until=0.85)
        shallow = _decode(context, ids[:_WARM_UP], clock, until=1.0)
        share = attention_share(self.header)
        prefill_line, decode_line = fit(prefill, share), fit([shallow, deep], share)
        return Speed(
            prefill_base=prefill_line[0],
            prefill_slope=prefill_line[1],
            decode_base=decode_line[0],
            decode_slope=decode_line[1],
            depth=depth,
            slopes_are_measured=prefill_line[2],
            load_seconds=self._load_seconds + cold,
            others_cores=max(0.0, others_cpu_seconds() - others) / (time.perf_counter() - started),
        )

    @contextmanager
    def _context(self, n_ctx: int) -> Iterator[LlamaContext]:
        """A context of its own, freed at the end of the block."""
        assert self._model is not None, "use MeasuredModel within its `with` block"
        n_batch, kv_type = int(self._options["n_batch"]), str(self._options["kv_type"])
        context = LlamaContext(
            self._model,
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_threads=int(self._options["n_threads"]),
            kv_type=kv_type,
            flash=flash_attention(self.header, n_ctx=n_ctx, n_batch=n_batch, kv_type=kv_type),
        )
        try:
            yield context
        finally:
            context.free()


class _Clock:
    """Times pieces of work and reports what share of the time allowed is spent."""

    def __init__(self, seconds: float, report: Callable[[float], None]) -> None:
        self._started, self._seconds, self._report = time.perf_counter(), seconds, report

    def share(self) -> float:
        return min(1.0, (time.perf_counter() - self._started) / self._seconds)

    def time(self, work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        took = time.perf_counter() - started
        self._report(self.share())
        return took


def _block(seconds_per_token: float, seconds: float) -> int:
    """Prompt tokens timed together: the engine's batch, or less on a slow machine."""
    for block in (512, 256, 128):
        if 2 * block * seconds_per_token < 0.3 * seconds:
            return block
    return _WARM_UP


def _decode(
    context: LlamaContext, ids: list[int], clock: _Clock, *, until: float
) -> tuple[float, float]:
    """Depth and seconds a token when tokens are computed one by one after `ids`."""
    context.advance(ids, Cancellation())
    depth = len(ids)
    times: list[float] = []
    while len(times) < 4 or (len(times) < _MOST_DECODED and clock.share() < until):
        ids.append(ids[len(times)])
        times.append(clock.time(lambda: context.advance(ids, Cancellation())))
    return depth + len(times) / 2, median(times)


def attention_share(header: GGUFHeader) -> float:
    """Arithmetic of attention to one earlier token, as a share of all other arithmetic of a token.

    Two multiplications and additions for every number of every head, over one for every weight
    that is active. For Mixtral-8x7B 1 in 48,000, so that at a depth of 32K a token costs 1.7 times
    as much as at 0.
    """
    layers, heads = header.number("block_count"), header.number("attention.head_count")
    width = header.number("embedding_length")
    if not layers or not heads or not width:
        return 0.0
    head = header.number("attention.key_length") or width // heads
    experts = header.number("expert_count") or 1
    used = header.number("expert_used_count") or experts
    active = 0.0
    for tensor in header.tensors:
        if tensor.name not in ("token_embd.weight", "output.weight"):
            share = used / experts if "_exps." in tensor.name else 1.0
            active += tensor.n_weights * share
    return 2 * layers * heads * head / active if active else 0.0


def speed_options(
    *,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    n_batch: int = 512,
    kv_type: str = "f16",
) -> dict[str, int | str]:
    """The engine's options that change its speed, with the defaults filled in."""
    return {
        "n_threads": n_threads or default_threads(),
        "n_gpu_layers": n_gpu_layers,
        "n_batch": n_batch,
        "kv_type": kv_type,
    }


def known_speed(model: Path, **options: Any) -> Speed | None:
    """What was measured on this machine for `model` with `speed_options`; None when nothing was.

    Computes nothing, so that a planner can ask before every question.
    """
    return saved_speed(model, engine=llama_build().identity, options=speed_options(**options))
