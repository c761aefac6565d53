"""One answer of the chat model: text, calls of tools, or JSON under a schema.

Calls are made in two steps on any engine. The model writes freely until it opens a list of calls
(or is made to open one); from there a second generation, which continues the same text, is held to
the JSON schema of calls.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixtral_rag.call_reader import CallPart, CallReader
from mixtral_rag.engines import Cancellation, Prompt
from mixtral_rag.engines.text import TextStream
from mixtral_rag.tools import CALL, call_schema, with_schema, with_tools
from mixtral_rag.types import Message, Piece, SamplingOptions, Usage

if TYPE_CHECKING:
    from mixtral_rag.model import MixtralModel


@dataclass(frozen=True, slots=True)
class Request:
    """What the chat model was asked.

    Args:
        messages: the conversation as plain turns.
        options: how to choose tokens.
        tools: those the model may call, in OpenAI's form.
        forced: whether it must call one.
        parallel: whether one answer may hold several calls.
        told_schema: a JSON schema the answer must have, to be told in the prompt; that of
            `options` is only enforced.
        apart: texts that stand in the conversation one after another, of which each may be
            computed on its own; see `engines.PassagePrompt`.
    """

    messages: list[Message]
    options: SamplingOptions
    tools: Sequence[dict[str, Any]] = ()
    forced: bool = False
    parallel: bool = False
    told_schema: dict[str, Any] | None = None
    apart: Sequence[str] = ()

    @property
    def told(self) -> list[Message]:
        """The conversation with tools and schema in its system text."""
        messages = self.messages
        if self.tools:
            messages = with_tools(messages, self.tools)
        if self.told_schema is not None:
            messages = with_schema(messages, self.told_schema)
        return messages


def reply(
    model: "MixtralModel", request: Request, cancel: Cancellation, *, whole: bool = False
) -> Iterator[Piece | CallPart]:
    """The answer piece by piece; the last piece carries finish reason and usage."""
    if not request.tools:
        prompt = model.prompt(request.told, apart=request.apart)
        yield from model.pieces(prompt, request.options, cancel=cancel, whole=whole)
    elif request.forced:
        yield from _calls(model, request, "", None, cancel)
    else:
        yield from _free(model, request, cancel)


def _free(
    model: "MixtralModel", request: Request, cancel: Cancellation
) -> Iterator[Piece | CallPart]:
    """Text, and calls if the model opens a list of them."""
    watch = CallWatch([t["function"]["name"] for t in request.tools])
    enough, text, usage = Cancellation(), "", None
    options = request.options
    if options.json_schema is not None:  # calls are JSON of another form, and must be possible
        answer = json.loads(options.json_schema)
        schema = call_schema(request.tools, parallel=request.parallel, or_answer=answer)
        options = dataclasses.replace(options, json_schema=json.dumps(schema, ensure_ascii=False))
    with cancel.calling(enough.cancel):
        prompt = model.prompt(request.told)
        for piece in model.pieces(prompt, options, cancel=enough):
            shown = watch.push(piece.text)
            if piece.usage is not None:
                usage = piece.usage
                shown += watch.finish()
            if watch.found:
                enough.cancel()
            elif usage is not None:
                yield dataclasses.replace(piece, text=shown)
                return
            text += shown
            if shown or piece.logprobs:
                yield Piece(shown, logprobs=piece.logprobs)
    if cancel.cancelled:
        yield Piece("", "cancelled", usage)
        return
    yield from _calls(model, request, text, usage, cancel)


def _calls(
    model: "MixtralModel", request: Request, text: str, before: Usage | None, cancel: Cancellation
) -> Iterator[Piece | CallPart]:
    """A list of calls, after `text` that the model has written already."""
    schema = call_schema(request.tools, parallel=request.parallel)
    prompt: Prompt = request.told
    n_told = None
    if not model.takes_messages:
        begun = [*request.told, Message("assistant", text + CALL)]
        n_told = len(model.render_messages(request.told))
        prompt = model.render_messages(begun, continue_final=True)
    n_written = before.completion_tokens if before else 0
    if n_told is not None:
        n_written = max(n_written, len(prompt) - n_told)
    left = request.options.max_tokens
    if left is not None:
        left -= n_written
    if left is not None and left < 1:
        yield Piece("", "length", before or Usage(n_told or 0, 0))
        return
    # No repeat penalty: it would push away names and values that stand in the conversation.
    options = dataclasses.replace(
        request.options,
        json_schema=json.dumps(schema, ensure_ascii=False),
        pattern=None,
        stop=(),
        repeat_penalty=1.0,
        max_tokens=left,
    )
    reader = CallReader()
    for piece in model.pieces(prompt, options, cancel=cancel, is_turn=False):
        yield from reader.push(piece.text)
        if piece.usage is not None:
            yield from reader.finish()
            finish = "tool_calls" if piece.finish_reason == "stop" else piece.finish_reason
            n_prompt = piece.usage.prompt_tokens if n_told is None else n_told
            usage = Usage(
                n_prompt,
                n_written + piece.usage.completion_tokens,
                min(n_prompt, (before or piece.usage).cached_tokens),
            )
            yield Piece("", finish, usage, piece.logprobs)
        elif piece.logprobs:
            yield Piece("", logprobs=piece.logprobs)


class CallWatch:
    """Lets text through until the model opens a list of calls.

    A list is opened by `<tool_call>`, or by an answer that begins with the JSON of a call, up to
    its arguments, which models write that forget the mark.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._marked = TextStream((CALL,))
        self._start: str | None = ""
        self._openings = [
            f'{fence}{bracket}{{"name":{json.dumps(name, ensure_ascii=False)},"{key}":'
            for fence in ("", "```", "```json")
            for bracket in ("", "[")
            for name in names
            for key in ("arguments", "parameters")
        ]
        self.found = False

    def push(self, text: str) -> str:
        """The text that may be shown."""
        if self.found:
            return ""
        if self._start is not None:
            self._start += text
            bare = "".join(self._start.split())
            if any(bare.startswith(o) for o in self._openings):
                self.found = True
                return ""
            if any(o.startswith(bare) for o in self._openings):
                return ""
            text, self._start = self._start, None
        shown = self._marked.push(text.encode())
        self.found = self._marked.stopped
        return shown

    def finish(self) -> str:
        """What was held back when the answer ended without a call."""
        if self.found:
            return ""
        held_back, self._start = self._start or "", None
        return self._marked.push(held_back.encode()) + self._marked.finish()
