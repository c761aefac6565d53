"""Conversations that go on: which earlier turns go along, and follow-ups as full questions."""

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from mixtral_rag.chat import ChatChineseMixtral
from mixtral_rag.language import language_of
from mixtral_rag.prompts import FULL_QUESTION, SUMMARY_OF_TURNS
from mixtral_rag.types import Message, Role

_TYPES: dict[Role, type[BaseMessage]] = {
    "system": SystemMessage,
    "user": HumanMessage,
    "assistant": AIMessage,
}
_LONGEST_QUESTION = 400  # characters; a longer one is no question any more
_MOST_TOKENS = 96
_SEAM = 8  # tokens that texts may take more together than apart
_SUMMARY_TOKENS = 256


def to_langchain(messages: Sequence[Message]) -> list[BaseMessage]:
    """Plain turns as LangChain's messages."""
    return [_TYPES[m.role](content=m.content) for m in messages]


def n_tokens(chat: ChatChineseMixtral, messages: Sequence[Message]) -> int:
    """Tokens of a conversation as it is really sent."""
    return chat.get_num_tokens_from_messages(to_langchain(messages))


def recent_turns(
    chat: ChatChineseMixtral, history: Sequence[Message], budget: int
) -> list[Message]:
    """The latest turns, question and answer together, that take at most `budget` tokens."""
    turns = list(history)
    while turns and n_tokens(chat, [*turns, Message("user", "")]) > budget:
        del turns[:2]
    return turns


def condensed(chat: ChatChineseMixtral, history: Sequence[Message], budget: int) -> list[Message]:
    """The latest turns as they are, after the model's summary of those there is no room for."""
    recent = recent_turns(chat, history, max(1, budget - _SUMMARY_TOKENS - 32))
    older = list(history)[: len(history) - len(recent)]
    if not older:
        return recent
    language = language_of(older[0].content)
    older = recent_turns(chat, older, chat.n_ctx_used - _SUMMARY_TOKENS - 128)
    asked = [*older, Message("user", SUMMARY_OF_TURNS[language])]
    summary = chat.invoke(to_langchain(asked), max_tokens=_SUMMARY_TOKENS, temperature=0.0)
    text = str(summary.content).strip()
    turns = [Message("user", SUMMARY_OF_TURNS[language]), Message("assistant", text), *recent]
    return turns if text else recent


def full_question(
    chat: ChatChineseMixtral,
    question: str,
    history: Sequence[Message],
    sent: Sequence[Message] = (),
    apart: Sequence[str] = (),
) -> str:
    """A follow-up as the model writes it so that it can be understood by itself, for searching.

    What comes back is used only if it looks like one question; else the follow-up itself is.

    Args:
        chat: the model.
        question: the follow-up.
        history: the turns before it.
        sent: the same as the model was sent them, which it need not read again.
        apart: the texts in `sent` that were read each on its own.
    """
    language = language_of(question)
    wanted = Message("user", FULL_QUESTION[language].format(question=question))
    room = chat.n_ctx_used - _MOST_TOKENS
    asked = [*sent, wanted]
    if not sent or n_tokens(chat, asked) > room:
        fixed = n_tokens(chat, [wanted])
        turns = recent_turns(chat, history[-6:], max(1, room - fixed - _SEAM))
        if not turns or fixed > room:
            return question
        asked = [*turns, wanted]
    answer = chat.invoke(to_langchain(asked), max_tokens=_MOST_TOKENS, temperature=0.0, apart=apart)
    lines = [line.strip() for line in str(answer.content).splitlines() if line.strip()]
    if not lines or answer.response_metadata.get("finish_reason") != "stop":
        return question
    is_answer = question.endswith(("?", "？")) and not lines[0].endswith(("?", "？"))
    return question if is_answer or len(lines[0]) > _LONGEST_QUESTION else lines[0]
