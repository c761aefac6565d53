"""Help and mistakes on the command line, in Chinese where that is the language."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from mixtral_rag.console import plain
from mixtral_rag.translation import language, padded, translated, width_of

# What is wrong with the words of a command line; typer has no public name for it.
_Misused: type[Exception] = typer.BadParameter.__mro__[1]

_NOT_FIRST = "，。；：？！、）」』”’》"  # a line does not begin with these
_NOT_LAST = "（「『“‘《"
_WIDEST_NAME = 30


class Commands(TyperGroup):
    """The commands, with their help and the mistakes in their use in the user's language."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command line, as typer does."""
        if language() == "zh":
            _translate(self)
        return super().main(*args, **extra)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read a command line, as typer does."""
        with _told_in_chinese():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was read, as typer does."""
        with _told_in_chinese():
            return super().invoke(ctx)


def _translate(command: Any) -> None:
    """Translate the help of a command, its parameters and the commands below it, in place."""
    command.context_class = type(
        "ChineseContext", (command.context_class,), {"formatter_class": _Help}
    )
    if command.help:
        command.help = translated(command.help)
        command.short_help = command.help.partition("\n")[0].rstrip("。")
    for parameter in command.params:
        if getattr(parameter, "help", None):
            parameter.help = translated(parameter.help)
    for below in getattr(command, "commands", {}).values():
        _translate(below)


@contextmanager
def _told_in_chinese() -> Iterator[None]:
    try:
        yield
    except _Misused as error:
        if language() == "en" or type(error).__name__ == "NoArgsIsHelpError":
            raise
        context: Any = getattr(error, "ctx", None)
        if context is not None:
            print(context.get_usage(), file=sys.stderr)
            hint = f"Try '{context.command_path} {context.help_option_names[0]}' for help."
            print(translated(hint) + "\n", file=sys.stderr)
        message = error.format_message()  # type: ignore[attr-defined]  # all of them have it
        print(plain(translated(f"Error: {message}")), file=sys.stderr)
        raise typer.Exit(2) from None


class _Help:
    """Writes help as typer's own class does, with the columns that Chinese takes."""

    def __init__(self, width: int | None = None, max_width: int | None = None) -> None:
        import shutil

        columns = shutil.get_terminal_size().columns
        self.width = width or max(min(columns, max_width or 80) - 2, 50)
        self._indent = 0
        self._written: list[str] = []

    def getvalue(self) -> str:
        return "".join(self._written)

    def write(self, text: str) -> None:
        self._written.append(text)

    def write_paragraph(self) -> None:
        if self._written:
            self.write("\n")

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        start = f"{translated('Usage:')} {prog} "
        lines = wrapped(args, max(self.width - width_of(start), 20)) or [""]
        for number, line in enumerate(lines):
            before = start if not number else " " * width_of(start)
            self.write(f"{before}{line}".rstrip() + "\n")

    def write_text(self, text: str) -> None:
        paragraphs = [" ".join(p.split("\n")) for p in text.strip().split("\n\n")]
        blank = " " * self._indent
        told = ("\n".join(blank + line for line in wrapped(p, self.width - self._indent))
                for p in paragraphs)  # fmt: skip
        self.write("\n\n".join(told) + "\n")

    def write_dl(self, rows: Sequence[tuple[str, str]], *_: Any, **__: Any) -> None:
        names = max((width_of(name) for name, _ in rows), default=0)
        column = min(names, _WIDEST_NAME) + 2
        for name, text in rows:
            lines = wrapped(_told(text), max(self.width - column - 2, 10))
            first = f"{' ' * self._indent}{name}"
            if width_of(name) > column - 2:
                self.write(first + "\n")
                first = ""
            for line in lines or [""]:
                self.write((padded(first, column + self._indent) + line).rstrip() + "\n")
                first = ""

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.write_paragraph()
        self.write(f"{' ' * self._indent}{translated(name)}：\n")
        with self.indentation():
            yield

    @contextmanager
    def indentation(self) -> Iterator[None]:
        self._indent += 2
        yield
        self._indent -= 2


def _told(text: str) -> str:
    """Help of an option, where typer may have added what it is by default: `[default: 8]`."""
    help, bracket, extra = text.rpartition("  [")
    if not bracket:
        return translated(text)
    parts = extra.removesuffix("]").split("; ")
    return f"{translated(help)}  [{'；'.join(map(translated, parts))}]"


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns: broken at blanks, and between Chinese characters."""
    lines, line = [], ""
    for piece in _pieces(text):
        if line.strip() and width_of(line) + width_of(piece.rstrip()) > width:
            lines.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
    return [*lines, line.rstrip()] if line.strip() else lines


def _pieces(text: str) -> Iterator[str]:
    """What must stay on one line: words, and Chinese characters with the mark that follows."""
    piece = ""
    for character in text:
        is_wide = width_of(character) == 2
        ended = piece[-1:].isspace() or width_of(piece[-1:]) == 2
        held = character.isspace() or character in _NOT_FIRST or piece[-1:] in _NOT_LAST
        if piece and not held and (ended or is_wide):
            yield piece
            piece = ""
        piece += character
    yield piece
