"""The vLLM engine: full weights on one or more GPUs (or the CPU), many generations at once.

One asynchronous vLLM engine serves streams and batches alike: whatever threads ask for at the same
time is computed together (continuous batching), and prompts that begin alike are computed once
(prefix caching).
"""

import asyncio
import atexit
import functools
import itertools
import json
import multiprocessing
import os
import threading
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from mixtral_rag.engines import Cancellation, Interrupted, Prompt, check_prompt
from mixtral_rag.engines.background import Loop
from mixtral_rag.engines.constraint import LAYOUT, check_constraint
from mixtral_rag.engines.hf_folder import OverFolder
from mixtral_rag.engines.vllm_offload import (
    LEAST_MEMORY,
    check_platform,
    offloading,
    own_folder,
)
from mixtral_rag.engines.vllm_output import VllmText
from mixtral_rag.errors import (
    AdapterError,
    GenerationError,
    MissingExtraError,
    ModelError,
    ModelFileError,
    SettingsError,
)
from mixtral_rag.types import Piece, SamplingOptions
from mixtral_rag.weights.checkpoint import read_json

_PENALTY = "mixtral_rag.engines.vllm_penalty:RecentRepeatPenalty"
_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"  # which takes no processor of the first one's kind
_SHUTDOWN_SECONDS = 20.0  # then its process is killed; a loaded torch takes some to end
_TRANSFER = {"kv_transfer_config", "kv_offloading_size"}  # of vLLM, for the same
_numbers = itertools.count()


