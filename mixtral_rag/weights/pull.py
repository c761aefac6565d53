"""Bring a model from a hub to this disk, ready to load."""

import difflib
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mixtral_rag.errors import HubError, ModelFileError, ModelNotFoundError, SettingsError
from mixtral_rag.weights import catalog
from mixtral_rag.weights.check import head_path
from mixtral_rag.weights.disk import disk_error
from mixtral_rag.weights.download import Progress, download
from mixtral_rag.weights.gguf import read_header
from mixtral_rag.weights.hubs import HUBS, Listing, RemoteFile, list_files
from mixtral_rag.weights.library import (
    MANIFEST,
    PulledModel,
    models_folder,
    pulled_models,
    write_manifest,
)
from mixtral_rag.weights.relayout import Layout, layout_of
from mixtral_rag.weights.transfer import peek

KINDS = ("gguf", "full", "lora")
_QUANT = re.compile(
    r"(?i)(?<![a-z0-9])(I?Q\d(?:_[0-9A-Z]+)+|TQ\d_\d|MXFP4|BF16|F16|F32)(?![a-z0-9])"
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")
_UNQUANTISED = ("F32", "F16", "BF16")
_LARGEST_HEADER = 64 << 20  # of a GGUF; a vocabulary of 32,000 tokens takes one megabyte


@dataclass(frozen=True, slots=True)
class Choice:
    """Files of a repository that make up one model, in the order of their parts."""

    variant: str
    files: tuple[RemoteFile, ...]

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(f.size for f in self.files)


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    repo: str
    is_instruct: bool | None


def pull(
    name: str,
    *,
    kind: str = "gguf",
    quant: str | None = None,
    hub: str = "hf",
    endpoint: str | None = None,
    revision: str | None = None,
    folder: Path | None = None,
    memory: int = 0,
    n_connections: int = 8,
    on_progress: Progress = lambda what, done, total: None,
) -> PulledModel:
    """Fetch a model and check it; a GGUF in the old expert layout is written in today's.

    Args:
        name: of the catalogue, or `owner/repository` of any other.
        kind: `gguf`, `full` (Hugging Face weights) or `lora`.
        quant: such as `Q4_K`, or the name of a GGUF file in the repository; None takes the best
            that fits `memory`.
        hub: `hf` or `modelscope`; `endpoint` names a mirror of it.
        revision: branch, tag or commit; None for the main branch.
        folder: where models are kept; None for the user's data folder.
        memory: bytes of this machine, for choosing when `quant` is None.
        n_connections: how many requests run at a time.
        on_progress: gets what is done, bytes done and bytes to do.

    Returns:
        The model on disk. One that is there already is returned without asking the hub.

    Raises:
        ModelNotFoundError: unknown model, or not published so; the nearest names are offered.
        HubError, HubAccessError, ChecksumError, MissingExtraError, LockedError, ModelFileError,
            SettingsError: as `list_files` and `download` say.
    """
    if kind not in KINDS:
        raise SettingsError(f"unknown kind {kind!r}; choose one of: {', '.join(KINDS)}")
    if hub not in HUBS:
        raise SettingsError(f"unknown hub {hub!r}; choose one of: {', '.join(HUBS)}")
    if n_connections < 1:
        raise SettingsError(f"n_connections is {n_connections}; it must be at least 1")
    if quant and kind != "gguf":
        raise SettingsError(f"quant is for GGUF files; {kind} weights have none")
    source = _source(name, kind, hub)
    folder = folder or models_folder()
    wanted = quant if kind == "gguf" else kind
    here = _on_disk(source.name, wanted, folder) if wanted and revision is None else None
    if here is None:
        listing = list_files(source.repo, hub=hub, endpoint=endpoint, revision=revision)
        choice = _choose(listing, kind, quant, memory)
        here = _on_disk(source.name, choice.variant, folder)
        if here and here.revision != listing.revision and not _same_files(here, choice):
            raise HubError(
                f"{here.folder} holds another revision ({here.revision}); move it away first"
            )
    if here is None:
        try:
            here = _fetch(source, listing, choice, folder, n_connections, on_progress)
        except OSError as error:
            raise disk_error(folder, error) from error
    return here


def _same_files(model: PulledModel, choice: Choice) -> bool:
    return model.files == {file.path: file.sha256 or "" for file in choice.files}


def _on_disk(name: str, variant: str, folder: Path) -> PulledModel | None:
    for model in pulled_models(folder):
        if (model.name, model.variant.upper()) == (name, variant.upper()):
            return model
    return None


def _fetch(
    source: _Source,
    listing: Listing,
    choice: Choice,
    folder: Path,
    n_connections: int,
    on_progress: Progress,
) -> PulledModel:
    place = folder / source.name / choice.variant
    pairs = [(file, place / file.path) for file in choice.files]
    if min(file.size for file in choice.files) < 0:
        raise HubError(f"{listing.repo} is listed without sizes; try another mirror")
    layouts = _layouts(choice, listing.headers)
    download(
        pairs,
        headers=listing.headers,
        layouts=layouts,
        n_connections=n_connections,
        on_progress=on_progress,
    )
    for name, layout in layouts.items():  # for checking the file later
        head_path(place / name).write_bytes(layout.old_head)
    model = PulledModel(
        name=source.name,
        variant=choice.variant,
        folder=place,
        files={path.name: file.sha256 or "" for file, path in pairs},
        hub=listing.hub,
        repo=source.repo,
        revision=listing.revision,
        n_bytes=choice.n_bytes,
        pulled_at=time.time(),
        is_instruct=source.is_instruct,
    )
    write_manifest(model)
    return model


def _source(name: str, kind: str, hub: str) -> _Source:
    if name.count("/") == 1:  # a repository; the catalogue's own go by their names
        known = next((m for m in catalog.MODELS if name in m.form_repos(kind)), None)
        if known is None:
            return _Source(name.replace("/", "--"), name, None)
    else:
        known = catalog.find_model(name)
    repos = known.form(kind).repos
    if hub not in repos:
        raise ModelNotFoundError(
            f"{known.name} as {kind} is not on {hub}; it is on: {', '.join(repos)}"
        )
    return _Source(known.name, repos[hub], known.is_instruct)


def _choose(listing: Listing, kind: str, quant: str | None, memory: int) -> Choice:
    files = [f for f in listing.files if _is_plain(f.path)]
    if kind == "gguf":
        return choose_gguf(files, quant, memory, listing.repo)
    weights = [f for f in files if f.path.endswith(".safetensors")] or [
        f for f in files if f.path.endswith(".bin") and "training" not in f.path
    ]
    prefix = "adapter_" if kind == "lora" else ""
    weights = [f for f in weights if f.path.startswith(prefix) and "consolidated" not in f.path]
    if not weights:
        raise HubError(f"{listing.repo} holds no {kind} weights; try another --kind")
    others = (".json", ".model", ".jinja", ".txt")
    return Choice(kind, (*weights, *(f for f in files if f.path.endswith(others))))


def _is_plain(path: str) -> bool:
    """Whether a name from a hub is a file at the top; a hub must not choose where we write."""
    return (
        path.isprintable()
        and not set(path) & set("/\\:")
        and not path.startswith(".")
        and path.lower() != MANIFEST
    )


def choose_gguf(files: Sequence[RemoteFile], quant: str | None, memory: int, repo: str) -> Choice:
    """The GGUF files of a quantisation, all parts of it.

    `Q4_K` is also `Q4_K_M` and the other way round, as in llama.cpp; `Q4_K` also finds a file
    `x-q4_k-im.gguf` when there is no `x-q4_k.gguf`.

    Raises:
        ModelNotFoundError: there is none; the nearest names are offered.
        HubError: the repository has no GGUF, or parts of one are missing.
    """
    groups: dict[str, list[RemoteFile]] = {}
    for file in files:
        if file.path.endswith(".gguf"):
            groups.setdefault(_PART.sub("", file.path), []).append(file)
    choices = [c for stem in sorted(groups, key=len) if (c := _group(stem, groups[stem]))]
    taken: set[str] = set()
    for n, choice in enumerate(choices):
        if choice.variant in taken:  # another model of the same quantisation
            choices[n] = replace(choice, variant=_PART.sub("", choice.files[0].path)[:-5])
        taken.add(choice.variant)
    if not choices:
        raise HubError(f"{repo} holds no GGUF files; try --kind full")
    if quant is None:
        return _best(choices, memory, repo)
    for choice in _ranked(choices, quant):
        _check_parts(choice)
        return choice
    names = list(dict.fromkeys(c.variant for c in choices))
    near = difflib.get_close_matches(quant.upper(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? There are" if near else "there are"
    raise ModelNotFoundError(f"{repo} has no quantisation {quant!r}; {hint}: {', '.join(names)}")


def _group(stem: str, files: list[RemoteFile]) -> Choice | None:
    if "mmproj" in stem.lower():  # the picture half of a multimodal model
        return None
    name = stem.removesuffix(".gguf")
    found = list(_QUANT.finditer(name))
    # What follows tells files of one quantisation apart, such as `-im` for an importance matrix.
    variant = name[found[-1].start() :].upper() if found else name
    return Choice(variant, tuple(sorted(files, key=lambda f: f.path)))


def _ranked(choices: Sequence[Choice], quant: str) -> list[Choice]:
    """The choices that go by that name, the closest first."""
    name = quant.upper().replace("-", "_")
    alias = name.removesuffix("_M") if name.endswith("_K_M") else f"{name}_M"

    def rank(choice: Choice) -> int | None:
        variant = choice.variant.upper().replace("-", "_")
        if quant in (f.path for f in choice.files):
            return 0
        if variant in (name, alias):
            return 1 if variant == name else 2
        rest = choice.variant.upper().removeprefix(quant.upper())
        return 3 if rest.startswith("-") else None

    ranked = [(r, n) for n, c in enumerate(choices) if (r := rank(c)) is not None]
    return [choices[n] for _, n in sorted(ranked)]


def _check_parts(choice: Choice) -> None:
    for number, file in enumerate(choice.files, start=1):
        part = _PART.search(file.path)
        total = int(part[2]) if part else 1
        if (int(part[1]) if part else 1) != number or total != len(choice.files):
            raise HubError(f"{file.path} is one of {total} parts, and the repository lacks others")


def _best(choices: list[Choice], memory: int, repo: str) -> Choice:
    quantised = [c for c in choices if c.variant not in _UNQUANTISED] or choices
    fitting = [c for c in quantised if catalog.needed_memory(c.n_bytes, 32_768) <= memory]
    if fitting:
        choice = max(fitting, key=lambda c: c.n_bytes)
        _check_parts(choice)
        return choice
    least = min(choices, key=lambda c: c.n_bytes)
    need = catalog.needed_memory(least.n_bytes, 32_768)
    raise ModelNotFoundError(
        f"nothing in {repo} fits: {least.variant}, the smallest, needs {need / 1e9:.1f} GB with a "
        f"32K context and this machine has {memory / 1e9:.1f} GB; name one with --quant to fetch "
        "it all the same"
    )


def _layouts(choice: Choice, headers: Mapping[str, str]) -> dict[str, Layout]:
    """How to write the file, when it is a GGUF in the layout that llama.cpp no longer loads."""
    file = choice.files[0]
    if not file.path.endswith(".gguf"):
        return {}
    data, size = b"", 2 << 20
    with tempfile.TemporaryDirectory() as folder:
        head = Path(folder) / file.path
        while True:
            data = peek(file, size, headers=headers, have=data)
            head.write_bytes(data)
            try:
                header = read_header(head)
                break
            except ModelFileError:
                if not data.startswith(b"GGUF") or size >= min(file.size, _LARGEST_HEADER):
                    raise ModelFileError(f"{file.url} is no GGUF file, or damaged") from None
                size = min(4 * size, _LARGEST_HEADER)
        return {file.path: layout_of(header, file.size)} if header.has_old_expert_layout else {}
