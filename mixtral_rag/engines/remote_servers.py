"""Kinds of model servers: how each is recognised, and how it wants its requests."""

import asyncio
import enum
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from mixtral_rag.engines.constraint import LAYOUT
from mixtral_rag.engines.remote_errors import Failure
from mixtral_rag.engines.remote_http import Connection
from mixtral_rag.errors import MissingExtraError, ServerError, SettingsError
from mixtral_rag.types import SamplingOptions

VLLM, LLAMA_SERVER, LLAMA_CPP_PYTHON = "vLLM", "llama-server", "llama-cpp-python"
OLLAMA, LM_STUDIO, OTHER = "Ollama", "LM Studio", "another server"

# `owned_by` in the list of models.
_OWNERS = {"vllm": VLLM, "llamacpp": LLAMA_SERVER, "me": LLAMA_CPP_PYTHON, "library": OLLAMA}
_NO_LIST = frozenset({400, 404, 405, 501})
# Samplers beyond OpenAI's; other servers may refuse fields that they do not know.
_SAMPLERS = {
    LLAMA_SERVER: ("top_k", "min_p", "repeat_penalty", "repeat_last_n"),
    LLAMA_CPP_PYTHON: ("top_k", "min_p", "repeat_penalty"),
    LM_STUDIO: ("top_k", "repeat_penalty"),
}
_MOST_STOPS = 4  # that OpenAI's API takes; all are looked for here too


class Form(enum.Enum):
    """How a prompt is sent."""

    IDS = enum.auto()
    TEXT = enum.auto()
    CHAT = enum.auto()


@dataclass(frozen=True, slots=True)
class Server:
    """What a server is and serves.

    Args:
        kind: one of the names above.
        model: the model as the server calls it.
        origin: where the server says it has the model from.
        n_ctx: its context window in tokens, None when it does not tell.
    """

    kind: str
    model: str
    origin: str = ""
    n_ctx: int | None = None


async def find_server(http: Connection, model: str) -> Server:
    """What is at the other end.

    Raises:
        ServerError: nothing is, it refuses, or it has no such model.
    """
    try:
        listing = await http.ask("GET", "/v1/models")
    except Failure as failure:
        if failure.status not in _NO_LIST:
            raise failure.error from failure
        listing = {}
    entries = listing.get("data") or listing.get("models")
    models = [m for m in entries if isinstance(m, dict)] if isinstance(entries, list) else []
    entry = _entry(model, [m for m in models if isinstance(m.get("id"), str)])
    owner = str(entry.get("owned_by"))
    kind, told = _OWNERS.get(owner), None
    if kind is None or kind in (LLAMA_SERVER, OLLAMA):
        kind, told = await _look_closer(http, kind, str(entry.get("id", model)))
    return Server(
        kind,
        str(entry.get("id", model)),
        str(entry.get("root") or ""),
        _number(entry.get("max_model_len")) or told or _number(_meta(entry).get("n_ctx")),
    )


def _entry(model: str, models: list[dict[str, Any]]) -> dict[str, Any]:
    """The one called `model`; servers may add a tag, a folder or a file's ending to a name.

    Without a name it is the only one.
    """
    if not model and len(models) == 1:
        return models[0]
    wanted = model.lower()
    for entry in models:
        if entry["id"] == model:
            return entry
    for entry in models if wanted else ():
        name = entry["id"].lower()
        path = PurePath(name)
        if wanted in (name, name.removesuffix(":latest"), path.name, path.stem):
            return entry
    if not models:
        return {}
    names = ", ".join(entry["id"] for entry in models[:10])
    if not model:
        raise ServerError(f"the server has several models; name one as model: {names}")
    raise ServerError(f"the server has no model {model!r}; it has: {names}")


async def _look_closer(http: Connection, kind: str | None, model: str) -> tuple[str, int | None]:
    """The kind of a server by what only one of them answers, and its context window."""
    props, studio, ollama, running = await asyncio.gather(
        http.look("/props"), http.look("/api/v0/models"), http.look("/api/version"),
        http.look("/api/ps"),
    )  # fmt: skip
    settings = _field(props, "default_generation_settings")
    if kind == LLAMA_SERVER or settings:
        return LLAMA_SERVER, _number(_field(settings, "n_ctx"))
    if isinstance(_field(studio, "data"), list):
        found = next((m for m in studio["data"] if _field(m, "id") == model), None)
        return LM_STUDIO, _number(_field(found, "loaded_context_length"))
    if kind == OLLAMA or (_field(ollama, "version") and _field(running, "models") is not None):
        loaded = _field(running, "models") or []
        found = next((m for m in loaded if _field(m, "name") == model), None)
        return OLLAMA, _number(_field(found, "context_length"))
    return OTHER, None


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _meta(entry: dict[str, Any]) -> dict[str, Any]:
    return entry["meta"] if isinstance(entry.get("meta"), dict) else {}


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def request(
    server: Server, options: SamplingOptions, max_tokens: int | None, form: Form
) -> dict[str, Any]:
    """All of a request but its prompt.

    Args:
        server: what it goes to.
        options: how to choose tokens; what the server cannot do is left out.
        max_tokens: most tokens to generate, None to fill the server's context.
        form: of the prompt.
    """
    body: dict[str, Any] = {
        "model": server.model,
        "stream": True,
        "temperature": options.temperature,
        "top_p": options.top_p,
    }
    if server.kind != LLAMA_CPP_PYTHON:
        body["stream_options"] = {"include_usage": True}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    elif form is not Form.CHAT and server.kind not in (OLLAMA, LM_STUDIO, LLAMA_SERVER):
        body["max_tokens"] = None  # left out it would be 16
    if options.stop:
        n = _MOST_STOPS if server.kind == OTHER else len(options.stop)
        body["stop"] = list(options.stop)[:n]
    if options.seed is not None:
        body["seed"] = options.seed
    elif server.kind == LLAMA_CPP_PYTHON:  # which else takes the same one each time
        body["seed"] = random.randrange(1 << 31)  # noqa: S311
    more = _schema(server, options, form) | _pattern(server, options)
    more |= _logprobs(server, options, form)
    return body | _samplers(server, options) | more


