"""A server that answers and breaks exactly as a test says, which a real gateway does only by chance."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Step = Callable[[socket.socket, "Asked"], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came: its first line, and its headers with small letters."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Server:
    """Where it listens, and what was asked."""

    address: str
    asked: list[Asked] = field(default_factory=list[Asked])


def answer(document: object, status: str = "200 OK") -> Step:
    """Answer with JSON, or with text that is none."""
    body = document.encode() if isinstance(document, str) else json.dumps(document).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return lambda connection, _: connection.sendall(head.encode() + body)


def drop(connection: socket.socket, _: Asked) -> None:
    """Hang up without an answer."""


def pieces(*parts: bytes, complete: bool = True, linger: float = 0) -> Step:
    """Stream the parts; where not `complete`, hang up in the middle, after `linger` seconds."""

    def step(connection: socket.socket, _: Asked) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in parts:
            connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        if complete:
            connection.sendall(b"0\r\n\r\n")
        elif linger:
            threading.Event().wait(linger)

    return step


@contextmanager
def scripted(*steps: Step) -> Iterator[Server]:
    """A server whose n-th request is served by the n-th step; afterwards nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            for step in steps:
                connection, _ = listener.accept()
                with connection:
                    server.asked.append(_read(connection))
                    step(connection, server.asked[-1])
            listener.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server


def _read(connection: socket.socket) -> Asked:
    with connection.makefile("rb") as stream:
        line = stream.readline().decode().strip()
        headers: dict[str, str] = {}
        while text := stream.readline().decode().strip():
            name, _, value = text.partition(": ")
            headers[name.lower()] = value
        return Asked(line, headers, stream.read(int(headers.get("content-length", 0))))
