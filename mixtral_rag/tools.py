"""Tools for a model that has no tokens for them: how they are told, called and answered, as text.

Mixtral 8x7B was taught no format for tools, so this is one that many models have seen (Hermes and
SmolLM2 use it): tools as JSON in the system text, calls as a JSON list between `<tool_call>` and
`</tool_call>`, results between `<tool_response>` and `</tool_response>`. What the model writes
after `<tool_call>` is held to `call_schema`, so a call always names a tool and fits its parameters.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mixtral_rag.language import language_of
from mixtral_rag.types import Language, Message

CALL, CALL_END = "<tool_call>", "</tool_call>"
RESULT, RESULT_END = "<tool_response>", "</tool_response>"
_MARKS = re.compile("<(/?tool_(?:call|response))>")
_MOST_CALLS = 16
_LARGEST_INTEGER = 2**53 - 1
_BOUNDS = {"enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_LITERAL = {"enum", "const", "default", "examples"}

_TOOLS: dict[Language, str] = {
    "en": (
        "You can use these tools:\n{tools}\n\n"
        "To use tools, answer only with a list of calls in this form:\n"
        f'{CALL}[{{{{"name": "tool name", "arguments": {{{{...}}}}}}}}]{CALL_END}\n'
        f"Their results come between {RESULT} and {RESULT_END}; then answer the user. "
        "When no tool is needed, answer at once."
    ),
    "zh": (
        "你可以使用下列工具：\n{tools}\n\n"
        "需要使用工具时，只按下面的格式回复调用列表：\n"
        f'{CALL}[{{{{"name": "工具名称", "arguments": {{{{...}}}}}}}}]{CALL_END}\n'
        f"结果会写在 {RESULT} 和 {RESULT_END} 之间，之后再回答用户。不需要工具时直接回答。"
    ),
}
_JSON: dict[Language, str] = {
    "en": "Answer with JSON that conforms to this schema, and with nothing else:\n{schema}",
    "zh": "只回复符合下面这个模式（JSON Schema）的 JSON，不要写其他内容：\n{schema}",
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool, as it stands in a conversation."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CallPart:
    """A part of a call as it is generated: its name first, then its arguments piece by piece.

    Args:
        index: which call of the answer, from 0.
        name: only in the first part.
        arguments: JSON text, to be joined.
    """

    index: int
    name: str | None
    arguments: str


def with_tools(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """The conversation with `tools` (OpenAI's form) told in its system text."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    text = _TOOLS[_language(messages)].format(tools="\n".join(lines))
    return _with_system(messages, text)


def with_schema(messages: Sequence[Message], schema: dict[str, Any]) -> list[Message]:
    """The conversation with the JSON schema of the answer told in its system text."""
    text = json.dumps(schema, ensure_ascii=False)
    return _with_system(messages, _JSON[_language(messages)].format(schema=text))


def _language(messages: Sequence[Message]) -> Language:
    """That of the first user turn, so that it stays the same while a conversation grows."""
    return language_of(next((m.content for m in messages if m.role == "user"), ""))


def _with_system(messages: Sequence[Message], text: str) -> list[Message]:
    messages = list(messages)
    if messages and messages[0].role == "system":
        return [Message("system", f"{messages[0].content}\n\n{text}"), *messages[1:]]
    return [Message("system", text), *messages]


def written_calls(text: str, calls: Sequence[Call]) -> str:
    """An assistant turn with calls, as the model itself writes it."""
    listed = [{"name": c.name, "arguments": c.arguments} for c in calls]
    return f"{text}{CALL}{json.dumps(listed, ensure_ascii=False)}{CALL_END}"


def written_result(content: str, *, name: str | None, is_error: bool) -> str:
    """What a tool returned, as a part of a user turn; marks inside it are made harmless."""
    safe = _MARKS.sub(r"＜\1＞", content)
    said = ({"name": name} if name else {}) | ({"status": "error"} if is_error else {})
    head = json.dumps(said, ensure_ascii=False) + "\n" if said else ""
    return f"{RESULT}\n{head}{safe}\n{RESULT_END}"


def call_schema(
    tools: Sequence[dict[str, Any]], *, names: Sequence[str], parallel: bool
) -> dict[str, Any]:
    """The JSON schema of a list of calls of the tools called `names`.

    Args:
        tools: in OpenAI's form.
        names: those that may be called.
        parallel: whether there may be more than one call.
    """
    definitions: dict[str, Any] = {}
    calls = []
    for tool in (t["function"] for t in tools if t["function"]["name"] in names):
        parameters = tool.get("parameters") or {"type": "object", "properties": {}}
        parameters = _hoisted(parameters, tool["name"], definitions)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool["name"]}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    items = calls[0] if len(calls) == 1 else {"anyOf": calls}
    most = _MOST_CALLS if parallel else 1
    schema = {"type": "array", "items": items, "minItems": 1, "maxItems": most}
    return schema | ({"$defs": definitions} if definitions else {})


