"""The llama.cpp engine: GGUF models on the CPU, Metal or CUDA, through llama-cpp-python.

llama-cpp-python's low-level functions are used throughout. Its `Llama` class has no lock, parses
control tokens in message text and cannot be stopped during a prefill.
"""

import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixtral_rag.engines import (
    NATIVE_CTX,
    Cancellation,
    PassagePrompt,
    Prompt,
    check_n_ctx,
    check_prompt,
)
from mixtral_rag.engines.choice import Choice
from mixtral_rag.engines.generation import run
from mixtral_rag.engines.llama_build import llama_build
from mixtral_rag.engines.llama_context import LlamaContext
from mixtral_rag.engines.llama_library import Model, flash_attention, release_team, shared_model
from mixtral_rag.engines.llama_passages import Composer, Passages
from mixtral_rag.engines.llama_place import SharedPlace
from mixtral_rag.engines.llama_sampler import Sampler
from mixtral_rag.engines.llama_states import LEAST_BATCH, MemoryStates, PromptStates
from mixtral_rag.engines.llama_vocab import LlamaVocabulary
from mixtral_rag.engines.turns import Turn, Turns
from mixtral_rag.errors import ModelFileError, SettingsError
from mixtral_rag.kvstore import KVStore
from mixtral_rag.machine import memory, usable_cpus
from mixtral_rag.types import Piece, SamplingOptions
from mixtral_rag.weights.gguf import GGUFHeader, read_header

_MOST_PARALLEL = 64
_MEMORY_SHARE = 20  # what part of the memory states may take by default
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


