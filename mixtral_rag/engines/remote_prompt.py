"""Prompts for a server that makes token IDs itself.

It finds control tokens in what it is sent. Their texts are written with full-width brackets, so
that nothing a user or document says can become one.
"""

import itertools
from collections.abc import Sequence

from mixtral_rag.engines import Prompt
from mixtral_rag.errors import PromptError
from mixtral_rag.prompts import merge_turns, neutralise, render
from mixtral_rag.tokenizer import Tokenizer
from mixtral_rag.types import Message

_FULL_WIDTH = str.maketrans({"<": "＜", ">": "＞", "[": "［", "]": "］", "|": "｜"})


def as_text(text: str, tokenizer: Tokenizer | None) -> str:
    """`text` without control tokens, where they are known, and without lone surrogates."""
    text = text.encode("utf-8", "replace").decode()
    for token in tokenizer.special_tokens if tokenizer is not None else ():
        if token.strip() and token in text:
            text = text.replace(token, token.translate(_FULL_WIDTH))
    return text


def as_chat(
    messages: Sequence[Message], tokenizer: Tokenizer | None, *, is_mixtral: bool
) -> list[dict[str, str]]:
    """A conversation as `/v1/chat/completions` takes it.

    Consecutive messages of one role are joined, since many chat templates refuse them; so does
    Mixtral's a system message, which goes before the first user turn.

    Raises:
        PromptError: it ends with the assistant, whose turn is next.
    """
    if messages[-1].role == "assistant":
        raise PromptError("the last message is the assistant's; end with a user message")
    if is_mixtral:
        turns = [Message(m.role, neutralise(m.content)) for m in merge_turns(messages)]
    else:
        groups = itertools.groupby(messages, key=lambda m: m.role)
        turns = [Message(role, "\n\n".join(m.content for m in group)) for role, group in groups]
    return [{"role": m.role, "content": as_text(m.content, tokenizer)} for m in turns]


def prompt_tokens(prompt: Prompt, tokenizer: Tokenizer, *, is_mixtral: bool) -> int:
    """About how many tokens a server makes of a prompt."""
    if isinstance(prompt, str):
        return len(tokenizer.encode(prompt)) + tokenizer.adds_bos
    messages = [m for m in prompt if isinstance(m, Message)]
    if is_mixtral:
        return len(render(messages, tokenizer))
    return sum(len(tokenizer.encode(m.content)) for m in messages)
