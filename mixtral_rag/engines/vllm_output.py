"""Outputs of vLLM as pieces of text."""

from typing import Any

from mixtral_rag.engines.logprobs import described
from mixtral_rag.engines.text import TextStream
from mixtral_rag.tokenizer import Tokenizer
from mixtral_rag.types import FinishReason, Piece, SamplingOptions, TokenLogprob, Usage


class VllmText:
    """The text of one request, from the token IDs of its outputs."""

    def __init__(self, options: SamplingOptions, tokenizer: Tokenizer, *, n_prompt: int) -> None:
        self._options, self._tokenizer, self._n_prompt = options, tokenizer, n_prompt
        self._text = TextStream(options.stop)
        self._n_made = self._n_cached = 0
        self.finish_reason: FinishReason | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more is wanted of vLLM."""
        return self.finish_reason is not None

    def push(self, output: Any) -> Piece | None:
        """The piece that an output adds, if any."""
        made, parts, logprobs = output.outputs[0], [], []
        self._n_cached = output.num_cached_tokens or self._n_cached
        for i, token in enumerate(made.token_ids):
            self._n_made += 1
            if token in self._tokenizer.end_ids:
                self.finish_reason = "stop"
                break
            if self._options.logprobs:
                logprobs.append(self._logprob(token, made.logprobs[i]))
            parts.append(self._text.push(self._tokenizer.piece(token)))
            if self._text.stopped:
                self.finish_reason = "stop"
                break
        if made.finish_reason is not None and self.finish_reason is None:
            self.finish_reason = "length" if made.finish_reason == "length" else "stop"
        text = "".join(parts)
        return Piece(text, logprobs=tuple(logprobs)) if text or logprobs else None

    def last(self) -> Piece:
        """What was held back, with finish reason and usage."""
        usage = Usage(self._n_prompt, self._n_made, min(self._n_cached, self._n_prompt))
        return Piece(self._text.finish(), self.finish_reason or "stop", usage)

    def _logprob(self, token: int, values: Any) -> TokenLogprob:
        n = self._options.top_logprobs
        ranked = sorted(values.items(), key=lambda item: item[1].rank)[:n]
        top = tuple(described(i, value.logprob, self._tokenizer) for i, value in ranked)
        return described(token, values[token].logprob, self._tokenizer, top)
