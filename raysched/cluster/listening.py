"""Sockets to listen at, and the URLs by which they are reached."""

from __future__ import annotations

import socket
from typing import Any

BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any free one. Raises OSError where somebody else does."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        # A connection of the gateway that just died must not keep the next one from its port.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def url_host(host: str) -> str:
    """How a host stands in a URL from which it can be reached: here, where it listens everywhere."""
    everywhere: dict[Any, str] = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
    return everywhere.get(host, f"[{host}]" if ":" in host else host)