def _hoisted(schema: dict[str, Any], name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """`schema` with its definitions moved to the root of the whole, under names of its own."""
    prefixes = {key: f"{name}.{key}" for key in schema.get("$defs", {})}

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(v) for v in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref")
        if isinstance(reference, str) and reference.removeprefix("#/$defs/") in prefixes:
            reference = f"#/$defs/{prefixes[reference.removeprefix('#/$defs/')]}"
            return {k: moved(v) for k, v in value.items()} | {"$ref": reference}
        return {k: moved(v) for k, v in value.items()}

    definitions |= {prefixes[k]: moved(v) for k, v in schema.get("$defs", {}).items()}
    return enforced(moved({k: v for k, v in schema.items() if k != "$defs"}))


def enforced(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` as it is enforced: what it leaves open without meaning to is closed.

    Objects with stated properties have no others, unless it says they may (JSON schema allows any
    by default; an object without stated properties is a mapping and stays open). Integers without
    bounds are those that every JSON reader keeps exactly, below 2^53: a model could write digits
    without end.
    """
    result = {k: v if k in _LITERAL else _enforced_inside(v) for k, v in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        result.setdefault("additionalProperties", False)
    if schema.get("type") == "integer" and not _BOUNDS & schema.keys():
        result |= {"minimum": -_LARGEST_INTEGER, "maximum": _LARGEST_INTEGER}
    return result


def _enforced_inside(value: Any) -> Any:
    if isinstance(value, list):
        return [_enforced_inside(v) for v in value]
    return enforced(value) if isinstance(value, dict) else value


class CallReader:
    """Reads a list of calls, or one call, from JSON text that comes in pieces."""

    def __init__(self) -> None:
        self._index = -1
        self._depth = 0  # of brackets inside the current call
        self._in_string = self._escaped = False
        self._key: str | None = None
        self._text = ""  # of the key, or of a value that is not passed on as it comes
        self._name: str | None = None
        self._early = ""  # arguments that came before the name

    def push(self, text: str) -> list[CallPart]:
        """The parts of calls that `text` adds."""
        parts = [part for character in text for part in self._take(character)]
        return _merged(parts)

    def _take(self, c: str) -> Iterator[CallPart]:
        if self._depth == 0:
            if c == "{":
                self._index, self._depth = self._index + 1, 1
                self._key, self._text, self._name, self._early = None, "", None, ""
            return
        if self._in_string:
            self._in_string = self._escaped or c != '"'
            self._escaped = c == "\\" and not self._escaped
        elif c == '"':
            self._in_string = True
        elif c.isspace():  # layout means nothing outside of strings
            return
        elif self._key is None and c == ":":
            self._key, self._text = _loaded(self._text), ""
            return
        elif self._depth == 1 and c in ",}":
            yield from self._end_value()
            self._depth -= c == "}"
            return
        else:
            self._depth += (c in "{[") - (c in "}]")
        if self._key != "arguments":
            self._text += c
        elif self._name is None:
            self._early += c
        else:
            yield CallPart(self._index, None, c)

    def _end_value(self) -> Iterator[CallPart]:
        if self._key == "name":
            self._name = _loaded(self._text)
            yield CallPart(self._index, self._name, self._early)
        self._key, self._text = None, ""


def _loaded(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _merged(parts: Sequence[CallPart]) -> list[CallPart]:
    merged: list[CallPart] = []
    for part in parts:
        last = merged[-1] if merged else None
        if last is not None and part.name is None and last.index == part.index:
            merged[-1] = CallPart(last.index, last.name, last.arguments + part.arguments)
        else:
            merged.append(part)
    return merged
