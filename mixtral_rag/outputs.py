"""What an engine gives, in the forms LangChain's results have (those of OpenAI's API)."""

import json
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk

from mixtral_rag.call_reader import CallPart
from mixtral_rag.types import Piece, TokenLogprob, Usage

_LEAST = -9999.0  # as OpenAI's API writes minus infinity, which JSON has no word for


def token_usage(usage: Usage) -> dict[str, int]:
    """Counts of tokens under OpenAI's names."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def usage_metadata(usage: Usage) -> UsageMetadata:
    """Counts of tokens under LangChain's names."""
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def logprobs_info(logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Log-probabilities as in OpenAI's API; empty when there are none."""
    content = [
        _one(token) | {"top_logprobs": [_one(other) for other in token.top]} for token in logprobs
    ]
    return {"logprobs": {"content": content}} if content else {}


def _one(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "bytes": list(token.data), "logprob": max(token.logprob, _LEAST)}


def ending(piece: Piece, model_name: str) -> dict[str, Any]:
    """What the last piece says about an answer."""
    return {"finish_reason": piece.finish_reason, "model_name": model_name}


def message_chunks(
    parts: Iterable[Piece | CallPart], model_name: str
) -> Iterator[ChatGenerationChunk]:
    """An answer as chunks of a message; the last holds usage and metadata."""
    for part in parts:
        if isinstance(part, CallPart):
            call = tool_call_chunk(
                name=part.name,
                args=part.arguments,
                id=None if part.name is None else f"call_{secrets.token_hex(12)}",
                index=part.index,
            )
            message = AIMessageChunk(content="", tool_call_chunks=[call])
            yield ChatGenerationChunk(message=message)
        else:
            yield _text_chunk(part, model_name)


def _text_chunk(piece: Piece, model_name: str) -> ChatGenerationChunk:
    info = logprobs_info(piece.logprobs)
    message = AIMessageChunk(content=piece.text)
    if piece.usage is not None:
        message = AIMessageChunk(
            content=piece.text,
            usage_metadata=usage_metadata(piece.usage),
            response_metadata=ending(piece, model_name) | {"model_provider": "mixtral_rag"},
            chunk_position="last",
        )
    return ChatGenerationChunk(message=message, generation_info=info or None)


def joined(chunks: list[ChatGenerationChunk]) -> ChatGeneration:
    """The chunks of an answer as one message; calls that were cut off are told apart."""
    last = chunks[-1].message
    assert isinstance(last, AIMessageChunk)
    names: dict[int, tuple[str, str]] = {}
    arguments: dict[int, str] = {}
    for message in (c.message for c in chunks):
        for part in message.tool_call_chunks if isinstance(message, AIMessageChunk) else ():
            index = part["index"] or 0
            if part["name"] is not None:
                names[index] = (part["name"], part["id"] or "")
            arguments[index] = arguments.get(index, "") + (part["args"] or "")
    calls, cut = [], []
    for index, (name, call_id) in names.items():
        try:
            calls.append(tool_call(name=name, args=json.loads(arguments[index]), id=call_id))
        except ValueError:
            error = "the answer was cut off inside this call"
            cut.append(invalid_tool_call(name=name, args=arguments[index], id=call_id, error=error))
    infos = [c.generation_info or {} for c in chunks]
    tokens = [t for info in infos for t in info.get("logprobs", {}).get("content", ())]
    whole = AIMessage(
        content="".join(c.text for c in chunks),
        tool_calls=calls,
        invalid_tool_calls=cut,
        usage_metadata=last.usage_metadata,
        response_metadata=last.response_metadata
        | ({"logprobs": {"content": tokens}} if tokens else {}),
    )
    return ChatGeneration(message=whole)
