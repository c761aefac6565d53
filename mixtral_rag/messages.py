"""LangChain messages as the plain turns that prompts are rendered from."""

from collections.abc import Sequence

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
)

from mixtral_rag.errors import PromptError
from mixtral_rag.types import Message, Role

_ROLES: dict[str, Role] = {"user": "user", "human": "user", "assistant": "assistant",
                           "ai": "assistant", "system": "system"}  # fmt: skip


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """LangChain messages as plain turns.

    Raises:
        PromptError: a message has another role, or content that is not text.
    """
    return [Message(_role(m), _text(m)) for m in messages]


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


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = []
    for block in message.content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text":
            parts.append(block["text"])
        else:
            raise PromptError(f"this model reads text only, not {block.get('type')!r} content")
    return "".join(parts)
