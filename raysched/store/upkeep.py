"""What keeps a journal quick to start from and small: a snapshot now and then, and old facts packed.

A state is what the facts fold to, so anybody can make a snapshot from the journal alone. That is done in a
process of its own, which a ledger starts when enough facts have come; the ledger itself never stops for it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager

from sqlalchemy import delete, insert, select
from sqlalchemy.engine import Connection

from raysched.errors import StorageError
from raysched.store import snapshots
from raysched.store.file import writing
from raysched.store.place import place_of
from raysched.store.reader import Reader, fold
from raysched.store.tables import PACK, SCHEMA, FactRow, facts, pack_row, packs
from raysched.store.tables import snapshots as table

DUE = 10_000
"""Facts after which a new snapshot is due."""
_REST = 10
"""It rests this many times as long as it worked, so that it takes a tenth of a core at most."""
_BREATH = 5
"""Between two packs others may write for this many times as long as a pack took."""

_log = logging.getLogger(__name__)


class Upkeep:
    """The ledger's side of it: begins it when it is due."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._kept = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._next = 0.0

    def look(self, seq: int) -> None:
        """Begin if it is due, now that `seq` is the last fact's number. Called now and then; never blocks."""
        if self._process is not None and not self._ended(self._process):
            return
        if seq - self._kept >= DUE and time.monotonic() >= self._next:
            self._kept, self._started = seq, time.monotonic()
            self._process = _begin(self._url)

    def _ended(self, process: subprocess.Popen[bytes]) -> bool:
        code = process.poll()
        if code is None:
            return False
        if code != 0:
            _log.warning(
                "The journal's upkeep failed (exit code %d); the next start only takes longer.", code
            )
        now = time.monotonic()
        self._next = now + _REST * (now - self._started)
        self._process = None
        return True


def _begin(url: str) -> subprocess.Popen[bytes]:
    """The URL goes through a pipe, as it may hold a password, which a command line would show to all."""
    process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE)
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(url.encode())
    return process


class Keeper(Reader):
    """A journal whose snapshots and packs are made, while a ledger writes it or none does."""

    def __init__(self, url: str) -> None:
        Reader(url).close()  # only what is there: nothing is made here
        self.place = place_of(url)
        self._engine = self.place.helper()
        with self._closing_on_error():
            self.schema = self._check_schema()
            if self.schema != SCHEMA:
                raise StorageError(
                    f"{self.place.name} was written by an older raysched; start this one on it first "
                    "(`raysched up`)"
                )

    def snapshot(self) -> int:
        """Keep a snapshot of all facts; the number of the last one."""
        state, seq = fold(self)
        if seq:
            row = snapshots.row_of(state, seq, self.checksum(seq) or 0)
            with self._writing() as connection:
                snapshots.write(connection, row)
        return seq

    def pack(self, upto: int | None = None) -> int:
        """Pack facts up to number `upto`; without it, those that no start reads, even if the newest snapshot
        should be damaged. How many were packed."""
        last = self._never_read() if upto is None else upto
        packed = 0
        while rows := self._packable(last):
            began = time.monotonic()
            self._write_pack(rows)
            packed += len(rows)
            time.sleep(_BREATH * (time.monotonic() - began))
        return packed

    def _never_read(self) -> int:
        """The last fact before the oldest of the kept snapshots."""
        with self._reading() as connection:
            kept = connection.scalars(select(table.c.seq)).all()
        return min(kept) if len(kept) == snapshots.KEPT else 0

    def _packable(self, last: int) -> list[FactRow]:
        """The oldest facts that are not packed, if they fill a pack."""
        query = select(facts).order_by(facts.c.seq).limit(PACK)
        with self._reading() as connection:
            rows = [FactRow(*row) for row in connection.execute(query)]
        if len(rows) < PACK or rows[-1].seq > last:
            return []
        for seq, row in enumerate(rows, rows[0].seq):
            if row.seq != seq or not row.whole:
                raise self._damaged(seq)
        return rows

    def _write_pack(self, rows: list[FactRow]) -> None:
        row = pack_row(rows)
        with self._writing() as connection:
            gone = connection.execute(delete(facts).where(facts.c.seq <= rows[-1].seq))
            if gone.rowcount == len(rows):  # else another upkeep was first
                connection.execute(insert(packs), row)
            else:
                connection.rollback()

    def _writing(self) -> AbstractContextManager[Connection]:
        return self.place.wording(writing(self._engine).begin)


def main() -> int:
    """Keep the journal whose URL comes on stdin; the exit code."""
    os.nice(5)  # no more: while it holds the database's lock, the ledger waits for it
    try:
        with Keeper(sys.stdin.read()) as keeper:
            keeper.snapshot()
            keeper.pack()
    except StorageError as problem:
        print(f"raysched: no upkeep: {problem}", file=sys.stderr)
        return StorageError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
