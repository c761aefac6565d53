"""What a repository on a model hub holds: Hugging Face, ModelScope, or a mirror of either.

Nothing but a listing is fetched here; file names are never guessed.
"""

import importlib
import importlib.util
import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from mixtral_rag.errors import HubAccessError, HubError, MissingExtraError, SettingsError

HUBS = ("hf", "modelscope")
TOKEN = "MIXTRAL_RAG_HUB_TOKEN"  # noqa: S105  the name of a variable, no secret
_OWN_HOSTS = {"hf": ("huggingface.co",), "modelscope": ("modelscope.cn", "modelscope.ai")}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a hub.

    Args:
        path: its path in the repository.
        size: in bytes.
        sha256: of its bytes; the hubs give it for every large file.
        git_sha1: git's hash of its bytes, which Hugging Face gives for small files.
        url: where to get it.
    """

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None
    url: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one revision of a repository, and the headers that fetching them takes."""

    hub: str
    repo: str
    revision: str
    files: tuple[RemoteFile, ...]
    headers: dict[str, str] = field(repr=False)  # may carry a token


def list_files(
    repo: str, *, hub: str = "hf", endpoint: str | None = None, revision: str | None = None
) -> Listing:
    """List a repository.

    Args:
        repo: `owner/name`.
        hub: one of `HUBS`.
        endpoint: address of a mirror; None takes `HF_ENDPOINT` or `MODELSCOPE_ENDPOINT`, else the
            hub itself. A stored token goes to the hub's own host alone; `MIXTRAL_RAG_HUB_TOKEN`
            goes wherever the listing does.
        revision: branch, tag or commit; None for the main branch.

    Raises:
        SettingsError: an endpoint that is no web address.
        MissingExtraError: the hub's client is not installed.
        HubAccessError: a token is wanted or refused.
        HubError: the hub cannot be reached, or has no such repository.
    """
    if endpoint is not None and not _is_address(endpoint):
        raise SettingsError(
            f"the endpoint {endpoint!r} is no address such as https://hf-mirror.com"
        )
    endpoint = endpoint.rstrip("/") if endpoint else None
    listing = _hugging_face if hub == "hf" else _modelscope
    return listing(repo, endpoint, revision)


def _is_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        return False


def _hugging_face(repo: str, endpoint: str | None, revision: str | None) -> Listing:
    from huggingface_hub import HfApi, constants, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    endpoint = endpoint or constants.ENDPOINT
    token = _token("hf", endpoint)
    api = HfApi(endpoint=endpoint, token=token, library_name="mixtral_rag")
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=30)
    except HFValidationError as error:
        raise HubError(f"{repo!r} is no repository name; give it as owner/name") from error
    except HfHubHTTPError as error:
        code = None if error.response is None else error.response.status_code
        raise refused(code, repo, endpoint) from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{endpoint} was not asked: HF_HUB_OFFLINE is set") from error
    except _network_errors() as error:
        raise unreachable(endpoint, error) from error
    except (ImportError, ValueError) as error:  # such as a proxy of a kind that is not known
        raise HubError(f"cannot ask {endpoint}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise HubError(f"{endpoint} answers as no hub does; is it one?") from error
    files = tuple(
        RemoteFile(
            path=s.rfilename,
            size=-1 if s.size is None else s.size,
            sha256=s.lfs.sha256 if s.lfs else None,
            git_sha1=None if s.lfs else s.blob_id,
            url=hf_hub_url(repo, s.rfilename, revision=info.sha, endpoint=endpoint),
        )
        for s in info.siblings or []
    )
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Listing("hf", repo, info.sha or "main", files, headers)


def _modelscope(repo: str, endpoint: str | None, revision: str | None) -> Listing:
    try:
        from modelscope_hub import HubApi
        from modelscope_hub.config import HubConfig
        from modelscope_hub.errors import APIError
        from modelscope_hub.errors import HubError as ModelScopeError
    except ModuleNotFoundError as error:
        raise MissingExtraError("modelscope-hub", "modelscope") from error

    endpoint = HubConfig(endpoint=endpoint).endpoint or ""
    api = HubApi(endpoint=endpoint, token=_token("modelscope", endpoint) or "")
    revision = revision or "master"
    try:
        found = api.list_repo_files(repo, "model", revision=revision)
    except APIError as error:
        raise refused(error.status_code, repo, endpoint) from error
    except (ModelScopeError, OSError) as error:
        raise unreachable(endpoint, error) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HubError(f"{endpoint} answers as no hub does; is it one?") from error
    token = api.legacy.token
    headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}
    files = tuple(
        RemoteFile(f.path, f.size, f.sha256 or None, None,
                   api.legacy.get_download_url(repo, "model", f.path, revision))
        for f in found if not f.is_dir
    )  # fmt: skip
    return Listing("modelscope", repo, revision, files, headers if token else {})


def refused(status: int | None, repo: str, endpoint: str) -> HubError:
    """The error for an HTTP status that is no success."""
    if status in (401, 403):
        return HubAccessError(
            f"{endpoint} refuses {repo} (HTTP {status}): it does not exist, or its terms must be "
            f"accepted on its page first; then log in (`hf auth login`) or set {TOKEN}"
        )
    if status == 404:
        return HubError(f"{endpoint} has no {repo} (HTTP 404); is the name spelled right?")
    if status == 429:
        return HubError(f"{endpoint} wants us to slow down (HTTP 429); try again in a few minutes")
    return HubError(f"{endpoint} failed on {repo} (HTTP {status}); try again later or a mirror")


def unreachable(endpoint: str, error: BaseException) -> HubError:
    """The error for a hub that cannot be talked to."""
    said = str(error).strip() or type(error).__name__
    return HubError(
        f"cannot reach {endpoint} ({said}); check the connection, or name a mirror with "
        "--endpoint, such as https://hf-mirror.com"
    )


def _token(hub: str, endpoint: str) -> str | bool:
    """The token to send; False sends none."""
    if given := os.environ.get(TOKEN, "").strip():
        if not given.isascii() or len(given.split()) != 1:
            raise SettingsError(f"{TOKEN} is no token: it must be one ASCII word")
        return given
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    is_own = any(host == own or host.endswith("." + own) for own in _OWN_HOSTS[hub])
    if parts.scheme != "https" or not is_own:
        return False
    if hub == "modelscope":
        from modelscope_hub.config import HubConfig

        return HubConfig().token or False
    from huggingface_hub import get_token

    return get_token() or False


def _network_errors() -> tuple[type[Exception], ...]:
    """What the HTTP libraries of any huggingface_hub raise when there is no connection."""
    names = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    modules = [importlib.import_module(name) for name in names]
    return (OSError, *(m.HTTPError for m in modules), *(m.InvalidURL for m in modules))
