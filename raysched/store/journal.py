"""The journal: every fact in order, and now and then a snapshot of the state that they fold to.

One transaction holds a batch of facts: after a crash a batch is there whole or not at all, and what `append`
acknowledged is there. A lock keeps a second ledger out. Should one get in all the same (a file system whose
locks mean nothing, a connection that was lost for a while), the numbers tell: facts are written only right
after the last one that this ledger knows, so that each was decided on all that stand before it.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress

from sqlalchemy import delete, insert, inspect, select, text, update
from sqlalchemy.engine import Connection

from raysched.core.facts import Fact
from raysched.core.state import State
from raysched.errors import StorageError
from raysched.store import snapshots, wal
from raysched.store.file import FilePlace, writing
from raysched.store.place import RESTORE, Lost, place_of
from raysched.store.reader import LAST, NoJournal, Reader, check_schema
from raysched.store.tables import SCHEMA, FactRow, fact_row, facts, meta, tables

RECONNECT_S = 5.0
"""Seconds for which a server that went away is waited for."""

_log = logging.getLogger(__name__)


class Journal(Reader):
    """The journal at `url`, made if it is not there, and locked for this process until `close`. Used by one
    thread at a time.

    Every method raises StorageError with one sentence for the user: the disk is full, the journal can't be
    written or reached, is damaged, comes from a newer raysched, or belongs to another ledger that runs.
    """

    def __init__(self, url: str) -> None:
        self.place = place_of(url)
        self._engine = self.place.writer()
        self._writer = writing(self._engine)
        self._insert, self._newest = (str(each.compile(self._engine)) for each in (insert(facts), LAST))
        with self._closing_on_error():
            self._check_end(url)
            self._report_unfinished()
            self._open_schema()
            self._id = self.id()
            self._marked = -1
            self._known = self._whole_end()

    def append(self, told: Sequence[Fact]) -> int:
        """Write facts in one transaction; once it returns they outlive a crash. Returns the last number. A
        connection that is lost is made again.

        When it raises, none of them is there, or, if the machine failed at the very end, all of them: the
        caller forgets what it had folded and calls `load`.
        """
        rows = [fact_row(seq, fact) for seq, fact in enumerate(told, self._known + 1)]
        try:
            self._write(rows)
        except Lost:
            self._write_again(rows)
        self._known += len(rows)
        self._acknowledge()
        return self._known

    def _write(self, rows: Sequence[FactRow]) -> None:
        with self._writing() as connection:
            # The driver's own cursor: SQLAlchemy takes longer to hand a statement on than SQLite to do it.
            cursor = connection.connection.cursor()
            cursor.execute(self._newest)
            [newest] = cursor.fetchone() or [None]
            if (newest or self._last(connection)) != self._known:
                raise StorageError(
                    f"{self.place.name} was written by another ledger meanwhile; this one reads it again"
                )
            if rows:
                cursor.executemany(self._insert, rows)

    def _write_again(self, rows: Sequence[FactRow]) -> None:
        """After the connection was lost. Whether the first try came through is seen once the lock is had
        again: nothing of the lost connection goes on then."""
        deadline = time.monotonic() + RECONNECT_S
        while True:
            try:
                if not self._are_there(rows):
                    self._write(rows)
                return
            except Lost:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _are_there(self, rows: Sequence[FactRow]) -> bool:
        query = select(facts).where(facts.c.seq > self._known).order_by(facts.c.seq)
        with self._writing() as connection:
            return [FactRow(*row) for row in connection.execute(query)] == rows

    def snapshot(self, state: State, seq: int) -> None:
        """Keep `state`, which facts up to number `seq` folded to; it must not change meanwhile."""
        row = snapshots.row_of(state, seq, self.checksum(seq) or 0)
        with self._writing() as connection:
            snapshots.write(connection, row)

    def load(self) -> tuple[State | None, int, Iterator[Fact]]:
        """As Reader's. What may be appended follows the last fact that was read."""
        state, seq, _ = super().load()
        return state, seq, self._read_to_the_end(seq)

    def _read_to_the_end(self, after: int) -> Iterator[Fact]:
        self._known = after
        for seq, fact in self.facts(after):
            self._known = seq
            yield fact
        self._acknowledge()

    def _open_schema(self) -> None:
        """Make the tables, or bring those of an older version up to date. What is up to date is only read, so
        that a ledger starts on a full disk too."""
        with self._reading() as connection:
            version = check_schema(self.place.name, connection)
            strange = [
                name for name in tables.tables if version is None and inspect(connection).has_table(name)
            ]
        if strange:
            raise StorageError(
                f"{self.place.name} can't be made: there already is a table {strange[0]} of something else; "
                "name another file or database (`store` in raysched.yaml)"
            )
        self.schema = SCHEMA
        if version == SCHEMA:
            return
        with self._writing() as connection:
            if version == 1:  # its snapshots had no shape; the facts that they fold are all there
                connection.execute(text("drop table snapshots"))
            tables.create_all(connection)
            if version is None:
                connection.execute(insert(meta), {"name": "schema", "value": str(SCHEMA)})
            connection.execute(update(meta).where(meta.c.name == "schema").values(value=str(SCHEMA)))
            connection.execute(insert(meta), {"name": "id", "value": uuid.uuid4().hex})

    # ------------------------------------------------------------ what was acknowledged

    def _acknowledge(self) -> None:
        """Mark all known facts as acknowledged: they are going to be, or the ledger will act on them."""
        if self.place.mark is None or self._marked == self._known:
            return
        try:
            self.place.mark.write(self._id, self._known)
            self._marked = self._known
        except OSError as problem:
            raise StorageError(f"{self.place.mark.path} can't be written: {problem.strerror}") from problem

    def _check_end(self, url: str) -> None:
        """Raise StorageError where something is missing that was acknowledged. It is looked for before the
        journal is opened for writing: SQLite drops what it can't read of a log, and that shall be kept."""
        if self.place.mark is None or (mark := self.place.mark.read()).seq == 0:
            return
        lost: tuple[int, int] | None = (1, mark.seq)
        with suppress(NoJournal), Reader(url) as reader:
            lost = reader.lost()
        if lost is not None:
            raise StorageError(
                f"{self.place.name} has lost facts {lost[0]} to {lost[1]}, which were acknowledged: it was "
                f"damaged, or an older copy was put in its place; {RESTORE}, or "
                f"delete {self.place.mark.path} to go on without them"
            )

    def _whole_end(self) -> int:
        """The number of the last fact. What is damaged after the last one that was acknowledged, if that is
        known exactly, is cut off."""
        last = self.last()
        mark = self.place.mark.read() if self.place.mark is not None else None
        if mark is None or mark.journal != self._id or not mark.exact:
            return last
        good = self._whole_after(max(mark.seq, self.packed()))
        if good < last:
            self._cut(good, last)
        return good

    def _whole_after(self, seq: int) -> int:
        """The number of the last fact, after number `seq`, before which none is damaged."""
        query = select(facts).where(facts.c.seq > seq).order_by(facts.c.seq)
        with self._reading() as connection:
            for row in connection.execute(query):
                if row.seq != seq + 1 or not FactRow(*row).whole:
                    break
                seq = row.seq
        return seq

    def _cut(self, good: int, last: int) -> None:
        with self._writing() as connection:
            connection.execute(delete(facts).where(facts.c.seq > good))
        _log.warning(
            "Facts %d to %d at the end of %s were damaged and are cut off; they were never acknowledged.",
            good + 1,
            last,
            self.place.name,
        )

    def _report_unfinished(self) -> None:
        if isinstance(self.place, FilePlace) and (pages := wal.unfinished(self.place.path)):
            _log.warning(
                "%s ended with a write of %d pages that was not finished when its ledger died; it is dropped "
                "(nothing in it was acknowledged).",
                self.place.name,
                pages,
            )

    def _writing(self) -> AbstractContextManager[Connection]:
        return self.place.wording(self._writer.begin)
