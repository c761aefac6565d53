"""Encodings told apart by our reader beside charset-normalizer and chardet alone.

    .venv/bin/python tests/benchmarks/encodings.py [--samples 100] [--seed 0] [--catalogues FOLDER]

Samples are cut from translated messages of the programs installed here (gettext catalogues), or
from the texts of the tests where there are none. A cell holds the percentages read right, then
wrong and accepted; the rest was refused. Plain ASCII samples do not count.
"""

import argparse
import gettext
import random
import struct
import sys
from collections import defaultdict
from pathlib import Path

import chardet
import charset_normalizer

sys.path.insert(0, str(Path(__file__).parent.parent))

from languages import ENCODINGS, TEXTS

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers.encoding import decode

LENGTHS = (12, 30, 100, 1000)
LOCALES = {"zh-Hans": "zh_CN", "zh-Hant": "zh_TW"}
# Further languages that only the catalogues bring.
MORE = {"sv": ["cp1252"], "cs": ["cp1250", "iso8859-2"], "hu": ["cp1250"], "tr": ["cp1254"],
        "el": ["cp1253"], "he": ["cp1255"]}  # fmt: skip


def messages(folder: Path, language: str) -> str:
    """Translated messages of a language, in an order drawn once."""
    found = set()
    for path in sorted(folder.glob(f"{LOCALES.get(language, language)}/LC_MESSAGES/*.mo")):
        try:
            with path.open("rb") as file:
                catalogue = gettext.GNUTranslations(file)._catalog
        except (OSError, UnicodeDecodeError, ValueError, struct.error):
            continue
        found |= {t for k, t in catalogue.items() if k and isinstance(t, str) and len(t) > 15}
    ordered = sorted(found)
    random.Random(0).shuffle(ordered)
    return "\n".join(ordered)


def samples(text: str, encoding: str, length: int, n: int, seed: int) -> list[bytes]:
    """Pieces of a text that are not plain ASCII, in an encoding."""
    draw = random.Random(length + (seed << 16))
    found = []
    for _ in range(50 * n):
        start = draw.randrange(max(1, len(text) - length))
        piece = text[start : start + length]
        strange = sum(not c.isascii() for c in piece)
        if strange == 0 or (ord(max(piece)) > 0x2E80 and strange < min(5, length / 4)):
            continue
        try:
            found.append(piece.encode(encoding))
        except UnicodeEncodeError:
            continue
        if len(found) == n:
            break
    return found


def ours(data: bytes) -> str | None:
    try:
        return decode(Path("sample.txt"), data)[0]
    except UnreadableError:
        return None


def by_name(data: bytes, name: str | None) -> str | None:
    try:
        return data.decode(name) if name else None
    except (LookupError, UnicodeError):
        return None


def by_chardet(data: bytes) -> str | None:
    return by_name(data, chardet.detect(data)["encoding"])


def by_normalizer(data: bytes) -> str | None:
    best = charset_normalizer.from_bytes(data).best()
    return by_name(data, best.encoding if best else None)


READERS = {"ours": ours, "chardet": by_chardet, "charset-normalizer": by_normalizer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="draws other samples")
    parser.add_argument("--catalogues", type=Path, default=Path("/usr/share/locale"))
    arguments = parser.parse_args()
    total: defaultdict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    print(f"{'':19}" + "".join(f"{name:>{len(LENGTHS) * 8}}" for name in READERS))
    print(f"{'characters':19}" + "".join(f"{n:8}" for _ in READERS for n in LENGTHS))
    for language, encodings in (ENCODINGS | MORE).items():
        text = messages(arguments.catalogues, language) or TEXTS.get(language, "")
        for encoding in encodings if text else []:
            line = f"{language:8}{encoding:11}"
            for name, reader in READERS.items():
                for length in LENGTHS:
                    pieces = samples(text, encoding, length, arguments.samples, arguments.seed)
                    if not pieces:
                        line += f"{'-':>8}"
                        continue
                    right = wrong = 0
                    for data in pieces:
                        # Several bytes may stand for one character: compare after a decoding.
                        wanted = data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
                        found = reader(data)
                        right += found == wanted
                        wrong += found is not None and found != wanted
                    for i, n in enumerate((right, wrong, len(pieces))):
                        total[name, length][i] += n
                    line += f"{100 * right / len(pieces):4.0f}/{100 * wrong / len(pieces):<3.0f}"
            print(line, flush=True)
    for length in LENGTHS:
        print(f"{length} characters: " + ", ".join(
            f"{name} {100 * r / n:.1f}% right {100 * w / n:.2f}% wrong"
            for name in READERS for r, w, n in [total[name, length]]))  # fmt: skip


if __name__ == "__main__":
    main()
