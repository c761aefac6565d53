"""OCR: pages that are pictures, read by the program tesseract where it is installed."""

import os
import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass

from mixtral_rag.errors import SettingsError
from mixtral_rag.ingest.heartbeat import alive

DPI = 300
LONGEST = 5000  # pixels of the longer edge; an A4 page has 3,508
_SECONDS = 50.0  # a page
_LEAST_CONFIDENCE = 50.0  # mean of a page, percent; pictures without text stay below
_LEAST_WORD = 20.0  # percent
_LITTLE = 4  # characters
_WIDE = r"\u2e80-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef“”‘’…"
_GAP = re.compile(rf"(?<=[{_WIDE}]) +(?=[{_WIDE}])")
_EASTERN = ("chi_", "jpn", "kor")
_LETTERS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_LANGUAGES = re.compile(r"[A-Za-z]\w*(?:/\w+)?(?:\+[A-Za-z]\w*(?:/\w+)?)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Recognised:
    """What OCR made of a picture.

    Args:
        lines: lines of text, none where it is not to be trusted.
        doubtful: whether something like text stands there that could not be read well.
        confidence: how sure tesseract was, percent, the mean of all characters.
    """

    lines: list[str]
    doubtful: bool
    confidence: float = 0.0


def check(languages: str) -> None:
    """See before an ingest that tesseract is installed and knows the languages.

    Args:
        languages: as tesseract names them, such as `chi_sim+eng`.

    Raises:
        SettingsError: what is missing, and what to install.
    """
    if not _LANGUAGES.fullmatch(languages):
        raise SettingsError(
            f"--ocr takes languages as tesseract names them, such as chi_sim+eng, not {languages!r}"
        )
    wanted = languages.split("+")
    program = shutil.which("tesseract")
    if program is None:
        raise SettingsError(f"--ocr needs the program tesseract; {_to_install(wanted)}")
    try:
        listed = subprocess.run(  # noqa: S603 - a program of the user's, found on the path
            [program, "--list-langs"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise SettingsError(f"--ocr: {program} does not run: {error}") from error
    missing = [name for name in wanted if name not in listed.split("\n")[1:]]
    if missing:
        raise SettingsError(f"tesseract does not know {', '.join(missing)}; {_to_install(missing)}")


def _to_install(languages: list[str]) -> str:
    packs = " ".join(f"tesseract-ocr-{name.replace('_', '-').lower()}" for name in languages)
    return (
        f"on Debian or Ubuntu: apt install tesseract-ocr {packs}; "
        "on macOS: brew install tesseract tesseract-lang"
    )


def recognise(width: int, height: int, gray: bytes, languages: str) -> Recognised:
    """Read a picture.

    Of several languages an East Asian one, or else the first, is tried alone: together they make
    English nonsense of some Chinese lines, while its model knows Latin letters too. Where the text
    is not mostly of that kind, all of them are tried together, and what is surer counts.

    Args:
        width: pixels.
        height: pixels.
        gray: grey levels, a byte a pixel, row by row.
        languages: as tesseract names them.

    Raises:
        TimeoutError: it took too long.
        OSError: tesseract cannot be started or fails; the text says why.
    """
    names = languages.split("+")
    first = next((name for name in names if name.startswith(_EASTERN)), names[0])
    alone = _recognised(width, height, gray, first)
    if len(names) == 1 or (first.startswith(_EASTERN) and _is_mostly_eastern(alone)):
        return alone
    alive()
    both = _recognised(width, height, gray, languages)
    return both if both.confidence > alone.confidence else alone


def _is_mostly_eastern(found: Recognised) -> bool:
    text = "".join("".join(found.lines).split())
    return len(_LETTERS.findall(text)) > len(text) / 2


def _recognised(width: int, height: int, gray: bytes, languages: str) -> Recognised:
    command = ["tesseract", "stdin", "stdout", "-l", languages, "--dpi", str(DPI), "--psm", "3"]
    try:
        done = subprocess.run(  # noqa: S603 - languages are checked above; no shell
            [*command, "tsv"],
            input=b"P5 %d %d 255\n" % (width, height) + gray,
            capture_output=True,
            timeout=_SECONDS,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"OCR took more than {_SECONDS:g} seconds") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().split("\n")[-1]
        raise OSError(f"tesseract failed: {said or f'exit code {done.returncode}'}")
    return from_tsv(done.stdout.decode("utf-8", "replace"))


def from_tsv(table: str) -> Recognised:
    """Lines of text from tesseract's table of words, empty where it was not sure of them."""
    words: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    total, seen = 0.0, 0
    for row in table.split("\n")[1:]:
        cells = row.split("\t")
        if len(cells) < 12 or cells[0] != "5" or not cells[11].strip():
            continue
        word, confidence = cells[11].strip(), float(cells[10])
        seen += len(word)
        total += confidence * len(word)
        if confidence >= _LEAST_WORD:
            words[tuple(cells[1:5])].append(word)  # page, block, paragraph, line
    sure = total / max(seen, 1)
    lines = [_GAP.sub("", " ".join(line)) for line in words.values()]
    shown = sum(len(line.replace(" ", "")) for line in lines)
    if shown < _LITTLE:
        return Recognised([], False, sure)
    if sure < _LEAST_CONFIDENCE:
        return Recognised([], seen > 40, sure)
    return Recognised(lines, False, sure)
