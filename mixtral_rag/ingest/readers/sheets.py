"""Spreadsheets (XLSX, XLSB, XLS, ODS): each sheet a section, its rows under its header."""

import io
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixtral_rag.errors import EncryptedError, UnreadableError, UnsupportedError
from mixtral_rag.ingest.readers import (
    Block,
    Parsed,
    ReadOptions,
    delimited,
    html,
    ole,
    ooxml,
    tables,
    zips,
)

_MOST_CELLS = 30_000_000  # of the rectangle a sheet spans: it is held in memory, 32 bytes each
_PLACE = re.compile(rb"""\br=["']([A-Z]{0,3})([0-9]{1,7})["']""")


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read a spreadsheet: values as last computed, with the sheets' names as sections."""
    is_zip = zipfile.is_zipfile(path)
    if not is_zip and not ole.is_ole(path):
        return _exported(path, options)
    if not is_zip and ole.is_protected(path):
        raise ole.refusal(path)
    if not is_zip:
        _check_container(path)
    problems: list[str] = []
    title = ""
    if is_zip:
        with zips.opened(path) as archive:
            too_wide = list(_too_wide(archive, path))
            title = ooxml.Package(path, archive).title()
        if too_wide:
            raise UnreadableError(
                f"{path}: {', '.join(too_wide)} spans more than {_MOST_CELLS:,} cells; "
                "delete the cells far away from the others"
            )
    blocks = list(_blocks(path, is_zip, problems))
    return Parsed(title, blocks, problems=problems)


def _blocks(path: Path, is_zip: bool, problems: list[str]) -> Iterator[Block]:
    import python_calamine as calamine

    try:
        # By its name, or by its content where the name is of the older format.
        by_name = is_zip == (path.suffix.lower() != ".xls")
        book = calamine.load_workbook(path if by_name else io.BytesIO(path.read_bytes()))
        kinds = calamine.SheetTypeEnum
        names = [s.name for s in book.sheets_metadata if s.typ in (kinds.WorkSheet, kinds.Vba)]
    except BaseException as error:
        raise _reason(path, error) from error
    for name in names:
        try:
            sheet = book.get_sheet_by_name(name)
        except BaseException as error:  # noqa: BLE001
            problems.append(f"sheet {name}: {_reason(path, error)}")
            continue
        rows = ([tables.cell(value) for value in row] for row in sheet.iter_rows())
        yield from tables.blocks(rows, (name,))


def _check_container(path: Path) -> None:
    """Refuse a container whose table of sectors is broken, which would end the process."""
    import olefile

    try:
        with olefile.OleFileIO(path) as file:
            name = next((n for n in ("Workbook", "Book") if file.exists(n)), None)
            if name is None:
                raise UnreadableError(f"{path} is no spreadsheet, or is damaged")
            file.openstream(name).read()
    except (OSError, struct.error, IndexError, ValueError, TypeError, AttributeError) as error:
        raise UnreadableError(f"{path} is damaged: {error}") from error


def _reason(path: Path, error: BaseException) -> Exception:
    """Our error for one of the library; any other is raised as it is."""
    import python_calamine as calamine

    if isinstance(error, calamine.PasswordError):
        return EncryptedError(f"{path} needs a password; save a copy without one and add that")
    # A panic of its Rust code stands outside of Exception and has no importable name.
    panicked = type(error).__name__ == "PanicException"
    if panicked or isinstance(error, calamine.CalamineError | OSError | ValueError):
        return UnreadableError(f"{path} is no readable spreadsheet: {error}")
    raise error


def _too_wide(archive: zipfile.ZipFile, path: Path) -> Iterator[str]:
    """Sheets with cells so far apart that the rectangle around them fills the memory.

    Every part is inflated on the way, which proves its checksum and size.
    """
    for info in archive.infolist():
        is_sheet = "worksheets/" in info.filename and info.filename.endswith(".xml")
        rows = columns = 1
        tail = b""
        with zips.member(archive, info) as file:
            for chunk in _chunks(file, path):
                if not is_sheet:
                    continue
                places = set(_PLACE.findall(tail + chunk))
                rows = max(rows, *(int(row) for _, row in places), 1)
                columns = max(columns, *(_column(name) for name, _ in places), 1)
                tail = (tail + chunk)[-24:]
        if rows * columns > _MOST_CELLS:
            yield info.filename.rsplit("/", 1)[-1]


def _chunks(file: Any, path: Path) -> Iterator[bytes]:
    try:
        while chunk := file.read(zips.CHUNK):
            yield chunk
    except zips.DAMAGE as error:
        raise UnreadableError(f"{path} is damaged: {error}") from error


def _column(name: bytes) -> int:
    number = 0
    for letter in name:
        number = number * 26 + letter - 64
    return number


def _exported(path: Path, options: ReadOptions) -> Parsed:
    """What web systems export under the name of a spreadsheet: HTML or delimited text."""
    with path.open("rb") as file:
        start = file.read(4096).lower()
    if b"urn:schemas-microsoft-com:office:spreadsheet" in start and b"<html" not in start:
        raise UnsupportedError(f"{path} is in an old XML format; open it and save it as .xlsx")
    if b"<html" in start or b"<table" in start:
        return html.read(path, options)
    if path.suffix.lower() == ".xls":
        return delimited.read(path, options)
    raise UnreadableError(f"{path} is no spreadsheet, or is damaged")
