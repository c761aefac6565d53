"""Which reader takes which file, told by the end of its name."""

from pathlib import PurePath

_READERS = {
    "pdf": "pdf",
    "markdown": "md markdown",
    "html": "html htm xhtml",
    "text": "txt text",
    "rst": "rst",
    "docx": "docx docm dotx",
    "pptx": "pptx pptm ppsx potx",
    "sheets": "xlsx xlsm xltx xlsb xls ods",
    "delimited": "csv tsv",
    "epub": "epub",
    "mail": "eml",
    "msg": "msg",
    "notebook": "ipynb",
    "records": "json jsonl ndjson",
    "archive": "zip tar tar.gz tgz tar.bz2 tbz2 tar.xz txz",
    "legacy": "doc dot ppt pps wps",
    "code": "py pyi js mjs jsx ts tsx vue java kt scala groovy c h cc cpp cxx hpp hh cu cs go rs"
    " rb php swift dart lua pl r jl m hs erl ex clj f90 sql proto sh bash ps1 bat cmake"
    " yaml yml toml ini cfg conf properties",
}
MODULES = {f".{end}": name for name, ends in _READERS.items() for end in ends.split()}
CONTAINERS = frozenset({"archive", "mail", "msg"})
"""Readers of files that hold other documents."""
KNOWN = ", ".join(sorted(s for s, name in MODULES.items() if name != "code")) + " and source code"
"""What can be read, for a message."""

_FOLDERS = frozenset({"node_modules", "bower_components", "site-packages", "__macosx"})
_FILES = frozenset({"package-lock.json", "npm-shrinkwrap.json", "pnpm-lock.yaml", "thumbs.db"})
_ENDS = (".min.js", ".bundle.js", ".lock.json")


def suffix_of(path: PurePath) -> str:
    """The end of a file's name that says its format, in lower case: `.pdf`, `.tar.gz`."""
    last = path.suffix.lower()
    double = path.with_suffix("").suffix.lower() + last if last else ""
    return double if double in MODULES else last


def is_wanted_folder(name: str) -> bool:
    """Whether a folder met on the way is looked into: not hidden, nor full of others' code."""
    return not name.startswith((".", "__pycache__")) and name.lower() not in _FOLDERS


def is_wanted_file(name: str) -> bool:
    """Whether a file met in a folder or archive is read.

    Hidden files, the locks that office programs leave (`~$report.docx`), lists that package
    managers write and scripts made small for browsers are passed over, as is what no reader takes.
    """
    low = name.lower()
    junk = low.startswith((".", "~$")) or low in _FILES or low.endswith(_ENDS)
    return not junk and suffix_of(PurePath(name)) in MODULES
