"""Whether pulled models are still, byte for byte, what their publisher announced."""

from pathlib import Path

from mixtral_rag.weights.download import Progress, is_intact
from mixtral_rag.weights.gguf import read_header
from mixtral_rag.weights.hubs import RemoteFile
from mixtral_rag.weights.library import PulledModel
from mixtral_rag.weights.relayout import layout_of


def head_path(path: Path) -> Path:
    """Where the head of a GGUF is kept that came in the old expert layout, for its checksum."""
    return path.with_name(f".{path.name}.head")


def damaged_files(
    model: PulledModel, on_progress: Progress = lambda what, done, total: None
) -> list[Path]:
    """The files of `model` whose SHA-256 is not the hub's; small ones have none and are skipped.

    Raises:
        ModelFileError: a file cannot be read, or the kept head of an old layout is damaged.
    """
    damaged, done = [], 0
    hashed = [model.folder / name for name, digest in model.files.items() if digest]
    total = sum(path.stat().st_size for path in hashed)
    for path in hashed:
        size, layout = path.stat().st_size, None
        if head_path(path).exists():
            size = model.n_bytes  # the only file, in its old layout
            layout = layout_of(read_header(head_path(path)), size)
        remote = RemoteFile(path.name, size, model.files[path.name], None, "")

        def show(n: int, path: Path = path, before: int = done) -> None:
            on_progress(path.name, before + n, total)

        if not is_intact(path, remote, layout, show):
            damaged.append(path)
        done += path.stat().st_size
    return damaged
