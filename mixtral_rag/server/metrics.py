"""Figures for Prometheus."""

from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mixtral_rag.server.gate import Gate
from mixtral_rag.types import Usage

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_RATES = (1, 2, 5, 10, 20, 40, 80, 160, 320)


class Metrics:
    """Counts and times of one server."""

    def __init__(self, gate: Gate) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "mixtral_rag_requests", "Requests answered.", ("route", "status"), registry=registry
        )
        self.first_token = Histogram(
            "mixtral_rag_first_token_seconds", "From the turn at the model to the first token.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.rate = Histogram(
            "mixtral_rag_tokens_per_second", "Of an answer after its first token.",
            buckets=_RATES, registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "mixtral_rag_tokens", "Tokens of prompts computed, of prompts from the cache, and of "
            "answers.", ("kind",), registry=registry,
        )  # fmt: skip
        self.left = Counter(
            "mixtral_rag_clients_left", "Answers nobody waited for any more.", registry=registry
        )
        for name, text, value in (
            ("waiting", "Requests waiting for the model.", lambda: gate.waiting),
            ("running", "Requests the model is answering.", lambda: gate.running),
        ):
            Gauge(f"mixtral_rag_{name}", text, registry=registry).set_function(value)

    def text(self) -> bytes:
        """All figures in Prometheus' form."""
        return generate_latest(self._registry)

    def answer(self) -> "AnswerTimes":
        """Times one answer, from now on."""
        return AnswerTimes(self)


class AnswerTimes:
    """The times of one answer."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = perf_counter()
        self._first: float | None = None

    def piece(self) -> None:
        """A piece of text came."""
        if self._first is None:
            self._first = perf_counter()
            self._metrics.first_token.observe(self._first - self._started)

    def end(self, usage: Usage | None) -> None:
        """It is complete."""
        if usage is None:
            return
        tokens = self._metrics.tokens
        tokens.labels("computed").inc(usage.prompt_tokens - usage.cached_tokens)
        tokens.labels("cached").inc(usage.cached_tokens)
        tokens.labels("answer").inc(usage.completion_tokens)
        if self._first is not None and usage.completion_tokens > 1:
            took = perf_counter() - self._first
            if took > 0:
                self._metrics.rate.observe((usage.completion_tokens - 1) / took)