class LlamaCppEngine:
    """One GGUF file and one llama.cpp context.

    Generations that come at the same time read their prompts one after the other and are answered
    together, a token of each in one batch.

    Args:
        model: path of the GGUF file.
        n_ctx: context window in tokens, at most 131,072; None takes what the model was trained
            for, at most 32,768.
        n_gpu_layers: layers to put on the GPU, -1 for all; on a build without one it does nothing.
        n_threads: threads for generating; None takes the usable cores.
        n_batch: most prompt tokens computed in one step.
        kv_type: type of the KV cache: f16, or q8_0 for half the memory. Mixtral-8x7B takes
            128 KiB a token in f16.
        parallel: most answers computed together, from 1 to 64. On a CPU they get a second cache
            when two of them meet, of a window each within an eighth of the free memory and 4 GiB,
            at least one; where there is no room for it, on a GPU and with types other than f16 and
            bf16 all share one window. Where the cells are taken others wait. Beside others an
            answer may differ in rounding, and so in a word now and then, from the one it gets
            alone; with 1 each is computed alone.
        mmap: map the file instead of reading it into memory.
        kv_folder: where states of prompts are kept, so that a prompt that begins as one before did
            need not be computed again, in another process too; None keeps none.
        kv_bytes: most bytes of them, 0 keeps none; None takes a fifth of the free disk.
        kv_memory: most bytes of memory for the states of other conversations while one is computed,
            so that each goes on without being read again; 0 keeps none, None takes a twentieth of
            the memory there is.
    """

    takes_messages, takes_pattern = False, True
    n_again = 0
    """See `llama_passages.Composer`."""

    def __init__(
        self,
        model: str,
        *,
        n_ctx: int | None = None,
        n_gpu_layers: int = -1,
        n_threads: int | None = None,
        n_batch: int = 512,
        parallel: int = 8,
        kv_type: str = "f16",
        mmap: bool = True,
        kv_folder: str | Path | None = None,
        kv_bytes: int | None = None,
        kv_memory: int | None = None,
    ) -> None:
        check_n_ctx(n_ctx)
        for name, value in (("kv_bytes", kv_bytes), ("kv_memory", kv_memory)):
            if value is not None and value < 0:
                raise SettingsError(f"{name} is {value}; it must be 0 or more")
        if kv_type not in KV_TYPES:
            raise SettingsError(
                f"unknown kv_type {kv_type!r}; choose one of: {', '.join(KV_TYPES)}"
            )
        if n_batch < 1:
            raise SettingsError(f"n_batch is {n_batch}; it must be at least 1")
        if not 1 <= parallel <= _MOST_PARALLEL:
            raise SettingsError(f"parallel is {parallel}; it must be from 1 to {_MOST_PARALLEL}")
        self.path = Path(model).expanduser()
        self._wanted_ctx, self._n_gpu_layers, self._mmap = n_ctx, n_gpu_layers, mmap
        self._n_threads, self._n_batch, self._kv_type = n_threads, n_batch, kv_type
        self.concurrency = parallel
        self._kv_folder, self._kv_bytes, self._kv_memory = kv_folder, kv_bytes, kv_memory
        self._load_lock = threading.Lock()
        self._loaded: LlamaContext | None = None
        self._turns = Turns(leaving=release_team)

    @functools.cached_property
    def header(self) -> GGUFHeader:
        """Metadata of the file, read once."""
        try:
            stat = self.path.stat()
        except OSError:
            return read_header(self.path)  # which says what is wrong with the path
        header = _read_header(self.path, stat.st_mtime_ns, stat.st_size)
        if header.vocabulary_size == 0:
            raise ModelFileError(f"{self.path} has no vocabulary; it is not a language model")
        return header

    @functools.cached_property
    def tokenizer(self) -> LlamaVocabulary:
        """The model's vocabulary; loads no weights."""
        return LlamaVocabulary(self.header)

    @property
    def n_ctx(self) -> int:
        """Context window in tokens."""
        if self._wanted_ctx is not None:
            return self._wanted_ctx
        return min(self.header.context_length or NATIVE_CTX, NATIVE_CTX)

    @property
    def is_mixtral(self) -> bool:
        """Whether prompts take the Mixtral instruct format."""
        return self.header.is_mixtral

    @property
    def is_instruct(self) -> bool:
        """Whether the model was tuned to follow instructions."""
        return self.header.is_instruct

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja chat template."""
        return self.header.chat_template

    @property
    def model_name(self) -> str:
        """The name the file gives itself, else its file name."""
        return self.header.text("general.name") or self.path.stem

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
            SettingsError: the prompt is empty, or a JSON schema cannot be enforced.
            ContextError: prompt and answer do not fit the context; nothing was computed.
            ModelError: the model cannot be loaded, or the engine failed.
        """
        ids, limit = check_prompt(prompt, options, self.n_ctx)
        choice = Choice(options, self.tokenizer)
        spans = prompt.spans if isinstance(prompt, PassagePrompt) else ()
        return self._run(ids, options, limit, choice, cancel or Cancellation(), whole, spans)

    def _run(
        self,
        ids: list[int],
        options: SamplingOptions,
        limit: int,
        choice: Choice,
        cancel: Cancellation,
        whole: bool,
        spans: Sequence[tuple[int, int]],
    ) -> Iterator[Piece]:
        sampler = Sampler(options, ids, len(self.tokenizer))

        def place(turn: Turn) -> SharedPlace:
            loaded = self._context()
            can = bool(spans) and loaded.can_place
            model = Composer(loaded, self._passages, spans, self.n_again) if can else loaded
            return SharedPlace(turn, loaded, model, sampler, choice.look, len(ids) + limit)

        yield from run(
            ids,
            options,
            limit,
            turns=self._turns,
            place=place,
            choice=choice,
            tokenizer=self.tokenizer,
            cancel=cancel,
            whole=whole,
        )

    def _context(self) -> LlamaContext:
        with self._load_lock:
            if self._loaded is None:
                self._loaded = LlamaContext(
                    self._load_weights(),
                    n_ctx=self.n_ctx,
                    n_batch=self._n_batch,
                    n_threads=self._n_threads or default_threads(),
                    kv_type=self._kv_type,
                    flash=self._flash(),
                    parallel=self.concurrency,
                    states=self._states(),
                    others=self._others(),
                )
            return self._loaded

    @functools.cached_property
    def _passages(self) -> Passages:
        return Passages(self._states(), self._memory_for_states())

    def _states(self) -> PromptStates | None:
        if self._kv_folder is None or self._kv_bytes == 0:
            return None
        store = KVStore(Path(self._kv_folder).expanduser(), max_bytes=self._kv_bytes)
        on_gpu = self._n_gpu_layers if llama_build().has_gpu else 0
        tuned = [self._kv_type, min(self._n_batch, LEAST_BATCH), on_gpu, self._flash()]
        if self.header.has_long_factors:
            tuned.append(self.n_ctx)  # decides which factors llama.cpp takes
        return PromptStates(store, self.header, *tuned)

    def _flash(self) -> bool | None:
        return flash_attention(
            self.header, n_ctx=self.n_ctx, n_batch=self._n_batch, kv_type=self._kv_type
        )

    def _others(self) -> MemoryStates:
        return MemoryStates(self._memory_for_states())

    def _memory_for_states(self) -> int:
        wanted = self._kv_memory
        return memory().total // _MEMORY_SHARE if wanted is None else wanted

    def _load_weights(self) -> Model:
        return shared_model(self.header, n_gpu_layers=self._n_gpu_layers, mmap=self._mmap)


@functools.lru_cache(maxsize=8)
def _read_header(path: Path, _mtime_ns: int, _size: int) -> GGUFHeader:
    return read_header(path)


def default_threads() -> int:
    """Usable cores, halved on larger machines where most of them are hardware threads."""
    cores = usable_cpus()
    return cores if cores <= 4 else cores // 2