class VllmEngine(OverFolder):
    """One folder of full weights in one vLLM engine, used by any number of generations at once.

    The computing runs in a process that vLLM starts, so a script needs the usual guard, `if
    __name__ == "__main__":`.

    Args:
        model: the folder, with config.json, a tokenizer and the weights.
        n_ctx: context window in tokens, at most 131,072; None takes what the model was trained
            for, at most 32,768.
        dtype: type to compute in, such as bfloat16; auto is that of the weights.
        quantization: a method of vLLM, such as fp8, awq or bitsandbytes; None goes by the weights.
        tensor_parallel_size: GPUs to split every layer over.
        adapter: folder of LoRA weights to apply.
        kv_memory: bytes of main memory for computed prompts that the GPU's memory has no room for;
            None keeps none there.
        kv_folder: where computed prompts are kept as files too, for other processes; None keeps
            none.
        engine_options: more arguments of vLLM's `AsyncEngineArgs`, such as
            `gpu_memory_utilization` or `kv_cache_dtype`.

    Raises:
        SettingsError: an option is out of range.
    """

    concurrency = 256

    def __init__(
        self,
        model: str,
        *,
        n_ctx: int | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        tensor_parallel_size: int = 1,
        adapter: str | None = None,
        kv_memory: int | None = None,
        kv_folder: str | None = None,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, n_ctx, extra="vllm")
        if tensor_parallel_size < 1:
            raise SettingsError(f"tensor_parallel_size is {tensor_parallel_size}; it must be 1 up")
        self._dtype, self._quantization = dtype, quantization
        self._tensor_parallel_size, self._adapter = tensor_parallel_size, adapter
        if kv_memory is not None and kv_memory < 0:
            raise SettingsError(f"kv_memory is {kv_memory}; it must be 0 or more")
        if kv_memory and kv_memory < LEAST_MEMORY:
            raise SettingsError(
                f"kv_memory is {kv_memory} bytes; vLLM needs {LEAST_MEMORY:,} at least"
            )
        self._kv_memory, self._kv_folder = kv_memory, kv_folder or None
        self._more = dict(engine_options or {})
        if (kv_memory or kv_folder) and self._more.keys() & _TRANSFER:
            raise SettingsError(
                "kv_memory and kv_folder are a kv_transfer_config of their own; leave it and "
                "kv_offloading_size out of engine_options, or set only those"
            )
        self._load_lock = threading.Lock()
        self._loaded: list[Any] = []  # vLLM's engine, once it is started
        self._loop = Loop("vllm")

    @property
    def is_loaded(self) -> bool:
        """Whether vLLM has been started."""
        return bool(self._loaded)

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
        check_constraint(options)
        return self._run(ids, options, limit, cancel or Cancellation(), whole)

    def _run(
        self,
        ids: list[int],
        options: SamplingOptions,
        limit: int,
        cancel: Cancellation,
        whole: bool,
    ) -> Iterator[Piece]:
        text = VllmText(options, self.tokenizer, n_prompt=len(ids))
        try:
            if cancel.cancelled:
                raise Interrupted
            params = self._params(options, limit, whole)
            source = functools.partial(self._outputs, ids, params)
            for output in self._loop.iterate(source, cancel):
                piece = text.push(output)
                if piece is not None:
                    yield piece
                if text.ended:
                    break
        except Interrupted:
            text.finish_reason = "cancelled"
        yield text.last()

    async def _outputs(self, ids: list[int], params: Any) -> AsyncIterator[Any]:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        (engine,) = self._loaded
        request = {"type": "token", "prompt_token_ids": ids}
        try:
            async for output in engine.generate(
                request, params, f"mixtral-{next(_numbers)}", lora_request=self._lora()
            ):
                yield output
        except EngineDeadError as error:
            raise GenerationError(f"vLLM has stopped: {_reason(error)}") from error
        except (EngineGenerateError, ValueError) as error:
            raise GenerationError(f"vLLM failed: {_reason(error.__cause__ or error)}") from error

    def _params(self, options: SamplingOptions, limit: int, whole: bool) -> Any:
        """The options as vLLM's; the engine is started first."""
        self._start()
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        structured = None
        if options.json_schema is not None:
            schema = json.loads(options.json_schema) | {"x-guidance": LAYOUT}
            structured = StructuredOutputsParams(json=schema)
        elif options.pattern is not None:
            structured = StructuredOutputsParams(regex=options.pattern)
        # Stop texts are looked for here, which needs every token as it comes.
        at_once = whole and not options.stop
        penalty = (options.repeat_penalty, options.repeat_last_n)
        if options.repeat_penalty != 1 and os.environ.get(_RUNNER) != "0":
            raise SettingsError(
                f"repeat_penalty is {options.repeat_penalty}, which vLLM can only do with its "
                f"first model runner; unset {_RUNNER}, or set repeat_penalty=1"
            )
        return SamplingParams(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            seed=options.seed,
            max_tokens=limit,
            stop_token_ids=sorted(self.tokenizer.end_ids),
            logprobs=options.top_logprobs if options.logprobs else None,
            structured_outputs=structured,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY if at_once else RequestOutputKind.DELTA,
            extra_args={"recent_repeat_penalty": penalty} if options.repeat_penalty != 1 else None,
        )

    def _start(self) -> None:
        with self._load_lock:
            if not self._loaded:
                self._loaded.append(self._load())
                # At exit multiprocessing waits for vLLM's processes, for ever where it comes before
                # weakref's own turn: after a `TemporaryDirectory`, for one. `atexit` goes first.
                atexit.register(weakref.finalize(self, _stop, self._loaded, self._loop))

    def close(self) -> None:
        """Stop vLLM and give its memory back; it starts again when it is used again."""
        with self._load_lock:
            _stop(self._loaded, self._loop)

    def _load(self) -> Any:
        self._folder.check_weights()
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise ModelError(
                "vLLM starts a process of its own, which runs the main script again: put what "
                'the script does under `if __name__ == "__main__":`'
            )
        arguments = self._arguments()
        # Something in there keeps an exception of its import, and so every frame that led to it:
        # on this thread those would hold the engine for good.
        options, engine = self._loop.run(_vllm_classes())
        try:
            return engine.from_engine_args(options(**arguments, **self._offloading()))
        except (TypeError, ValueError) as error:  # pydantic's errors are ValueErrors
            raise SettingsError(
                f"vLLM refuses {self._folder.path} or its options: {_reason(error)}"
            ) from error
        except (RuntimeError, OSError, ImportError, NotImplementedError, KeyError) as error:
            raise ModelFileError(
                f"vLLM cannot load {self._folder.path} (what it printed says more): "
                f"{_reason(error)}"
            ) from error

    def _arguments(self) -> dict[str, Any]:
        # Nothing is sent to anyone, and the log is for warnings.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        penalises = os.environ.setdefault(_RUNNER, "0") == "0"
        arguments: dict[str, Any] = {
            "model": str(self._folder.path),
            "max_model_len": self.n_ctx,
            "dtype": self._dtype,
            "quantization": self._quantization,
            "tensor_parallel_size": self._tensor_parallel_size,
            "enable_prefix_caching": True,
            "generation_config": "vllm",
            "logits_processors": [_PENALTY] if penalises else None,
            "structured_outputs_config": {"backend": "guidance"},
            "disable_log_stats": True,
        }
        if self.n_ctx > (self._folder.config.get("max_position_embeddings") or self.n_ctx):
            os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
        if self._adapter is not None:
            rank = _adapter_rank(self._adapter)
            arguments |= {"enable_lora": True, "max_lora_rank": rank}
        return arguments | self._more

    def _offloading(self) -> dict[str, Any]:
        if not self._kv_memory and self._kv_folder is None:
            return {}
        check_platform()
        folder = None
        if self._kv_folder is not None:
            from vllm import __version__

            models = [Path(m) for m in (self._folder.path, self._adapter) if m is not None]
            more = json.dumps(self._more, sort_keys=True, default=str)
            options = (__version__, self._dtype, self._quantization, self.n_ctx, more)
            folder = own_folder(self._kv_folder, models, *options)
        return offloading(self._kv_memory, folder)

    def _lora(self) -> Any:
        if self._adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, self._adapter)


async def _vllm_classes() -> tuple[Any, Any]:
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ModuleNotFoundError as error:
        raise MissingExtraError("vllm", "vllm") from error
    return AsyncEngineArgs, AsyncLLM


def _stop(loaded: list[Any], loop: Loop) -> None:
    """End vLLM's processes, now rather than when the interpreter has lost half its modules."""

    async def stop(engine: Any) -> None:
        handler = getattr(engine, "output_handler", None)
        if handler is not None:  # which would log the end of the process as a failure
            handler.cancel()
            await asyncio.wait([handler])
        engine.shutdown(timeout=_SHUTDOWN_SECONDS)

    while loaded:
        loop.finish(stop(loaded.pop()))


def _adapter_rank(folder: str) -> int:
    """The least rank vLLM can be started with for the adapter in `folder`."""
    rank = read_json(Path(folder) / "adapter_config.json").get("r")
    for allowed in (8, 16, 32, 64, 128, 256, 320, 512):
        if isinstance(rank, int) and 0 < rank <= allowed:
            return allowed
    raise AdapterError(f"{folder}: vLLM takes LoRA weights of rank 1 to 512, not {rank!r}")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
