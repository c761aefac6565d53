"""Tools for a model that has no tokens for them: how they are told, called and answered, as text.

Mixtral 8x7B was taught no format for tools, so this is one that many models have seen (Hermes and
SmolLM2 use it): tools as JSON in the system text, calls as a JSON list between `<tool_call>` and
`</tool_call>`, results between `<tool_response>` and `</tool_response>`. What the model writes
after `<tool_call>` is held to `call_schema`, so a call always names a tool and fits its parameters.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mixtral_rag.language import language_of
from mixtral_rag.types import Language, Message

CALL, CALL_END = "<tool_call>", "</tool_call>"
RESULT, RESULT_END = "<tool_response>", "</tool_response>"
_MARKS = re.compile(r"<(\s*+/?\s*+tool_(?:call|response)\s*+)>", re.IGNORECASE)
_MOST_CALLS = 16
_LARGEST_INTEGER = 2**53 - 1
# Keys of a JSON schema: whose values are no schemas, those that map names to schemas, and those
# that add to what stands beside them.
_LITERAL = {"enum", "const", "default", "examples", "not"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_COMBINED = {"allOf", "anyOf", "oneOf", "$ref", "if", "then", "else"}

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


def with_tools(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """The conversation with `tools` (OpenAI's form) told in its system text."""
    lines = [_written(tool["function"]) for tool in tools]
    text = _TOOLS[_language(messages)].format(tools="\n".join(lines))
    return _with_system(messages, text)


def with_schema(messages: Sequence[Message], schema: dict[str, Any]) -> list[Message]:
    """The conversation with the JSON schema of the answer told in its system text."""
    return _with_system(messages, _JSON[_language(messages)].format(schema=_written(schema)))


def _language(messages: Sequence[Message]) -> Language:
    """That of the first user turn, so that it stays the same while a conversation grows."""
    return language_of(next((m.content for m in messages if m.role == "user"), ""))


def _with_system(messages: Sequence[Message], text: str) -> list[Message]:
    messages = list(messages)
    if messages and messages[0].role == "system":
        return [Message("system", f"{messages[0].content}\n\n{text}"), *messages[1:]]
    return [Message("system", text), *messages]


def without_marks(text: str) -> str:
    """`text` with the marks of calls and results made harmless, as full-width brackets.

    Nothing that a user, a document or a tool says can then pass for a call or a result.
    """
    return _MARKS.sub(r"＜\1＞", text)


def _written(value: Any) -> str:
    """JSON in which marks are escaped, so that it means the same and holds none."""
    return _MARKS.sub(r"\\u003c\1>", json.dumps(value, ensure_ascii=False))


def written_calls(text: str, calls: Sequence[Call]) -> str:
    """An assistant turn with calls, as the model itself writes it."""
    listed = [{"name": c.name, "arguments": c.arguments} for c in calls]
    return f"{text}{CALL}{_written(listed)}{CALL_END}"


def written_result(content: str, *, name: str | None, is_error: bool) -> str:
    """What a tool returned, as a part of a user turn; marks inside it are made harmless."""
    said = ({"name": name} if name else {}) | ({"status": "error"} if is_error else {})
    head = _written(said) + "\n" if said else ""
    return f"{RESULT}\n{head}{without_marks(content)}\n{RESULT_END}"


def call_schema(
    tools: Sequence[dict[str, Any]], *, parallel: bool, or_answer: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON schema of a list of calls.

    Args:
        tools: those that may be called, in OpenAI's form.
        parallel: whether there may be more than one call.
        or_answer: the schema of an answer, which may come instead of calls.
    """
    definitions: dict[str, Any] = {}
    calls = []
    for number, tool in enumerate(t["function"] for t in tools):
        parameters = tool.get("parameters") or {"properties": {}}
        parameters = enforced(parameters | {"type": "object"})
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["name"]},
                    "arguments": _placed(parameters, f"tool{number}", definitions),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    items = calls[0] if len(calls) == 1 else {"anyOf": calls}
    most = _MOST_CALLS if parallel else 1
    schema: dict[str, Any] = {"type": "array", "items": items, "minItems": 1, "maxItems": most}
    if or_answer is not None:
        schema = {"anyOf": [_placed(or_answer, "answer", definitions), schema]}
    return schema | ({"$defs": definitions} if definitions else {})


def _placed(schema: dict[str, Any], name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """`schema` for use inside of another; as a definition called `name` if it refers to itself."""

    def moved(part: dict[str, Any]) -> dict[str, Any]:
        result = _inside(part, moved)
        reference = part.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            result["$ref"] = f"#/$defs/{name}{reference[1:].rstrip('/')}"
        return result

    placed = moved(schema)
    if placed == schema:
        return schema
    definitions[name] = placed
    return {"$ref": f"#/$defs/{name}"}


def enforced(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` as it is enforced: what it leaves open without meaning to is closed.

    Objects with stated properties have no others, unless it says they may (JSON schema allows any
    by default; an object without stated properties is a mapping and stays open). Integers without
    bounds are those that every JSON reader keeps exactly, below 2^53: a model could write digits
    without end. References are written as the URIs they should be.
    """
    combined = _COMBINED & schema.keys()
    adds_up = "properties" in schema or len(combined) > 1 or len(schema.get("allOf", ())) > 1
    # What adds up to one object must not be closed in its parts.
    result = _inside(schema, enforced, skip=combined if adds_up else set())
    if isinstance(schema.get("$ref"), str):
        result["$ref"] = quote(schema["$ref"], safe="#/$~%:?&=+,;@!'()*")
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds or []
    if "object" in kinds and "properties" in schema and not combined:
        result.setdefault("additionalProperties", False)
    if "integer" in kinds and "number" not in kinds and not {"enum", "const"} & schema.keys():
        if "exclusiveMinimum" not in schema:
            result.setdefault("minimum", -_LARGEST_INTEGER)
        if "exclusiveMaximum" not in schema:
            result.setdefault("maximum", _LARGEST_INTEGER)
    return result


def _inside(
    schema: dict[str, Any],
    work: Callable[[dict[str, Any]], dict[str, Any]],
    skip: set[str] | frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """`schema` with `work` done to the schemas directly inside it, but for those under `skip`."""

    def done(key: str, value: Any) -> Any:
        if key in _LITERAL or key in skip:
            return value
        if isinstance(value, dict):
            if key not in _NAMED:
                return work(value)
            return {k: work(v) if isinstance(v, dict) else v for k, v in value.items()}
        if isinstance(value, list):
            return [work(v) if isinstance(v, dict) else v for v in value]
        return value

    return {key: done(key, value) for key, value in schema.items()}
