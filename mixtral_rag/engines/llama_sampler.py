"""Choosing the next token, by llama.cpp's own sampler chain."""

import secrets
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mixtral_rag.engines import llama_library
from mixtral_rag.types import SamplingOptions

if TYPE_CHECKING:
    from mixtral_rag.engines.llama_context import LlamaContext


class Sampler:
    """A sampler chain for one generation, in llama.cpp's default order.

    penalties, top-k, top-p, min-p, temperature, draw. The last tokens of the prompt count as
    recent for the repeat penalty, as in llama.cpp's own programs.
    """

    def __init__(self, options: SamplingOptions, prompt: Sequence[int], n_vocab: int) -> None:
        lib = llama_library.load()
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._chain = chain
        weakref.finalize(self, lib.llama_sampler_free, chain).atexit = False
        penalised = options.repeat_penalty != 1.0 and options.repeat_last_n > 0
        if penalised:
            penalties = lib.llama_sampler_init_penalties(
                n_vocab, options.repeat_last_n, options.repeat_penalty, 0.0, 0.0
            )
            lib.llama_sampler_chain_add(chain, penalties)
        if options.temperature <= 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        else:
            if options.top_k > 0:
                lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(options.top_k))
            if options.top_p < 1:
                lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(options.top_p, 1))
            if options.min_p > 0:
                lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_min_p(options.min_p, 1))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(options.temperature))
            seed = secrets.randbits(32) if options.seed is None else options.seed % 2**32
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed))
        if penalised:
            for token in prompt[-options.repeat_last_n :]:
                lib.llama_sampler_accept(chain, token)

    def sample(self, context: "LlamaContext", look: Callable[[Any], None] | None = None) -> int:
        """Choose from the logits of the last computed token, and remember the choice.

        `look` is given the logits first, to read or change them.
        """
        return context.sample(self._chain, look)
