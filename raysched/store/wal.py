"""What SQLite's write-ahead log ends with (sqlite.org/fileformat2.html, section 4)."""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = struct.Struct(">8x I 4x 8s 8x")  # the size of a page; the salts, which every frame of now repeats
_FRAME = struct.Struct(">4x I 8s 8x")  # not 0 where a transaction ends; the salts


def unfinished(database: Path) -> int:
    """How many pages at the log's end belong to a write that was never finished, and so never acknowledged.
    SQLite drops them. Nobody may have the database open."""
    try:
        log = Path(f"{database}-wal").read_bytes()
    except FileNotFoundError:
        return 0
    if len(log) < _HEADER.size:
        return 0
    page, salts = _HEADER.unpack_from(log)
    pages = 0
    for at in range(_HEADER.size, len(log), _FRAME.size + page):
        if len(log) - at < _FRAME.size:
            return pages + 1
        ends, repeated = _FRAME.unpack_from(log, at)
        if repeated != salts:
            return pages
        whole = len(log) - at >= _FRAME.size + page
        pages = 0 if ends and whole else pages + 1
    return pages
