"""Choices of tools and forms of answers, as LangChain and OpenAI's API state them."""

from collections.abc import AsyncIterator, Iterator, Sequence
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from mixtral_rag.errors import SettingsError
from mixtral_rag.tools import enforced

METHODS = ("json_schema", "function_calling", "json_mode")


def chosen_tools(
    tools: Sequence[dict[str, Any]], choice: Any
) -> tuple[Sequence[dict[str, Any]], bool]:
    """The tools that `choice` leaves, and whether one must be called.

    Args:
        tools: in OpenAI's form.
        choice: `auto` or None, `any`, `required` or True, `none` or False, a tool's name, or
            OpenAI's `{"type": "function", "function": {"name": ...}}`.

    Raises:
        SettingsError: no such tool, or a call is forced and there are no tools.
    """
    if isinstance(choice, dict):
        function = choice.get("function")
        named = function if isinstance(function, dict) else choice
        choice = named.get("name") or choice.get("type") or choice
    if choice in (None, "auto"):
        return tools, False
    if choice in (False, "none"):
        return (), False
    names = [t["function"]["name"] for t in tools]
    if choice in (True, "any", "required"):
        if not tools:
            raise SettingsError(f"tool_choice is {choice!r}, and there are no tools")
        return tools, True
    if choice not in names:
        raise SettingsError(
            f"tool_choice names no tool: {choice!r}; there are: {', '.join(names) or 'none'}"
        )
    return [tools[names.index(choice)]], True


def schema_of(form: Any) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The schemas to tell and to enforce for OpenAI's `response_format`.

    Raises:
        SettingsError: another form.
    """
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "json_object":
        return None, {"type": "object"}
    if kind == "json_schema":
        schema = (form.get("json_schema") or {}).get("schema")
        if isinstance(schema, dict):
            return schema, enforced(schema)
    raise SettingsError(
        "response_format must be {'type': 'json_object'} or {'type': 'json_schema', 'json_schema': "
        f"{{'schema': ...}}}}, not {form!r}"
    )


def structured(
    model: BaseChatModel, schema: dict[str, Any] | type, *, method: str, include_raw: bool
) -> Runnable[Any, Any]:
    """`model` followed by a parser for answers of the form `schema`."""
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    described: dict[str, Any] = {"kwargs": {"method": method}, "schema": schema}
    parser: OutputParserLike[Any]
    if method == "function_calling":
        tool = convert_to_openai_tool(schema)
        name = tool["function"]["name"]
        bound = model.bind_tools(
            [schema],
            tool_choice=name,
            parallel_tool_calls=False,
            ls_structured_output_format=described,
        )
        parser = (
            PydanticToolsParser(tools=[schema], first_tool_only=True)  # type: ignore[list-item]
            if is_class
            else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        )
        return _parsed(bound, parser, include_raw=include_raw)
    if method == "json_schema":
        told = convert_to_json_schema(schema)
        form = {"type": "json_schema", "json_schema": {"name": told["title"], "schema": told}}
    elif method == "json_mode":
        form = {"type": "json_object"}
    else:
        raise SettingsError(f"unknown method {method!r}; choose one of: {', '.join(METHODS)}")
    bound = model.bind(response_format=form, ls_structured_output_format=described)
    parser = (
        PydanticOutputParser(pydantic_object=schema)  # type: ignore[arg-type]
        if is_class
        else JsonOutputParser()
    )
    return _parsed(bound, parser, include_raw=include_raw)


def _parsed(
    bound: Runnable[Any, Any], parser: Runnable[Any, Any], *, include_raw: bool
) -> Runnable[Any, Any]:
    parser = RunnableGenerator(_uncut, _auncut) | parser
    if not include_raw:
        return bound | parser
    parse = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    raw = RunnableMap(raw=RunnablePassthrough())  # after the model, which gets a call's options
    return bound | raw | parse.with_fallbacks([failed], exception_key="parsing_error")


def _uncut(messages: Iterator[AIMessage]) -> Iterator[AIMessage]:
    """The same messages; LangChain's parsers take half a JSON text for a whole one."""
    for message in messages:
        _check_uncut(message)
        yield message


async def _auncut(messages: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
    async for message in messages:
        _check_uncut(message)
        yield message


def _check_uncut(message: AIMessage) -> None:
    reason = message.response_metadata.get("finish_reason")
    if reason in ("length", "cancelled"):
        how = "max_tokens ended it; raise it" if reason == "length" else "it was cancelled"
        raise OutputParserException(
            f"the answer is cut off, so it does not have the form asked for: {how}",
            llm_output=message.text,
        )
