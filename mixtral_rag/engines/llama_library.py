"""llama-cpp-python's low-level library: import, logging, and loading a model file."""

import ctypes
import functools
import logging
import shlex
import signal
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mixtral_rag.errors import MissingExtraError, ModelError, ModelFileError
from mixtral_rag.weights.gguf import GGML_TYPES, GGUFHeader, check_complete

_log = logging.getLogger("mixtral_rag.llamacpp")
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.WARNING}
_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_TYPE_NUMBERS = {name: number for number, (name, _, _) in GGML_TYPES.items()}
_MOST_SCORES = 1 << 30  # bytes of attention scores of one batch
_recent_errors: deque[str] = deque(maxlen=4)


@functools.cache
def load() -> Any:
    """The `llama_cpp` module, its log sent to the logger `mixtral_rag.llamacpp`.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        ModelError: it is installed, and its library cannot be loaded.
    """
    try:
        import llama_cpp
    except ModuleNotFoundError as error:
        raise MissingExtraError("llama-cpp-python", "llamacpp") from error
    except (ImportError, OSError, RuntimeError) as error:  # a CUDA build without its driver
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"llama-cpp-python is installed and cannot be loaded: {reason}; install it again: pip "
            "install --force-reinstall --no-cache-dir llama-cpp-python"
        ) from error
    llama_cpp.llama_log_set(_log_callback(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@functools.cache  # the C side keeps the pointer, so the object must live as long as the process
def _log_callback(llama_cpp: Any) -> Any:
    def write(level: int, text: bytes, _data: object) -> None:
        line = text.decode("utf-8", errors="replace").strip()
        if level == _ERROR and line:
            _recent_errors.append(line)
        if line:
            _log.log(_LEVELS.get(level, logging.DEBUG), "%s", line)

    return llama_cpp.llama_log_callback(write)


@functools.cache
def _omp_pause() -> Any:
    """OpenMP's `omp_pause_resource_all`, where llama.cpp was built with OpenMP 5; else None."""
    return getattr(load().llama_cpp._lib, "omp_pause_resource_all", None)


def release_team() -> None:
    """Give back the OpenMP threads that computed for this thread.

    Every thread that computes gets a team of them. GCC's runtime lets them wait actively only while
    all teams together are no more than the cores; with a second team llama.cpp's many short steps
    took 3 to 10 times as long on 2 cores. So a thread that is done must not keep its team.
    """
    pause = _omp_pause()
    if pause is not None:
        pause(1)  # omp_pause_soft


@contextmanager
def ctrl_c_afterwards() -> Iterator[None]:
    """Hold back Ctrl-C during a C call that logs: raised in the log callback it would be lost."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


class Model:
    """A loaded `llama_model`, freed with this object.

    Args:
        pointer: the model.
        vocab: its vocabulary.
        n_mapped: bytes of the file that are mapped, not read, and count as free memory.
        is_tied_to_window: whether contexts with other windows compute other numbers.
    """

    def __init__(self, pointer: Any, vocab: Any, *, n_mapped: int, is_tied_to_window: bool) -> None:
        self.pointer, self.vocab = pointer, vocab
        self.n_mapped, self.is_tied_to_window = n_mapped, is_tied_to_window
        # At exit threads may still be using it, and the system takes its memory back anyway.
        weakref.finalize(self, load().llama_model_free, pointer).atexit = False


_models: "weakref.WeakValueDictionary[tuple[object, ...], Model]" = weakref.WeakValueDictionary()
_models_lock = threading.Lock()


def shared_model(header: GGUFHeader, *, n_gpu_layers: int, mmap: bool) -> Model:
    """`load_model`, but contexts of any size over one file share its weights."""
    stat = header.path.stat()
    key = (header.path.resolve(), stat.st_mtime_ns, stat.st_size, n_gpu_layers, mmap)
    with _models_lock:
        model = _models.get(key)
        if model is None:
            model = load_model(header, n_gpu_layers=n_gpu_layers, mmap=mmap)
            _models[key] = model
        return model


def load_model(
    header: GGUFHeader, *, vocab_only: bool = False, n_gpu_layers: int = 0, mmap: bool = True
) -> Model:
    """Load the file of `header`, or only its vocabulary.

    Raises:
        ModelFileError: the file is truncated, in the old expert layout, or refused by llama.cpp.
    """
    lib = load()
    check_complete(header)
    if not vocab_only:
        refuse_old_layout(header)
    params = lib.llama_model_default_params()
    params.vocab_only = vocab_only
    params.use_extra_bufts = not has_amx()
    params.n_gpu_layers = 0 if vocab_only else n_gpu_layers
    params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if mmap else lib.LLAMA_LOAD_MODE_NONE
    _recent_errors.clear()
    with ctrl_c_afterwards():
        pointer = lib.llama_model_load_from_file(str(header.path).encode(), params)
    if not pointer:
        reason = _recent_errors[0].rsplit("model: ", 1)[-1] if _recent_errors else "no reason given"
        raise ModelFileError(f"llama.cpp cannot load {header.path}: {reason}")
    vocab = lib.llama_model_get_vocab(pointer)
    n_mapped = lib.llama_model_size(pointer) if mmap else 0
    return Model(pointer, vocab, n_mapped=n_mapped, is_tied_to_window=header.has_long_factors)


def new_context(
    model: Model,
    *,
    n_ctx: int,
    n_batch: int,
    n_threads: int,
    kv_type: str,
    flash: bool | None,
    n_seq: int,
) -> Any:
    """A `llama_context` whose `n_seq` sequences share the cells of its cache.

    Raises:
        ModelFileError: llama.cpp refuses, most often for want of memory.
    """
    lib = load()
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.kv_unified = n_ctx, n_seq, True
    params.n_batch = params.n_ubatch = max(min(n_batch, n_ctx), n_seq)  # one token of each
    params.n_threads = params.n_threads_batch = n_threads
    params.type_k = params.type_v = _TYPE_NUMBERS[kv_type.upper()]
    params.no_perf = True
    if flash is not None:
        names = "LLAMA_FLASH_ATTN_TYPE_DISABLED", "LLAMA_FLASH_ATTN_TYPE_ENABLED"
        params.flash_attn_type = getattr(lib, names[flash])
    pointer = None
    try:
        with ctrl_c_afterwards():
            pointer = lib.llama_init_from_model(model.pointer, params)
    except KeyboardInterrupt:
        if pointer:
            lib.llama_free(pointer)
        raise
    if not pointer:
        other = "q8_0" if kv_type == "f16" else "f16"
        raise ModelFileError(
            f"llama.cpp cannot make a context of {n_ctx:,} tokens with a {kv_type} cache; "
            f"choose a smaller n_ctx, or kv_type {other}"
        )
    return pointer


def is_simple(model: Model) -> bool:
    """Whether all the model remembers are keys and values, so that a part can be forgotten."""
    lib, pointer = load(), model.pointer
    return not (lib.llama_model_is_recurrent(pointer) or lib.llama_model_is_hybrid(pointer))


def flash_attention(header: GGUFHeader, *, n_ctx: int, n_batch: int, kv_type: str) -> bool | None:
    """How a context over the model of `header` should compute attention.

    On the CPU ordinary attention takes half the time of flash attention for the few tokens of a
    question or of an answer and as long for a prefill, and its numbers do not depend on how a
    prompt is cut into batches. It needs memory for one batch's scores: 4 bytes for each token of
    the window, token of the batch and head.

    Returns:
        True for flash attention, without which llama.cpp quantises no V; False where that memory
        is at most 1 GiB, and for an f32 cache, which flash attention would round to f16; None
        leaves it to llama.cpp.
    """
    if kv_type not in ("f16", "f32", "bf16"):
        return True
    scores = 4 * n_ctx * min(n_batch, n_ctx) * (header.number("attention.head_count") or 1 << 30)
    on_gpu = load().llama_supports_gpu_offload()
    return False if kv_type == "f32" or (scores <= _MOST_SCORES and not on_gpu) else None


@functools.cache
def has_amx() -> bool:
    """Whether llama.cpp would put weights into its layout for Intel's AMX instructions.

    Compiled by GCC up to 13 that code crashes: the compiler takes `ldtilecfg` to read 8 bytes of
    its 64, and drops the writing of the others (ggml/src/ggml-cpu/amx/mmq.cpp). The ordinary
    AVX-512 code is used instead.
    """
    return "AMX_INT8 = 1" in load().llama_print_system_info().decode("utf-8", "replace")


def refuse_old_layout(header: GGUFHeader) -> None:
    """Raise `ModelFileError` for a file from before April 2024, naming the command that helps."""
    if header.has_old_expert_layout:
        raise ModelFileError(
            f"{header.path} keeps each expert in a tensor of its own, the layout from before "
            "April 2024, which today's llama.cpp cannot load; run: "
            f"mixtral-rag upgrade {shlex.quote(str(header.path))}"
        )
