"""Reranking models in GGUF files, run by llama.cpp."""

import functools
import re
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

from mixtral_rag.engines.llama_library import Model, ctrl_c_afterwards, load, shared_model
from mixtral_rag.engines.llama_vocab import LlamaVocabulary
from mixtral_rag.engines.llamacpp import default_threads
from mixtral_rag.errors import GenerationError, ModelFileError, SettingsError
from mixtral_rag.weights.gguf import GGUFHeader, read_header

_LEAST_TOKENS = 16
_NONE = -1  # LLAMA_TOKEN_NULL


class LlamaReranker:
    """A cross-encoder such as bge-reranker-v2-m3 as a GGUF file; loads on first use.

    Pairs are laid out as llama-server does for `/rerank`, so scores are the same as its own.

    Args:
        model: path of the file.
        n_threads: None takes the usable cores.
        n_gpu_layers: layers on the GPU; -1 puts all there where there is one.
        max_tokens: longest question and passage together; the end of a longer passage is not read.

    Raises:
        SettingsError: an option is wrong.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        n_threads: int | None = None,
        n_gpu_layers: int = -1,
        max_tokens: int = 512,
    ) -> None:
        if max_tokens < _LEAST_TOKENS:
            raise SettingsError(f"max_tokens is {max_tokens}; it must be at least {_LEAST_TOKENS}")
        self.path, self.max_tokens = Path(model).expanduser(), max_tokens
        self._n_threads, self._n_gpu_layers = n_threads, n_gpu_layers
        self._lock = threading.Lock()

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the question, higher is better.

        Raises:
            ModelNotFoundError: there is no such file.
            ModelFileError: it is damaged, or no reranking model.
            GenerationError: llama.cpp failed.
        """
        with self._lock:
            return [self._score(self._pair(question, text)) for text in texts]

    def _score(self, ids: Sequence[int]) -> float:
        lib, pointer = load(), self._context.pointer
        lib.llama_memory_clear(lib.llama_get_memory(pointer), False)
        batch = lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            with ctrl_c_afterwards():
                status = lib.llama_decode(pointer, batch)
        finally:
            lib.llama_batch_free(batch)
        found = lib.llama_get_embeddings_seq(pointer, 0) if status == 0 else None
        if not found:
            raise GenerationError(f"llama.cpp failed to rank {len(ids)} tokens (status {status})")
        return float(found[0])

    def _pair(self, question: str, text: str) -> list[int]:
        """The tokens of a question and a passage."""
        lib, model, encode = load(), self._context.model, self._vocabulary.encode
        template = lib.llama_model_chat_template(model.pointer, b"rerank")
        if template:
            before, _, after = template.decode("utf-8").partition("{document}")
            begin, _, middle = before.partition("{query}")
            asked = [*self._fixed(begin), *encode(question), *self._fixed(middle)]
            ends = self._fixed(after)
        else:
            asked, ends = self._marked(encode(question))
        most = min(self.max_tokens, self._context.n_ctx)
        room = most - len(asked) - len(ends)
        if room < 1:
            raise SettingsError(
                f"the question takes {len(asked)} tokens of the {most} that the "
                "reranker reads; raise max_tokens, or ask a shorter one"
            )
        return [*asked, *encode(text)[:room], *ends]

    def _marked(self, question: list[int]) -> tuple[list[int], list[int]]:
        """What stands before a passage and after it: [BOS] question [EOS] [SEP], and [EOS]."""
        lib, vocab = load(), self._context.model.vocab
        sep = lib.llama_vocab_sep(vocab)
        eos = lib.llama_vocab_eos(vocab)
        end = eos if eos != _NONE else sep
        ends = [end] if lib.llama_vocab_get_add_eos(vocab) and end != _NONE else []
        begin = [lib.llama_vocab_bos(vocab)] if lib.llama_vocab_get_add_bos(vocab) else []
        between = [sep] if lib.llama_vocab_get_add_sep(vocab) and sep != _NONE else []
        return [*begin, *question, *ends, *between], ends

    def _fixed(self, text: str) -> list[int]:
        """Tokens of a part of the template, whose control tokens count as such."""
        special = self._vocabulary.special_tokens
        names = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        parts = re.split(f"({names})", text) if names else [text]
        encode = self._vocabulary.encode
        ids = ([special[part]] if part in special else encode(part) for part in parts)
        return [i for some in ids for i in some]

    @functools.cached_property
    def _header(self) -> GGUFHeader:
        header = read_header(self.path)
        # llama.cpp ends the process when it is asked to rank without them
        if not any(tensor.name.startswith("cls.") for tensor in header.tensors):
            raise ModelFileError(
                f"{self.path} is no reranking model: it has no classifier; take one such as "
                "bge-reranker-v2-m3 in GGUF"
            )
        return header

    @functools.cached_property
    def _vocabulary(self) -> LlamaVocabulary:
        return LlamaVocabulary(self._header)

    @functools.cached_property
    def _context(self) -> "_Context":
        model = shared_model(self._header, n_gpu_layers=self._n_gpu_layers, mmap=True)
        n_ctx = min(self.max_tokens, self._header.context_length or self.max_tokens)
        return _Context(model, n_ctx, self._n_threads or default_threads())


class _Context:
    """A llama.cpp context that ranks, freed with this object."""

    def __init__(self, model: Model, n_ctx: int, n_threads: int) -> None:
        lib = load()
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx  # a pair is computed at once
        params.n_threads = params.n_threads_batch = n_threads
        params.embeddings, params.pooling_type = True, lib.LLAMA_POOLING_TYPE_RANK
        params.no_perf = True
        with ctrl_c_afterwards():
            self.pointer = lib.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise ModelFileError(f"llama.cpp cannot make a context of {n_ctx:,} tokens to rank in")
        self.model, self.n_ctx = model, n_ctx
        # At exit a thread may still be using it, and the system takes its memory back anyway.
        weakref.finalize(self, lib.llama_free, self.pointer).atexit = False
