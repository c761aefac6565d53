"""A model's own chat template, for GGUF files that are not Mixtral.

The template comes from the model file, so it runs in Jinja's immutable sandbox with bounds on its
length, loops and output. Only the template's own text may name control tokens: look-alikes inside
messages are carried through the template as placeholders and encoded as plain text.
"""

import functools
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from mixtral_rag.errors import TemplateError
from mixtral_rag.tokenizer import Tokenizer
from mixtral_rag.types import Message

_LONGEST_TEMPLATE = 256 * 1024
_LONGEST_OUTPUT = 64 * 1024 * 1024
_MOST_STEPS = 200_000


def render_template(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: str,
) -> list[int]:
    """Token IDs of a conversation rendered by the Jinja `template`.

    Raises:
        TemplateError: the template is too long, fails, refuses the conversation or writes
            without end.
    """
    specials = {t: i for t, i in tokenizer.special_tokens.items() if t.strip()}
    # Longest first, so that a token whose text begins with another's is found whole.
    names = sorted(specials, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
    hidden: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        key = f"\ue000{secrets.token_hex(8)}\ue001"
        hidden[key] = match.group()
        return key

    safe = [{"role": m.role, "content": pattern.sub(hide, m.content)} for m in messages]
    texts = {i: t for t, i in specials.items()}
    bos_text = texts.get(tokenizer.bos_id, "")
    eos_text = texts.get(tokenizer.eos_id, "")
    text = _run(template, safe, bos_text, eos_text)
    inert = [m | {"content": "x" if m["content"] else ""} for m in safe]
    own = Counter(pattern.findall(_run(template, inert, bos_text, eos_text)))
    if Counter(pattern.findall(text)) - own:  # pieces of messages that came together
        raise TemplateError("the messages would make control tokens in the model's chat template")
    has_bos = bool(bos_text) and text.startswith(bos_text)
    ids = [tokenizer.bos_id] if tokenizer.adds_bos and not has_bos else []
    start = 0
    for match in pattern.finditer(text):
        ids += _encode(tokenizer, text[start : match.start()], hidden)
        ids.append(specials[match.group()])
        start = match.end()
    return ids + _encode(tokenizer, text[start:], hidden)


def _encode(tokenizer: Tokenizer, text: str, hidden: dict[str, str]) -> list[int]:
    """IDs of plain text; hidden look-alikes are cut in two, so that none is found whole."""
    cut = "\ue002"
    for key, original in hidden.items():
        text = text.replace(
            key, original[: len(original) // 2] + cut + original[len(original) // 2 :]
        )
    parts = text.split(cut) if hidden else [text]
    return [i for part in parts if part for i in tokenizer.encode(part)]


def _run(template: str, messages: list[dict[str, str]], bos_text: str, eos_text: str) -> str:
    from jinja2 import TemplateError as JinjaError

    if len(template) > _LONGEST_TEMPLATE:
        raise TemplateError(f"the model's chat template has {len(template):,} characters; too long")
    try:
        pieces = _compiled(template).generate(
            messages=messages,
            bos_token=bos_text,
            eos_token=eos_text,
            add_generation_prompt=True,
            range=_bounded_range(),
            strftime_now=datetime.now().strftime,
        )
        return _bounded(pieces)
    except (JinjaError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError,
            MemoryError, RecursionError, SyntaxError) as error:  # fmt: skip
        reason = str(error) or type(error).__name__
        raise TemplateError(f"the model's chat template failed: {reason}") from error


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


def _bounded_range() -> Callable[..., Iterator[int]]:
    """For one rendering: all its loops together."""
    from jinja2.exceptions import SecurityError

    steps = iter(range(_MOST_STEPS))

    def bounded_range(*bounds: int) -> Iterator[int]:
        for i in range(*bounds):
            if next(steps, None) is None:
                raise SecurityError("its loops take too many steps")
            yield i

    return bounded_range


def _environment() -> Any:
    """Jinja's immutable sandbox, less what can take endless time or memory in one step."""
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"**", "*", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = isinstance(left, int | float) and isinstance(right, int | float)
            if operator == "**" or not numbers:
                raise SecurityError(f"{operator} is not allowed here")
            return super().call_binop(context, operator, left, right)

    def refuse(reason: str) -> None:
        raise TemplateError(f"the model's chat template refused the conversation: {reason}")

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = refuse
    for name in ("format", "center", "indent", "wordwrap", "filesizeformat", "pprint"):
        environment.filters.pop(name)
    return environment


def _bounded(pieces: Iterable[str]) -> str:
    parts, length = [], 0
    for piece in pieces:
        parts.append(piece)
        length += len(piece)
        if length > _LONGEST_OUTPUT:
            raise TemplateError("the model's chat template writes without end")
    return "".join(parts)