def _samplers(server: Server, options: SamplingOptions) -> dict[str, Any]:
    penalty = options.repeat_penalty if options.repeat_last_n else 1.0
    if server.kind == VLLM:
        # All are stated: the model's own generation_config would fill the gaps. The penalty has no
        # window there and counts the whole text, prompt included.
        top_k = options.top_k or -1
        return {"top_k": top_k, "min_p": options.min_p, "repetition_penalty": penalty}
    values = {name: getattr(options, name) for name in _SAMPLERS.get(server.kind, ())}
    if "repeat_penalty" in values:
        values["repeat_penalty"] = penalty
    return values


def _pattern(server: Server, options: SamplingOptions) -> dict[str, Any]:
    if options.pattern is None:
        return {}
    if server.kind != VLLM:
        raise SettingsError("of the servers only vLLM's can hold an answer to a pattern")
    return {"structured_outputs": {"regex": options.pattern}}


def _schema(server: Server, options: SamplingOptions, form: Form) -> dict[str, Any]:
    if options.json_schema is None:
        return {}
    try:
        schema = json.loads(options.json_schema)
    except ValueError as error:
        raise SettingsError(f"the JSON schema is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise SettingsError("a JSON schema must be an object")
    if server.kind == VLLM:
        # Its backend guidance writes JSON in this layout then; others do not know the field.
        return {"structured_outputs": {"json": schema | {"x-guidance": LAYOUT}}}
    if server.kind == LLAMA_SERVER:
        return {"json_schema": schema}
    if server.kind == LLAMA_CPP_PYTHON and form is not Form.CHAT:
        return {"grammar": _grammar(options.json_schema)}
    if server.kind == LLAMA_CPP_PYTHON:
        return {"response_format": {"type": "json_object", "schema": schema}}
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _grammar(schema: str) -> str:
    try:
        from llama_cpp.llama_grammar import json_schema_to_gbnf
    except ModuleNotFoundError as error:
        raise MissingExtraError("llama-cpp-python", "llamacpp") from error
    try:
        return str(json_schema_to_gbnf(schema))
    except (ValueError, KeyError, TypeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(f"this JSON schema cannot be made a grammar: {error}") from error


def _logprobs(server: Server, options: SamplingOptions, form: Form) -> dict[str, Any]:
    # Token IDs tell exactly what a token is; texts of single tokens may be parts of characters.
    with_ids = server.kind == VLLM and form is Form.IDS
    fields: dict[str, Any] = {"return_token_ids": True} if with_ids else {}
    if not options.logprobs:
        return fields
    if with_ids:
        fields["return_tokens_as_token_ids"] = True
    if form is Form.CHAT:
        return fields | {"logprobs": True, "top_logprobs": options.top_logprobs}
    at_least = 1 if server.kind == LLAMA_SERVER else 0
    return fields | {"logprobs": max(at_least, options.top_logprobs)}


async def takes_ids(http: Connection, server: Server, ids: Sequence[int]) -> bool:
    """Whether the server takes token IDs as such: it counts as many as are sent.

    Raises:
        ServerError: the server cannot be reached, or refuses for another reason.
    """
    body = {"model": server.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0}
    try:
        answer = await http.ask("POST", "/v1/completions", body)
    except Failure as failure:
        if failure.status in (400, 404, 405, 415, 422, 500, 501):
            return False
        raise failure.error from failure
    return bool(_field(_field(answer, "usage"), "prompt_tokens") == len(ids))


async def text_of(http: Connection, server: Server, ids: Sequence[int]) -> str | None:
    """The text of token IDs in the server's own vocabulary; None when it does not tell."""
    if server.kind not in (VLLM, LLAMA_SERVER):
        return None
    body = {"model": server.model, "tokens": list(ids)}
    try:
        answer = await http.ask("POST", "/detokenize", body)
    except Failure as failure:
        if failure.status in _NO_LIST:
            return None
        raise failure.error from failure
    text = _field(answer, "prompt") if server.kind == VLLM else _field(answer, "content")
    return text if isinstance(text, str) else None
