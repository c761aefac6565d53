"""LangChain messages as the plain turns that prompts are rendered from."""

import itertools
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from mixtral_rag.errors import PromptError
from mixtral_rag.tools import Call, without_marks, written_calls, written_result
from mixtral_rag.types import Message, Role

_ROLES: dict[str, Role] = {"user": "user", "human": "user", "assistant": "assistant",
                           "ai": "assistant", "system": "system"}  # fmt: skip
# Blocks that say again what `tool_calls` holds, or what the model only thought.
_UNREAD = frozenset({"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call",
                     "reasoning", "thinking"})  # fmt: skip


def to_messages(messages: Sequence[BaseMessage], *, keep_marks: bool = False) -> list[Message]:
    """LangChain messages as plain turns; tool calls and results are written out as text.

    Marks of calls and results in any other text are made harmless, unless `keep_marks` is set.

    Raises:
        PromptError: a message has another role, or content that is not text.
    """
    names = {
        call["id"]: call["name"]
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
    }
    return [_turn(message, names, keep_marks=keep_marks) for message in messages]


def _turn(
    message: BaseMessage, names: dict[str | None, str], *, keep_marks: bool = False
) -> Message:
    if isinstance(message, ToolMessage):
        name = message.name or names.get(message.tool_call_id)
        is_error = message.status == "error"
        text = _text(message, keep_marks=True)
        return Message("user", written_result(text, name=name, is_error=is_error))
    text = _text(message, keep_marks=keep_marks)
    if isinstance(message, AIMessage) and message.tool_calls:
        calls = [Call(call["name"], call["args"]) for call in message.tool_calls]
        return Message("assistant", written_calls(text, calls))
    return Message(_role(message), text)


def _role(message: BaseMessage) -> Role:
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, ChatMessage) and message.role.lower() in _ROLES:
        return _ROLES[message.role.lower()]
    raise PromptError(f"a {message.type} message cannot be given to this model")


def _text(message: BaseMessage, *, keep_marks: bool) -> str:
    content = message.content
    parts = [content] if isinstance(content, str) else content
    texts = []
    for is_result, group in itertools.groupby(parts, key=lambda b: _is_result(message, b)):
        if is_result:
            texts += [_result(message, block) for block in group if isinstance(block, dict)]
        else:  # joined first: a mark may be spread over blocks
            text = "".join(_block_text(message, block) for block in group)
            texts.append(text if keep_marks else without_marks(text))
    return "".join(texts)


def _is_result(message: BaseMessage, block: str | dict[Any, Any]) -> bool:
    """Whether a block is the result of a tool, as Anthropic writes them."""
    is_block = isinstance(message, HumanMessage) and isinstance(block, dict)
    return is_block and block.get("type") == "tool_result"  # type: ignore[union-attr]


def _result(message: BaseMessage, block: dict[Any, Any]) -> str:
    content = block.get("content", "")
    parts = [content] if isinstance(content, str) else content
    text = "".join(_block_text(message, inner) for inner in parts)
    return written_result(text, name=None, is_error=block.get("is_error") is True)


def _block_text(message: BaseMessage, block: str | dict[Any, Any]) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type")
    if kind in ("text", "text-plain") and isinstance(block.get("text"), str):
        return str(block["text"])
    if isinstance(message, AIMessage) and kind in _UNREAD:
        return ""
    raise PromptError(f"this model reads text only, not {kind!r} content")
