"""Old office formats: refused with the way out, unless the file is a newer one by an old name."""

import zipfile
from pathlib import Path

from mixtral_rag.errors import UnsupportedError
from mixtral_rag.ingest.readers import Parsed, ReadOptions, html
from mixtral_rag.ingest.readers.ole import is_ole, refusal


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read what web systems export under such names: HTML, or a file of the new format.

    Raises:
        UnsupportedError: truly of the old format.
    """
    if is_ole(path):
        raise refusal(path)
    if zipfile.is_zipfile(path):
        from mixtral_rag.ingest.readers import docx, pptx

        is_slides = path.suffix.lower() in (".ppt", ".pps")
        return pptx.read(path, options) if is_slides else docx.read(path, options)
    with path.open("rb") as file:
        start = file.read(1024).lower().lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith((b"<html", b"<!doctype html", b"<?xml", b"<table", b"<meta", b"<head")):
        return html.read(path, options)
    raise UnsupportedError(f"{path} is in an old format; open it and save it as .docx or .pptx")
