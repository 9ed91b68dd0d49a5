"""What a request must have before anything of it is read: the token, and a size within the limit."""

from __future__ import annotations

import hmac
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysched.actors.gateway.errors import error_answer
from raysched.errors import SpecError, Unauthorized
from raysched.package import LIMIT

OPEN = frozenset({"/v1/health", "/docs", "/openapi.json"})
"""What needs no token: it says nothing of the system."""

BODY_LIMIT = 16 << 20
"""Bytes of a submission."""
PACKAGE_LIMIT = LIMIT + (16 << 20)
"""Bytes of a packed working directory: what may be packed, where nothing of it could be compressed."""


class TooLarge(HTTPException):
    """The body has more bytes than are taken."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, _too_large(limit))


class Guard:
    """Lets a request through to `app` if it carries the token, and counts the bytes of its body."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = PACKAGE_LIMIT if scope["path"].startswith("/v1/packages/") else BODY_LIMIT
        refusal = self._refusal(scope["path"], headers, limit)
        if refusal is not None:
            await refusal(scope, receive, send)
        else:
            await self._app(scope, _counted(receive, limit), send)

    def _refusal(self, path: str, headers: Headers, limit: int) -> Any:
        if path not in OPEN and (answer := self._unauthorized(headers.get("authorization"))) is not None:
            return answer
        size = headers.get("content-length", "0")
        if size.isdigit() and int(size) > limit:
            return error_answer(413, SpecError(_too_large(limit)), {"Connection": "close"})
        return None

    def _unauthorized(self, given: str | None) -> Any:
        kind, _, token = (given or "").partition(" ")
        if kind.lower() != "bearer" or not token:
            missing = Unauthorized("the header `Authorization: Bearer TOKEN` is missing: set RAYSCHED_TOKEN")
            return error_answer(401, missing, {"WWW-Authenticate": "Bearer"})
        # Compared in constant time, so that how long it takes says nothing about the token.
        if not hmac.compare_digest(token.strip().encode(), self._token):
            return error_answer(403, Unauthorized("the token is wrong: see gateway.json where `up` ran"))
        return None


def _too_large(limit: int) -> str:
    return f"the body is larger than {limit >> 20} MiB"


def _counted(receive: Receive, limit: int) -> Receive:
    """`receive`, with an end at `limit` bytes, whatever length was announced."""
    taken = 0

    async def receive_counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise TooLarge(limit)
        return message

    return receive_counted
