"""Models on this disk that were pulled: one folder each, listed only when complete.

`MODELS/<name>/<variant>/` holds the files and, written last, `model.json`.
"""

import difflib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

from mixtral_rag.errors import ModelNotFoundError
from mixtral_rag.weights.disk import made_whole

MANIFEST = "model.json"
_log = logging.getLogger("mixtral_rag.weights")


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A model on disk.

    Args:
        name: of the catalogue, else `owner--repository`.
        variant: quantisation of a GGUF, else `full` or `lora`.
        folder: where it is.
        files: name to the SHA-256 that the hub gave; a GGUF that came in the old expert layout is
            kept in today's, and has another.
        hub, repo, revision: where it came from.
        n_bytes: of all files.
        pulled_at: seconds since 1970.
        is_instruct: whether the catalogue says it answers questions; None when it is not in it.
    """

    name: str
    variant: str
    folder: Path
    files: dict[str, str]
    hub: str
    repo: str
    revision: str
    n_bytes: int
    pulled_at: float
    is_instruct: bool | None = None

    @property
    def title(self) -> str:
        """What `--model` takes: `name:variant`."""
        return f"{self.name}:{self.variant}"

    @property
    def gguf(self) -> Path | None:
        """The GGUF file to load (the first part of several); None for other weights."""
        names = sorted(name for name in self.files if name.endswith(".gguf"))
        return self.folder / names[0] if names else None


def models_folder() -> Path:
    """Where models are kept unless told otherwise."""
    return Path(platformdirs.user_data_dir("mixtral_rag")) / "models"


def write_manifest(model: PulledModel) -> None:
    """Make a model known, in one step; its files must be in place."""
    values = asdict(model)
    del values["folder"]
    with (
        made_whole(model.folder / MANIFEST) as partial,
        partial.open("w", encoding="utf-8") as file,
    ):
        json.dump(values, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())


def pulled_models(folder: Path | None = None) -> list[PulledModel]:
    """Complete models under `folder`, the newest first."""
    found = []
    for manifest in sorted((folder or models_folder()).glob(f"*/*/{MANIFEST}")):
        try:
            values = json.loads(manifest.read_text("utf-8"))
            model = PulledModel(folder=manifest.parent, **values)
            if not isinstance(model.pulled_at, int | float) or any(
                Path(name).name != name for name in model.files
            ):
                raise ValueError("unexpected values")
            missing = [name for name in model.files if not (model.folder / name).is_file()]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            _log.warning("%s is damaged (%s); pull the model again", manifest, error)
            continue
        if missing:
            _log.warning("%s lacks %s; pull it again", model.folder, missing[0])
        else:
            found.append(model)
    return sorted(found, key=lambda m: m.pulled_at, reverse=True)


def find_pulled(wanted: str, models: Sequence[PulledModel]) -> PulledModel:
    """The GGUF model called `name` or `name:variant`; the newest when several are.

    Raises:
        ModelNotFoundError: none is; says what there is, and how to pull it.
    """
    name, _, variant = wanted.partition(":")
    ready = [m for m in models if m.gguf]
    for model in ready:
        if name.lower() == model.name.lower() and variant.upper() in ("", model.variant.upper()):
            return model
    near = difflib.get_close_matches(wanted, [m.title for m in ready], n=2, cutoff=0.5)
    hint = f"on this disk: {', '.join(near)}; or " if near else ""
    quant = f" --quant {variant}" if variant else ""
    raise ModelNotFoundError(
        f"no such model: {wanted} is neither a file nor a pulled model; "
        f"{hint}mixtral-rag pull {name}{quant}"
    )


def locate(model: str, folder: Path | None = None) -> Path:
    """The file that `model` means: a path, or the name of a pulled model.

    Raises:
        ModelNotFoundError: a name, no path, and no such model was pulled.
    """
    path = Path(model).expanduser()
    if path.is_file() or path.suffix == ".gguf" or os.sep in model:
        return path
    return find_pulled(model, pulled_models(folder)).gguf or path


def locate_weights(weights: str, kind: str, folder: Path | None = None) -> Path:
    """The folder that `weights` means: a path, or the name of a model pulled as `kind`.

    Args:
        kind: `full` or `lora`.

    Raises:
        ModelNotFoundError: a name, no path, and no such weights were pulled.
    """
    path = Path(weights).expanduser()
    if path.is_dir() or os.sep in weights:
        return path
    wanted = weights.lower().removesuffix(f":{kind}")
    for model in pulled_models(folder):
        if (model.name.lower(), model.variant) == (wanted, kind):
            return model.folder
    raise ModelNotFoundError(
        f"no such weights: {weights} is neither a folder nor pulled; "
        f"mixtral-rag pull {weights} --kind {kind}"
    )


def best_pulled(models: Sequence[PulledModel]) -> PulledModel | None:
    """The model to answer with when none is named: the newest made for instructions, else any."""
    ready = [m for m in models if m.gguf]
    return next((m for m in ready if m.is_instruct), ready[0] if ready else None)
