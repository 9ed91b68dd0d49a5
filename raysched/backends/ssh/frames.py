"""What goes over a connection to a host: one JSON object a frame, its length in four bytes before it."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any, Protocol

from raysched.core import codec

Frame = dict[str, Any]

_LENGTH = struct.Struct(">I")
LONGEST = 1 << 28
"""Bytes that a frame may have; a longer one is no frame, but noise on the line."""


class Reader(Protocol):
    """A stream of bytes."""

    async def readexactly(self, n: int, /) -> bytes:
        """The next bytes. Raises asyncio.IncompleteReadError where the stream ends before."""
        ...


def packed(frame: Frame) -> bytes:
    """The bytes of a frame."""
    body = json.dumps(frame).encode()
    return _LENGTH.pack(len(body)) + body


async def read(reader: Reader) -> Frame | None:
    """The next frame; None at the end of the stream. Raises ValueError for what is no frame."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > LONGEST:
            raise ValueError(f"a frame of {length} bytes")
        return json.loads(await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        return None


def encode(hint: Any, value: Any) -> Any:
    """What JSON can hold of a value of the type `hint`."""
    return base64.b64encode(value).decode() if hint is bytes else codec.encode(hint, value)


def decode(hint: Any, data: Any) -> Any:
    """The value that was encoded as `data`."""
    return base64.b64decode(data) if hint is bytes else codec.decode(hint, data)
