"""The port at which the ranks of a job meet."""

from __future__ import annotations

import zlib

PORTS = range(20_000, 29_000)
"""The ports on which the ranks of a job may meet: below those that Linux gives to outgoing connections, above
those of Ray's workers, and without torchrun's own 29500."""


def meeting_port(job: str, attempt: int) -> int:
    """The port, on the node of rank 0, at which the ranks of an attempt meet: the same for each of them, and
    another one for the next attempt."""
    return PORTS[(zlib.crc32(job.encode()) + 97 * attempt) % len(PORTS)]
