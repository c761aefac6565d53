"""Answers from documents, as the server tells them."""

from collections.abc import Iterator, Sequence
from typing import Any

from mixtral_rag.errors import PromptError
from mixtral_rag.server.failures import RefusedError
from mixtral_rag.server.schemas import ChatMessage, ChatRequest
from mixtral_rag.server.service import Service, key_of
from mixtral_rag.types import Answer, Message, Passage, Piece

_UNSERVED = ("tools", "response_format", "logprobs")


def plain_history(body: ChatRequest) -> tuple[list[Message], str]:
    """Earlier questions and answers, and the question; system texts are left out.

    Raises:
        RefusedError: a field that means nothing for such an answer.
        PromptError: the last turn is no question, or one is not text.
    """
    for name in _UNSERVED:
        if getattr(body, name):
            raise RefusedError(f"answers from documents do not take {name}", param=name)
    if body.n > 1:
        raise RefusedError("answers from documents come one at a time", param="n")
    turns = [(m.role, text_of(m)) for m in body.messages if m.role in ("user", "assistant")]
    if not turns or turns[-1][0] != "user":
        raise PromptError("the last message must be the user's question")
    history: list[Message] = []
    for role, text in turns[:-1]:  # question and answer in turn; what breaks that is no pair
        wanted = "user" if len(history) % 2 == 0 else "assistant"
        if role == wanted:
            history.append(Message("user" if role == "user" else "assistant", text))
        elif role == "user":
            history[-1] = Message("user", text)
    return history[: len(history) // 2 * 2], turns[-1][1]


def text_of(message: ChatMessage) -> str:
    """The text of a message.

    Raises:
        PromptError: it holds something else.
    """
    if not isinstance(message.content, list):
        return message.content or ""
    if any(part.get("type") != "text" or not isinstance(part.get("text"), str)
           for part in message.content):  # fmt: skip
        raise PromptError("this model reads text only")
    return "".join(part["text"] for part in message.content)


def answer_parts(
    service: Service, collection: str, question: str, history: Sequence[Message]
) -> Iterator[Piece | Answer]:
    """The answer piece by piece, and at last with all that belongs to it."""
    service.chat  # noqa: B018 - raises where there is no model
    stream = service.qa(collection).stream(question, history)
    for text in stream:
        yield Piece(text)
    yield stream.answer


def answer_body(answer: Answer) -> dict[str, Any]:
    """What an answer has beside its text."""
    return {
        "found": answer.found,
        "citations": [
            {"number": c.number, "quote": c.quote} | passage_body(c.passage)
            for c in answer.citations
        ],
        "claims": [
            {"text": c.text, "numbers": list(c.numbers), "problems": list(c.problems)}
            for c in answer.claims
        ],
        "timings": {name: round(seconds, 4) for name, seconds in answer.seconds.items()},
    }


def passage_body(passage: Passage) -> dict[str, Any]:
    """A passage; its document goes by the key of the document endpoints."""
    return {
        "document": key_of(passage.path),
        "name": passage.name,
        "title": passage.title,
        "passage": passage.id,
        "position": passage.position,
        "pages": list(passage.pages) if passage.pages else None,
        "section": list(passage.section),
        "where": passage.where,
        "text": passage.text,
        "score": passage.score,
    }
