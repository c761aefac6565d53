"""Errors as OpenAI's API tells them: `{"error": {"message", "type", "param", "code"}}`."""

import logging
import traceback
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mixtral_rag.errors import (
    BusyError,
    ContextError,
    DocumentError,
    EmptyStoreError,
    LockedError,
    MissingExtraError,
    MixtralRagError,
    NoDocumentsError,
    PromptError,
    ServerError,
    SettingsError,
)

_log = logging.getLogger("mixtral_rag.server")
CLIENT_GONE = 499  # as nginx logs it; nobody reads it


class NotFoundError(MixtralRagError):
    """There is nothing of that name."""


class RefusedError(MixtralRagError):
    """A request that is not served, and why.

    Args:
        text: for the user.
        status: HTTP status.
        param: the field that is wrong.
        code: for programs.
    """

    def __init__(
        self, text: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        self.status, self.param, self.code = status, param, code
        super().__init__(text)


class ClientGoneError(Exception):
    """The client has left; there is no one to answer."""


def body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> Any:
    """An error in OpenAI's form."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
             409: "conflict_error", 429: "rate_limit_error"}  # fmt: skip
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def status_of(error: MixtralRagError) -> tuple[int, str | None]:
    """HTTP status of an error and its code for programs."""
    if isinstance(error, RefusedError):
        return error.status, error.code
    if isinstance(error, BusyError):
        return (429, "too_many_requests") if error.is_own_share else (503, "busy")
    if isinstance(error, ContextError):
        return 400, "context_length_exceeded"
    found: tuple[tuple[type[MixtralRagError], int, str | None], ...] = (
        (NotFoundError, 404, "not_found"),
        (EmptyStoreError, 404, "no_documents"),
        (NoDocumentsError, 404, "no_documents"),
        (LockedError, 409, "locked"),
        (MissingExtraError, 501, "missing_extra"),
        (SettingsError, 400, None),
        (PromptError, 400, None),
        (DocumentError, 422, None),
        (ServerError, 502, "upstream"),
    )
    return next(((status, code) for kind, status, code in found if isinstance(error, kind)),
                (500, None))  # fmt: skip


def told(error: MixtralRagError) -> tuple[int, Any, dict[str, str]]:
    """Status, body and headers for an error."""
    status, code = status_of(error)
    headers: dict[str, str] = {}
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, LockedError):
        headers["Retry-After"] = "5"
    return status, body(str(error), status, param=getattr(error, "param", None), code=code), headers


def install(app: FastAPI) -> None:
    """Have every error of `app` told in this form."""
    app.add_exception_handler(MixtralRagError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientGoneError, _gone)
    app.add_exception_handler(ClientDisconnect, _gone)


def _route(request: Request) -> str:
    return getattr(request.scope.get("route"), "path", "-")


def _answer(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(content, status, headers=headers)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, MixtralRagError)
    status, content, headers = told(error)
    if status >= 500 and status != 503:
        _log.error("%s %s: %s", request.method, _route(request), type(error).__name__)
    return _answer(status, content, headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(p) for p in first["loc"] if p not in ("body", "query", "path"))
    what = first["msg"].removeprefix("Value error, ")
    code = "json_invalid" if first["type"] == "json_invalid" else None
    message = f"{where}: {what}" if where and code is None else what
    return _answer(400, body(message, 400, param=where or None, code=code))


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {404: "there is no such address", 405: "this address does not take that method"}
    text = message.get(error.status_code, str(error.detail))
    return _answer(error.status_code, body(text, error.status_code), error.headers)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


def unexpected(error: BaseException) -> Response:
    """The answer to a fault of ours. The log tells where, and not the error's text, which may hold
    what a document or a user says.
    """
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    where = " < ".join(f"{PurePath(f.filename).name}:{f.lineno}" for f in reversed(frames))
    _log.error("%s at %s", type(error).__name__, where)
    return _answer(500, body("the server failed; its log says where", 500))
