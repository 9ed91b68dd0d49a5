"""Errors over HTTP: `{"error": {"code", "message"}}`, each class of raysched.errors with its status."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from raysched import errors
from raysched.actors.gateway import answers

STATUS: dict[type[errors.RayschedError], int] = {
    errors.SpecError: 422,
    errors.ConfigError: 422,
    errors.FileMissing: 404,
    errors.Refused: 409,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Unreachable: 503,
    errors.StorageError: 507,
    errors.LeaseLost: 409,
}
"""What is not here is 500. A missing token is 401 and a wrong one 403, both Unauthorized."""

_MEANING = {
    401: "No token was given.",
    403: "The token is wrong.",
    404: "There is no such job (`not_found`).",
    409: "No node could ever grant it (`refused`), or it is not possible now (`conflict`).",
    422: "The request or a job is wrong (`spec_error`), every problem in the message.",
    503: "The ledger does not answer (`unreachable`).",
    507: "It could not be written (`storage_error`).",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.ErrorAnswer, "description": meaning} for status, meaning in _MEANING.items()
}
"""The error answers that every call may give, for OpenAPI."""

log = logging.getLogger(__name__)


def install_errors(app: FastAPI) -> None:
    """Make every error of the application one of those answers."""

    @app.exception_handler(errors.RayschedError)
    async def ours(request: Request, error: errors.RayschedError) -> JSONResponse:
        return error_answer(STATUS.get(type(error), 500), error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_answer(422, errors.SpecError("\n".join(map(_problem, error.errors()))))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        detail = str(error.detail)
        said = f"{request.method} {request.url.path}: {detail[:1].lower()}{detail[1:]}"
        kind = errors.NotFound if error.status_code == 404 else errors.SpecError
        return error_answer(error.status_code, kind(said), error.headers)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        said = (
            f"{request.method} {request.url.path} failed in the gateway: {type(error).__name__}, see its log"
        )
        return error_answer(500, errors.RayschedError(said))


def error_answer(status: int, error: errors.RayschedError, headers: Any = None) -> JSONResponse:
    """The answer for an error."""
    return JSONResponse({"error": {"code": error.code, "message": str(error)}}, status, headers)


def _problem(problem: Any) -> str:
    """One problem of a request: where, and what."""
    where = ".".join(str(part) for part in problem["loc"] if part not in ("body", "query", "path"))
    return f"{where}: {problem['msg']}" if where else problem["msg"]
