"""What model servers say when they refuse or fail, in our own errors."""

import json
import re
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mixtral_rag.errors import ContextError, GenerationError, MixtralRagError, ServerError

if TYPE_CHECKING:
    import httpx

# 500 is not among them: servers answer with it to what will fail again, such as a wrong option.
_AGAIN = frozenset({408, 409, 425, 429, 502, 503, 504})
_CONTEXT = re.compile(r"context (?:length|size|window)|exceed_context_size", re.IGNORECASE)
# The window, the prompt and the answer in the messages of vLLM, llama-server, llama-cpp-python.
_NUMBERS = [
    re.compile(r"context length (?:is|of) (?P<n_ctx>\d+)\D+requested \d+ tokens "
               r"\((?P<prompt>\d+) in \D+(?P<answer>\d+)"),
    re.compile(r"context length is (?P<n_ctx>\d+)\D+requested (?P<answer>\d+) output tokens"
               r"\D+(?P<prompt>\d+)"),
    re.compile(r"context length is (?P<n_ctx>\d+)\D+?(?P<prompt>\d+) input tokens"),
    re.compile(r"Input length \((?P<prompt>\d+)\)\D+\((?P<n_ctx>\d+)\)"),
    re.compile(r"request \((?P<prompt>\d+) tokens\)\D+\((?P<n_ctx>\d+) tokens\)"),
    re.compile(r"Requested tokens \((?P<prompt>\d+)\)\D+(?P<n_ctx>\d+)"),
]  # fmt: skip


class Failure(Exception):
    """A request that failed; what to raise, and whether and after how long to try again.

    `is_silent` when a stream ended without a word.
    """

    def __init__(
        self,
        error: MixtralRagError,
        *,
        again: bool = False,
        pause: float | None = None,
        status: int | None = None,
        is_silent: bool = False,
    ) -> None:
        self.error, self.again, self.pause, self.status = error, again, pause, status
        self.is_silent = is_silent

    def __str__(self) -> str:
        return str(self.error)


def unreachable(error: "httpx.HTTPError", root: str, timeout: float | None) -> Failure:
    """For an exception of httpx: no connection, or one that broke."""
    import httpx

    reason = shown(str(error)) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        if _is_tls(error):
            return Failure(
                ServerError(
                    f"no secure connection to {root}: {reason}; check http or https in base_url, "
                    "and set SSL_CERT_FILE for a certificate of your own"
                )
            )
        said = f"nothing answers at {root} ({reason}); start the server or set base_url"
        return Failure(ServerError(said), again=True)
    if isinstance(error, httpx.TimeoutException):
        return Failure(
            ServerError(f"{root} said nothing for {timeout:g} seconds; set a longer timeout")
        )
    again = isinstance(error, httpx.TransportError)
    return Failure(ServerError(f"the connection to {root} failed: {reason}"), again=again)


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def refused(response: "httpx.Response", text: str, url: str) -> Failure:
    """For a status other than 200."""
    status, headers = response.status_code, response.headers
    said = _message(text)
    error: MixtralRagError
    if 300 <= status < 400:
        to = urlsplit(headers.get("location", ""))
        place = f"{to.scheme}://{to.netloc}{to.path}" if to.netloc else to.path
        error = ServerError(
            f"{url} redirects to {shown(place)}, which is not followed; set base_url to where the "
            "API is"
        )
    elif status in (401, 403):
        error = ServerError(
            f"{url} refuses the key ({status}: {said}); set api_key, or MIXTRAL_RAG_API_KEY"
        )
    elif status == 404:
        error = ServerError(f"{url} does not exist (404: {said}); check base_url and model")
    elif overflow := _overflow(text):
        error = overflow
    else:
        error = ServerError(f"{url} answers {status}: {said}")
    pause = headers.get("retry-after", "")
    seconds = float(pause) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", pause) else None
    return Failure(error, again=status in _AGAIN, pause=seconds, status=status)


def failed(event: dict[str, Any]) -> Failure:
    """For an error in the place of an answer; some servers refuse so."""
    text, error = json.dumps(event, ensure_ascii=False), event.get("error")
    code = (error if isinstance(error, dict) else event).get("code")
    status = code if isinstance(code, int) else None
    if overflow := _overflow(text):
        return Failure(overflow, status=status)
    if status is not None and 400 <= status < 500:
        return Failure(
            ServerError(f"the server refuses ({status}): {_message(text)}"), status=status
        )
    return Failure(GenerationError(f"the server failed: {_message(text)}"), status=status)


def broken_off(error: MixtralRagError) -> MixtralRagError:
    """For a failure after a part of the answer has come."""
    if isinstance(error, ServerError):
        return GenerationError(f"the answer broke off: {error}")
    return error


def shown(text: str | bytes) -> str:
    """One line of foreign text, of reasonable length."""
    if isinstance(text, bytes):
        text = text[:2000].decode("utf-8", "replace")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= 300 else text[:300] + "..."


def _message(text: str) -> str:
    """The message in an error's JSON, in one of the forms that servers have, or the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return shown(text) if "<html" not in text.lower() else "a web page"
    for name in ("error", "message", "detail"):
        while isinstance(value, dict) and value.get(name):
            value = value[name]
    return shown(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _overflow(text: str) -> MixtralRagError | None:
    """The error of a prompt that does not fit, with its numbers where they are told."""
    if not _CONTEXT.search(text):
        return None
    told = _told(text)
    if told is not None:
        prompt, answer, n_ctx = told
        if prompt + answer > n_ctx:
            return ContextError(prompt_tokens=prompt, max_tokens=answer, n_ctx=n_ctx)
    return GenerationError(
        f"the prompt does not fit the server's context: {_message(text)}; shorten it or lower "
        "max_tokens"
    )


def _told(text: str) -> tuple[int, int, int] | None:
    """Tokens of the prompt and the answer, and the window."""
    fields = re.search(r'"n_prompt_tokens":\s*(\d+).*"n_ctx":\s*(\d+)', text, re.DOTALL)
    if fields:
        return int(fields[1]), 1, int(fields[2])
    for pattern in _NUMBERS:
        if found := pattern.search(text):
            numbers = found.groupdict()
            return int(numbers["prompt"]), int(numbers.get("answer") or 1), int(numbers["n_ctx"])
    return None
