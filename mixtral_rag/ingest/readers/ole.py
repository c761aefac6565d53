"""Files in the container of Microsoft's older formats, and what to say of them."""

from pathlib import Path

from mixtral_rag.errors import DocumentError, EncryptedError, UnsupportedError

MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_NEW = {".doc": ".docx", ".dot": ".docx", ".wps": ".docx", ".ppt": ".pptx", ".pps": ".pptx",
        ".xls": ".xlsx"}  # fmt: skip


def is_ole(path: Path) -> bool:
    """Whether a file is such a container."""
    with path.open("rb") as file:
        return file.read(8) == MAGIC


def is_protected(path: Path) -> bool:
    """Whether a container holds a document of a new format behind a password."""
    return "EncryptedPackage".encode("utf-16-le") in path.read_bytes()  # a name in its directory


def refusal(path: Path) -> DocumentError:
    """Why a container is not read: protected by a password, or in an old format."""
    if is_protected(path):
        return EncryptedError(f"{path} needs a password; save a copy without one and add that")
    suffix = path.suffix.lower()
    new = _NEW.get(suffix, suffix)
    return UnsupportedError(f"{path} is in an old binary format; open it and save it as {new}")
