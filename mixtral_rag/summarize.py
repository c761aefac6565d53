"""Summaries of documents longer than the window: part by part, then of the parts' summaries.

Map and reduce: each part is summarised by itself, neighbouring summaries are joined and summarised
again until one is left. A document that fits is summarised in one step.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixtral_rag.chat import ChatChineseMixtral
from mixtral_rag.errors import ContextError, NoDocumentsError
from mixtral_rag.history import n_tokens, to_langchain
from mixtral_rag.ingest.reading import with_headings
from mixtral_rag.ingest.split import Window
from mixtral_rag.ingest.worker import Worker
from mixtral_rag.language import language_of, sentences
from mixtral_rag.prompts import SUMMARY, SUMMARY_OF_PART, SUMMARY_OF_SUMMARIES
from mixtral_rag.types import Language, Message

_LEAST_ROOM = 64  # tokens of text a prompt must have room for


@dataclass(frozen=True, slots=True)
class SummaryProgress:
    """How far a summary is: parts done and known so far; the last step has one."""

    level: int
    done: int
    total: int


def summarize(
    chat: ChatChineseMixtral,
    texts: Sequence[str],
    *,
    language: Language | None = None,
    context_tokens: int | None = None,
    on_progress: Callable[[SummaryProgress], None] = lambda _: None,
) -> str:
    """A summary of one document, however long.

    Args:
        chat: the model.
        texts: the document's passages in order.
        language: of the summary; None takes the document's.
        context_tokens: most tokens of a prompt; None takes what the window leaves.
        on_progress: told after every part.

    Raises:
        NoDocumentsError: there is no text.
        ContextError: the window is too small for any text.
    """
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise NoDocumentsError("there is no text to summarise")
    language = language or language_of("".join(texts)[:20_000])
    summarizing = _Summarizing(chat, language, context_tokens)
    level = 0
    while len(parts := list(summarizing.parts(texts, level))) > 1:
        made: list[str] = []
        for number, part in enumerate(parts):
            on_progress(SummaryProgress(level, number, len(parts)))
            made.append(summarizing.ask(part, _prompt(level, is_last=False), is_part=True))
        texts, level = made, level + 1
    on_progress(SummaryProgress(level, 0, 1))
    return summarizing.ask(parts[0], _prompt(level, is_last=True), is_part=False)


def read_texts(path: Path) -> list[str]:
    """The text of a document for `summarize`, under its headings; read in a process of its own.

    Raises:
        DocumentError: it cannot be read.
        NoDocumentsError: there is no such file, or it is a folder.
    """
    if path.is_dir():
        raise NoDocumentsError(f"{path} is a folder; name one document in it")
    if not path.is_file():
        raise NoDocumentsError(f"there is no file {path}")
    with Worker() as worker:
        blocks = worker.read(path).blocks
    texts: list[str] = []
    for section, group in itertools.groupby(blocks, key=lambda block: block.section):
        text = "\n".join(block.text for block in group)
        texts.append(with_headings("", Window(text, None, section)))
    return texts


def _prompt(level: int, *, is_last: bool) -> dict[Language, str]:
    if level:
        return SUMMARY_OF_SUMMARIES
    return SUMMARY if is_last else SUMMARY_OF_PART


class _Summarizing:
    def __init__(
        self, chat: ChatChineseMixtral, language: Language, context_tokens: int | None
    ) -> None:
        self._chat, self._language = chat, language
        self._reserve = chat.max_tokens or chat.n_ctx_used // 4
        budget = chat.n_ctx_used - self._reserve
        self._budget = min(budget, context_tokens or budget)
        longest = max(SUMMARY_OF_PART, SUMMARY_OF_SUMMARIES, key=lambda p: len(p[language]))
        self._room = self._budget - self._tokens(self._message("", longest))
        if self._room < _LEAST_ROOM:
            raise ContextError(
                prompt_tokens=self._budget - self._room + _LEAST_ROOM,
                max_tokens=self._reserve,
                n_ctx=chat.n_ctx_used,
            )

    def _message(self, text: str, prompt: dict[Language, str]) -> list[Message]:
        return [Message("user", f"{prompt[self._language]}\n\n{text}")]

    def _tokens(self, messages: list[Message]) -> int:
        return n_tokens(self._chat, messages)

    def parts(self, texts: Sequence[str], level: int) -> Iterator[str]:
        """The texts joined, as few and as equal as the room allows."""
        pieces = [p for text in texts for p in self._pieces(text)]
        sizes = [len(self._chat.count_tokens(piece)) + 4 for piece in pieces]
        n_parts = max(1, -(-sum(sizes) // self._room))
        enough = sum(sizes) / n_parts
        part: list[str] = []
        total = 0
        for piece, size in zip(pieces, sizes, strict=True):
            if part and (total + size > self._room or total >= enough):
                yield "\n\n".join(part)
                part, total = [], 0
            part.append(piece)
            total += size
        yield "\n\n".join(part)

    def _pieces(self, text: str) -> Iterator[str]:
        """A text that is too long for one prompt, cut at sentences or where it must be."""
        if len(self._chat.count_tokens(text)) + 4 <= self._room:
            yield text
            return
        cuts = sentences(text)
        middle = len(cuts) // 2
        halves = ("".join(cuts[:middle]), "".join(cuts[middle:]))
        if len(cuts) == 1:
            halves = (text[: len(text) // 2], text[len(text) // 2 :])
        for half in halves:
            yield from self._pieces(half)

    def ask(self, text: str, prompt: dict[Language, str], *, is_part: bool) -> str:
        """The model's summary.

        Of a part it is kept to half a prompt: two must fit into one, or joining them would
        never come to an end.
        """
        half = self._room // 2 - 4
        most = min(self._reserve, half) if is_part else self._reserve
        asked = to_langchain(self._message(text, prompt))
        said = str(self._chat.invoke(asked, max_tokens=most).content).strip()
        while is_part and (size := len(self._chat.count_tokens(said))) > half:
            said = said[: min(len(said) - 1, len(said) * half // size)]
        return said
