"""How far a journal was acknowledged, in a small file beside it.

A database that finds the end of its own log damaged drops it without a word, as it drops what was not
finished when the power failed. The mark tells the two apart: it is written after each commit and before the
answer, and not synced. While the machine runs on it is therefore exact, however the ledger ended; after the
machine itself went down it may be behind, and never ahead.
"""

from __future__ import annotations

import os
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LENGTH = 128


class Acknowledged(NamedTuple):
    """All facts of the journal with this id up to number `seq` were acknowledged, and if it is `exact`, none
    after it."""

    journal: str
    seq: int
    exact: bool


_NOTHING = Acknowledged("", 0, False)


class Mark:
    """The mark beside the journal at `path`. Raises OSError where it can't be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = Path(f"{path}.mark")
        self._file = -1

    def read(self) -> Acknowledged:
        """What it says; nothing, where it is not there or damaged."""
        try:
            text = self.path.read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return _NOTHING
        said, _, checksum = text.rpartition(" ")
        if checksum != _checksum(said):
            return _NOTHING
        journal, seq, boot = said.split(" ")
        return Acknowledged(journal, int(seq), boot == _boot() != "")

    def write(self, journal: str, seq: int) -> None:
        """Facts up to number `seq` are about to be acknowledged."""
        if self._file < 0:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        said = f"{journal} {seq} {_boot()}"
        os.pwrite(self._file, f"{said} {_checksum(said)}".ljust(_LENGTH - 1).encode() + b"\n", 0)

    def close(self) -> None:
        """Let go of the file; closing twice is silent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _checksum(said: str) -> str:
    return f"{zlib.crc32(said.encode()):08x}"


@cache
def _boot() -> str:
    """Another text each time the machine starts; empty where that can't be told."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
