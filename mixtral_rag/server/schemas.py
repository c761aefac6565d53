"""Requests of OpenAI's API, with the fields that local servers and the upstream project add."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

_LONGEST_STOP = 256  # characters
_DEEPEST = 64
_MOST_MESSAGES, _MOST_TOKENS = 20_000, 1_000_000
# Fields that would change the answer and are not served; these values of them change nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "chat_template": (None,), "chat_template_kwargs": (None, {}), "logit_bias": (None, {}),
    "presence_penalty": (None, 0), "frequency_penalty": (None, 0), "num_beams": (None, 1),
    "functions": (None, []), "function_call": (None, "none"), "suffix": (None, ""),
    "audio": (None,), "modalities": (None, ["text"]), "prediction": (None,),
    "best_of": (None, 1),
}  # fmt: skip
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repeat_last_n")


def _check(value: Any, depth: int = 0) -> None:
    """Refuse what no text or schema is: halves of characters, and nesting without end."""
    if depth > _DEEPEST:
        raise ValueError(f"it nests deeper than {_DEEPEST}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a character") from None
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check(name, depth + 1)
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)


class Body(BaseModel):
    """The body of any request."""

    @model_validator(mode="before")
    @classmethod
    def _check_texts(cls, value: Any) -> Any:
        _check(value)
        return value


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    include_usage: bool = False


class Sampled(Body):
    """What all generations share. Unknown fields are let pass, as other servers do."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    model: Annotated[str, Field(max_length=512)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1_000_000_000_000)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty")
    )
    repeat_last_n: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    do_sample: bool | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1 << 31)] | None = Field(
        None, validation_alias=AliasChoices("max_completion_tokens", "max_tokens")
    )
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "Sampled":
        for name, value in (self.model_extra or {}).items():
            if name in _REFUSED and value not in _REFUSED[name]:
                raise ValueError(f"{name} is not served here; leave it out")
        if any(not s or len(s) > _LONGEST_STOP for s in self.stops):
            raise ValueError(f"stop takes texts of 1 to {_LONGEST_STOP} characters")
        return self

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def sampling(self) -> dict[str, Any]:
        """The options of choosing tokens that were given, under our names."""
        given = {name: v for name in _SAMPLING if (v := getattr(self, name)) is not None}
        if given.get("top_k") == -1:  # vLLM's way to keep all
            given["top_k"] = 0
        if self.do_sample is False:  # the upstream project's way to be greedy
            given["temperature"] = 0.0
        if self.seed is not None and self.seed != -1:
            given["seed"] = self.seed % (1 << 32)
        if self.max_tokens is not None:
            given["max_tokens"] = self.max_tokens
        return given

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatMessage(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        str | Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=10_000)] | None
    ) = None
    name: str | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_call_id: str | None = None


class ChatRequest(Sampled):
    """`POST /v1/chat/completions`."""

    messages: Annotated[
        list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=_MOST_MESSAGES)
    ]
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    collection: str | None = Field(
        None, description="Answer from the documents of this collection; `default` is the main one."
    )


Tokens = Annotated[list[int], Field(fail_fast=True, min_length=1, max_length=_MOST_TOKENS)]


class CompletionRequest(Sampled):
    """`POST /v1/completions`; a prompt is text or token IDs, and goes to the model as it is."""

    prompt: (
        str
        | Tokens
        | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=64)]
        | Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=64)]
    )  # fmt: skip
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt."""
        given: Any = self.prompt
        if isinstance(given, str) or isinstance(given[0], int):
            return [given]
        return list(given)


class EmbeddingRequest(Body):
    """`POST /v1/embeddings`."""

    model_config = ConfigDict(extra="allow")

    input: str | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=2048)]
    model: Annotated[str, Field(max_length=512)] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    input_type: Literal["document", "query"] = Field(
        "document", description="What the texts are: passages to be found, or questions."
    )
