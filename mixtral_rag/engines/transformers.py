"""The Transformers engine: full weights on a GPU or the CPU, with torch."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from mixtral_rag.engines import Cancellation, Prompt, check_prompt
from mixtral_rag.engines.choice import Choice
from mixtral_rag.engines.generation import Place, run
from mixtral_rag.engines.hf_folder import OverFolder
from mixtral_rag.engines.torch_context import TorchContext
from mixtral_rag.engines.torch_model import (
    Loading,
    load_transformers,
    options_as_json,
    shared_model,
)
from mixtral_rag.engines.torch_sampler import TorchSampler
from mixtral_rag.engines.turns import Turns
from mixtral_rag.errors import SettingsError
from mixtral_rag.types import Piece, SamplingOptions


class TransformersEngine(OverFolder):
    """One folder of full weights and one KV cache, used by one generation at a time.

    Args:
        model: the folder, with config.json, a tokenizer and the weights.
        n_ctx: context window in tokens, at most 131,072; None takes what the model was trained
            for, at most 32,768.
        dtype: type to compute in, such as bfloat16; auto is that of the weights, and on the CPU
            bfloat16 for float16.
        quantization: 8bit or 4bit (nf4) to quantise while loading, by bitsandbytes.
        device: cpu, cuda, cuda:1, mps, or auto to spread over all; None takes a GPU where there
            is one.
        adapter: folder of LoRA weights to apply; they are merged into the weights in memory,
            unless those are quantised.
        engine_options: more arguments of transformers' `from_pretrained`, plain values.

    Raises:
        SettingsError: an option is out of range.
    """

    concurrency = 1

    def __init__(
        self,
        model: str,
        *,
        n_ctx: int | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        device: str | None = None,
        adapter: str | None = None,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, n_ctx, extra="transformers")
        more = options_as_json(engine_options)
        self._loading = Loading(dtype, quantization, device, adapter, more)
        self._load_lock = threading.Lock()
        self._loaded: TorchContext | None = None
        self._turns = Turns()

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._loaded is not None

    def generate(
        self,
        prompt: Prompt,
        options: SamplingOptions,
        *,
        cancel: Cancellation | None = None,
        whole: bool = False,
    ) -> Iterator[Piece]:
        """Generate from token IDs; the last piece carries finish reason and usage.

        Raises:
            SettingsError: the prompt is empty or holds IDs the model lacks, or a JSON schema
                cannot be enforced.
            ContextError: prompt and answer do not fit the context; nothing was computed.
            ModelError: the model cannot be loaded, or the engine failed.
        """
        ids, limit = check_prompt(prompt, options, self.n_ctx)
        n_vocab = len(self.tokenizer)
        if not 0 <= min(ids) <= max(ids) < n_vocab:  # on a GPU one such breaks the whole process
            raise SettingsError(
                f"the prompt holds token IDs that are not from 0 to {n_vocab - 1:,}"
            )
        load_transformers()  # says at once when it is missing
        choice, sampler = Choice(options, self.tokenizer), TorchSampler(options, ids)
        return run(
            ids,
            options,
            limit,
            turns=self._turns,
            place=lambda turn: Place(turn, self._context(), sampler, choice.look),
            choice=choice,
            tokenizer=self.tokenizer,
            cancel=cancel or Cancellation(),
            whole=whole,
        )

    def _context(self) -> TorchContext:
        with self._load_lock:
            if self._loaded is None:
                self._loaded = TorchContext(shared_model(self._folder, self._loading))
            return self._loaded
