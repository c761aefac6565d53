"""States of prompts kept on disk for one model in llama.cpp; see `mixtral_rag.kvstore`."""

import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mixtral_rag.engines.llama_build import llama_build
from mixtral_rag.kvstore import KVStore
from mixtral_rag.weights.gguf import GGUFHeader

if TYPE_CHECKING:
    from mixtral_rag.engines.llama_context import LlamaContext

LEAST_BATCH = 64  # tokens; see `llama_context.batch_sizes`
_LEAST = 128  # tokens: to compute so few again is quicker than to keep them
_SHARE = 0.1  # of a state that must be new, or the same pages would be kept with every question
_SAMPLE = 4096  # bytes of a tensor's beginning, middle and end


class PromptStates:
    """What a context takes from the disk before it computes, and leaves there afterwards.

    Args:
        store: the files.
        header: of the model's file.
        options: what else decides the numbers in the cache, such as its type.
    """

    def __init__(self, store: KVStore, header: GGUFHeader, *options: object) -> None:
        self._store, self._header, self._options = store, header, options
        self._kept = 0  # of the tokens that the context holds, how many are on disk

    @functools.cached_property
    def _key(self) -> str:
        what = (fingerprint(self._header), llama_build().identity, *self._options)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:32]

    def restore(self, context: "LlamaContext", ids: Sequence[int]) -> None:
        """Let the context hold more of the first of `ids`, where the disk has more of them."""
        held = len(context.held)
        self._kept = min(self._kept, held)
        found = self._store.find(
            self._key, ids[:-LEAST_BATCH], more_than=held + _LEAST, room=context.n_ctx
        )
        if found is None:
            return
        state, shared = found
        if self._store.load(state, lambda path: context.read_state(path, ids[:shared])):
            self._kept = shared

    def keep(self, context: "LlamaContext") -> None:
        """Put what the context holds on the disk, where enough of it is not there."""
        held = context.held
        if len(held) - self._kept < max(_LEAST, _SHARE * len(held)):
            return
        if self._store.save(self._key, held, context.write_state, in_background=True):
            self._kept = len(held)


def fingerprint(header: GGUFHeader) -> str:
    """A hash of a model file: all metadata, and samples of every tensor.

    A whole hash of 26 GB takes half a minute; fine-tunes differ in every tensor.
    """
    digest = hashlib.sha256()
    with header.path.open("rb") as file:
        digest.update(file.read(header.data_offset))
        for tensor in header.tensors:
            start, size = header.data_offset + tensor.offset, tensor.size or 0
            for place in (0, max(0, size // 2 - _SAMPLE), max(0, size - _SAMPLE)):
                file.seek(start + place)
                digest.update(file.read(min(_SAMPLE, size - place)))
    return digest.hexdigest()
