"""The options of the model faces."""

import difflib
from typing import Any

from langchain_core.utils import secret_from_env
from pydantic import BaseModel, Field, SecretStr, model_validator

from mixtral_rag.errors import SettingsError

# Options that LangChain gives to any chat model, and that mean nothing to a local one.
STANDARD = frozenset({"api_key", "max_retries", "streaming", "timeout"})


class ModelOptions(BaseModel):
    """What decides which model answers, how it is run, and how its tokens are chosen."""

    model: str
    """A GGUF file for llamacpp, a folder of full weights for vllm and transformers, or the name of
    a pulled model, such as `chinese-mixtral-instruct`; for remote the name the server gives it."""
    engine: str = "llamacpp"
    """What runs the model: `llamacpp`, `vllm`, `transformers`, or `remote` for a server with
    OpenAI's API."""

    n_ctx: int | None = None
    """Context window in tokens, to 131,072; None takes the model's own, at most 32,768."""
    n_gpu_layers: int = -1
    """llamacpp: layers to put on the GPU, -1 for all that fit the build."""
    n_threads: int | None = None
    """llamacpp: CPU threads; None takes the usable cores."""
    n_batch: int = 512
    """llamacpp: most prompt tokens computed in one step."""
    parallel: int = 8
    """llamacpp: most answers computed together. On a CPU they take memory for a window or more of
    their own, else they share one. Beside others one may differ in rounding from the one it gets
    alone; with 1 each is computed alone."""
    kv_type: str = "f16"
    """llamacpp: type of the KV cache; q8_0 takes half the memory of f16."""
    mmap: bool = True
    """llamacpp: map the model file instead of reading it into memory."""
    kv_folder: str | None = None
    """llamacpp, vllm: where computed prompts are kept, so that one that begins alike is not
    computed again, in another process too; None keeps none. The files hold what the prompts say."""
    kv_bytes: int | None = None
    """llamacpp: most bytes of them on the disk; None takes a fifth of what is free."""
    kv_memory: int | None = None
    """llamacpp: most bytes of memory for other conversations while one is computed, so that each
    goes on without being read again; None takes a twentieth of the memory. vllm: bytes of main
    memory for prompts that the GPU's has no room for; None keeps none there."""
    dtype: str = "auto"
    """vllm, transformers: type to compute in, such as bfloat16; `auto` is that of the weights."""
    quantization: str | None = None
    """vllm: a method it knows, such as `fp8`, `awq` or `bitsandbytes`; transformers: `8bit` or
    `4bit` (bitsandbytes)."""
    device: str | None = None
    """transformers: `cpu`, `cuda`, `mps`, or `auto` to spread over all; None takes a GPU where
    there is one."""
    tensor_parallel_size: int = 1
    """vllm: GPUs to split every layer over."""
    adapter: str | None = None
    """vllm, transformers: folder of LoRA weights to apply, or the name they were pulled under."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """vllm: more engine arguments; transformers: more arguments of `from_pretrained`; remote: more
    fields of a request."""
    base_url: str | None = None
    """remote: address of the server, such as `http://127.0.0.1:8000/v1`."""
    api_key: SecretStr | None = Field(
        default_factory=secret_from_env("MIXTRAL_RAG_API_KEY", default=None)
    )
    """remote: key of the server; None takes MIXTRAL_RAG_API_KEY, where it is set."""
    timeout: float | None = 600.0
    """remote: most seconds to wait for the next piece of an answer, None to wait on."""
    max_retries: int = 2
    """remote: how often to try again when the server cannot be reached or is busy."""
    tokenizer: str | None = None
    """remote: a GGUF file or a folder with the model's vocabulary; None takes Mixtral's for a
    model with that name."""

    temperature: float = 0.2
    """0 takes the most likely token; higher is more varied."""
    top_k: int = 40
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 0.9
    """Keep the smallest set of tokens with at least this probability."""
    min_p: float = 0.0
    """Drop tokens below this share of the best one's probability."""
    repeat_penalty: float = 1.1
    """Divide the logits of recent tokens by this."""
    repeat_last_n: int = 64
    """How many recent tokens count, prompt included."""
    seed: int | None = None
    """Random seed; None for a fresh one each time."""
    max_tokens: int | None = 512
    """Most tokens to generate; None fills the context window."""
    stop: list[str] = Field(default_factory=list)
    """Texts that end the generation, beside those given with a call."""
    n: int = 1
    """How many answers to make for each prompt."""
    logprobs: bool = False
    """Whether to return the log-probability of every token."""
    top_logprobs: int = 0
    """How many of the likeliest tokens to return with each, at most 20."""
    json_schema: dict[str, Any] | None = None
    """A JSON schema; only JSON that conforms to it can then be generated."""
    pattern: str | None = None
    """A regular expression that the whole answer will match (remote: vLLM's server only)."""

    instruct: bool | None = None
    """Whether to use the instruct format; None tells by the model file."""
    keep_markers: bool = False
    """Leave `[INST]` and `[/INST]` inside messages as they are, and for the chat model the marks of
    tool calls; only for text you trust."""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        """Refuse options that do not exist: LangChain's base classes would ignore them."""
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields and name not in STANDARD:
                near = difflib.get_close_matches(name, cls.model_fields, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise SettingsError(f"{cls.__name__} has no option {name!r}{hint}")
        return values
