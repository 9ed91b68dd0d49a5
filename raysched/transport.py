"""HTTP to the gateway: one request, or one stream that can be taken up again. Standard library only."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlencode, urlsplit

from raysched.errors import ConfigError, RayschedError, Unauthorized, Unreachable, by_code

CONNECT_TIMEOUT = 10.0
"""Seconds for which a connection may take to be made."""
ANSWER_TIMEOUT = 60.0
"""Seconds that the gateway may take for an answer."""
PATIENCE = 30.0
"""Seconds for which a gateway that refuses or drops connections is tried again: it restarts within them."""
TOLD_AFTER = 1.0
"""Seconds after which the user is told that the gateway is being waited for."""

Query = Mapping[str, str | int | None]
T = TypeVar("T")


class StreamIdle(Exception):
    """Nothing came for as long as the caller wanted to wait."""


class StreamLost(Exception):
    """The connection broke in the middle of a stream."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. Parts of the query that are None are left out; a body that is a path is that file."""

    method: str
    path: str
    query: Query = field(default_factory=dict[str, "str | int | None"])
    body: bytes | Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway said: an HTTP status and the whole body."""

    status: int
    reason: str
    body: bytes


class Transport:
    """Speaks to one gateway. `notice` is told, once a call, when the gateway has to be waited for."""

    def __init__(self, address: str, token: str, patience: float, notice: Callable[[str], None]) -> None:
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        self.patience = patience
        self._notice = notice
        self._authorization = {"Authorization": f"Bearer {token}"}
        try:
            self._parts = _parsed(self.address)
        except ValueError:
            raise ConfigError(
                f"{address!r} is not the address of a gateway: write http://HOST:PORT"
            ) from None
        if not (token.isascii() and token.isprintable()):
            raise self.error(Answer(http.client.FORBIDDEN, "", b""))

    def request(self, ask: Ask) -> Answer:
        """Ask, again while the gateway can't be reached, and return its answer whatever the status. So only
        what may be repeated can be asked. Raises Unreachable."""

        def once() -> Answer:
            with closing(self._connect()) as connection:
                response = self._send(connection, ask)
                return Answer(response.status, response.reason, response.read())

        return self._patiently(once)

    def call(self, ask: Ask) -> dict[str, Any]:
        """Ask, and return the JSON object of the answer. Raises what the gateway answers."""
        answer = self.request(ask)
        document = _object(answer.body)
        if answer.status >= http.client.BAD_REQUEST or document is None:
            raise self.error(answer)
        return document

    def stream(self, path: str, query: Query, idle: float) -> Iterator[bytes]:
        """The body of a GET, piece by piece as it comes. Raises StreamIdle after `idle` seconds without a
        byte, StreamLost when the connection breaks, and the error that the gateway answers."""
        connection, response = self._patiently(lambda: self._open_stream(path, query, idle))
        with closing(connection):
            if response.status != http.client.OK:
                raise self.error(Answer(response.status, response.reason, response.read()))
            try:
                while piece := response.read1(1 << 16):
                    yield piece
            except TimeoutError:
                raise StreamIdle from None
            except (OSError, http.client.HTTPException):
                raise StreamLost from None

    def error(self, answer: Answer) -> RayschedError:
        """The error that an answer stands for which is not the one asked for."""
        if answer.status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            return Unauthorized(
                f"{self.address} does not accept the token: set RAYSCHED_TOKEN to the one in gateway.json "
                "of the machine where `raysched up` ran"
            )
        error = (_object(answer.body) or {}).get("error")
        if isinstance(error, dict) and {"code", "message"} <= error.keys():
            return by_code(error["code"], error["message"])
        return Unreachable(
            f"{self.address} answered {answer.status} {answer.reason}, not what raysched would: check that "
            "RAYSCHED_ADDRESS is the address of a gateway, of the same version as this command"
        )

    def lost(self, why: str) -> Unreachable:
        """The error for a gateway that can't be reached."""
        return Unreachable(
            f"raysched does not answer at {self.address} ({why}): is it up? Run `raysched up`, "
            "or set RAYSCHED_ADDRESS"
        )

    def _connect(self) -> http.client.HTTPConnection:
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=CONNECT_TIMEOUT)
        connection.connect()
        connection.sock.settimeout(ANSWER_TIMEOUT)
        return connection

    def _send(self, connection: http.client.HTTPConnection, ask: Ask) -> http.client.HTTPResponse:
        target = self._parts.path + ask.path
        if query := {name: value for name, value in ask.query.items() if value is not None}:
            target += f"?{urlencode(query)}"
        # A gateway that refuses an upload may answer and hang up before all of it was sent.
        with suppress(BrokenPipeError):
            _write(connection, ask, target, dict(ask.headers) | self._authorization)
        return connection.getresponse()

    def _open_stream(
        self, path: str, query: Query, idle: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self._connect()
        try:
            connection.sock.settimeout(idle)
            return connection, self._send(connection, Ask("GET", path, query))
        except TimeoutError:
            connection.close()
            raise StreamIdle from None
        except BaseException:
            connection.close()
            raise

    def _patiently(self, attempt: Callable[[], T]) -> T:
        began = time.monotonic()
        told = False
        while True:
            try:
                return attempt()
            except (socket.gaierror, ssl.SSLError, TimeoutError) as error:
                raise self.lost(_why(error)) from None
            except (OSError, http.client.HTTPException) as error:
                waited = time.monotonic() - began
                if waited >= self.patience:
                    raise self.lost(_why(error)) from None
            if waited >= TOLD_AFTER and not told:
                told = True
                self._notice(f"{self.address} does not answer; trying for {self.patience:.0f} s")
            time.sleep(min(0.5, 0.05 + waited / 4))


def _parsed(address: str) -> SplitResult:
    """The parts of a URL. Raises ValueError where it has no host to connect to, or no possible port."""
    parts = urlsplit(address)
    host = (parts.hostname or "").encode("idna")
    if parts.scheme not in ("http", "https") or not host or b" " in host or parts.port == 0:
        raise ValueError
    return parts


def _write(connection: http.client.HTTPConnection, ask: Ask, target: str, headers: dict[str, str]) -> None:
    if not isinstance(ask.body, Path):
        return connection.request(ask.method, target, ask.body, headers)
    with ask.body.open("rb") as content:
        size = {"Content-Length": str(ask.body.stat().st_size)}
        return connection.request(ask.method, target, content, headers | size)


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "no answer in time" if isinstance(error, TimeoutError) else "the connection broke"
