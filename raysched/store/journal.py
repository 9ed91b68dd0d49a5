"""The journal: every fact in order, and now and then a snapshot of the state that they fold to.

One transaction holds a batch of facts: after a crash a batch is there whole or not at all, and what
`append` acknowledged is there. Each row carries a checksum, and the facts are numbered without gaps, so
that damage is noticed instead of folded. A lock beside the file keeps a second ledger out.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, Table, Text, delete, event, func, insert, select
from sqlalchemy.engine import Connection, create_engine

from raysched.core.codec import decode_fact, decode_state, encode_fact, encode_state
from raysched.core.facts import Fact
from raysched.core.state import State
from raysched.errors import StorageError
from raysched.store.file import JournalFile

SCHEMA = 1
"""The version of the tables; a journal with a higher one is refused."""

_PAGE = 1000
"""Facts read at a time: no read holds the file for long, and no start the whole journal in memory."""

_KEPT = 2
"""Snapshots kept: the newest, and one in case that one is damaged."""

_log = logging.getLogger(__name__)
_tables = MetaData()
_facts = Table(
    "facts",
    _tables,
    Column("seq", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("body", Text, nullable=False),
    Column("checksum", Integer, nullable=False),
)
_snapshots = Table(
    "snapshots",
    _tables,
    Column("seq", Integer, primary_key=True),
    Column("body", Text, nullable=False),
    Column("checksum", Integer, nullable=False),
)
_meta = Table(
    "meta", _tables, Column("name", String, primary_key=True), Column("value", String, nullable=False)
)


class Journal:
    """The journal at `url` (`sqlite:///PATH`), made if it is not there. Used by one thread at a time.

    Every method raises StorageError with one sentence for the user: the disk is full, the file can't be
    written, is damaged, comes from a newer raysched, or belongs to another ledger that runs.
    """

    def __init__(self, url: str) -> None:
        self._file = JournalFile(url)
        self._engine = create_engine(self._file.url)
        event.listen(self._engine, "connect", _prepare)
        try:
            self._open_schema()
        except BaseException:
            self.close()
            raise

    def append(self, facts: Sequence[Fact]) -> int:
        """Write facts in one transaction; once it returns they outlive a crash. Returns the last number.

        When it raises, none of them is there, or, if the machine failed at the very end, all of them:
        the caller forgets what it had folded and calls `load`.
        """
        with self._writing() as connection:
            last = _last(connection)
            rows = list(_fact_rows(facts, last + 1))
            if rows:
                connection.execute(insert(_facts), rows)
        return last + len(rows)

    def snapshot(self, state: State, seq: int) -> None:
        """Keep `state`, which facts up to number `seq` folded to; it must not change meanwhile."""
        body = _dumps(encode_state(state))
        row = {"seq": seq, "body": body, "checksum": _checksum(seq, body)}
        newest = select(_snapshots.c.seq).order_by(_snapshots.c.seq.desc()).limit(_KEPT)
        with self._writing() as connection:
            connection.execute(delete(_snapshots).where(_snapshots.c.seq == seq))
            connection.execute(insert(_snapshots), row)
            connection.execute(delete(_snapshots).where(_snapshots.c.seq.not_in(newest)))

    def load(self) -> tuple[State | None, int, Iterator[Fact]]:
        """The newest snapshot that is whole, the number of its last fact, and the facts after it.

        Without a snapshot: None, 0 and all facts. A damaged snapshot is passed over, since the facts
        before it are all there.
        """
        state, seq = self._newest_snapshot()
        return state, seq, (fact for _, fact in self.facts(seq))

    def facts(self, after: int) -> Iterator[tuple[int, Fact]]:
        """Each fact after number `after`, with its number, in order."""
        while page := self._page(after):
            for seq, kind, body, checksum in page:
                if seq != after + 1 or checksum != _checksum(seq, kind, body):
                    raise StorageError(
                        f"the journal {self._file.path} is damaged at fact {after + 1}; restore a backup of "
                        "it, or move it away to start with an empty one"
                    )
                yield seq, decode_fact(kind, json.loads(body))
                after = seq

    def close(self) -> None:
        """Let go of the file, so that another ledger may open it."""
        self._engine.dispose()
        self._file.close()

    def _open_schema(self) -> None:
        with self._writing() as connection:
            _tables.create_all(connection)
            version = connection.scalar(select(_meta.c.value).where(_meta.c.name == "schema"))
            if version is None:
                connection.execute(insert(_meta), {"name": "schema", "value": str(SCHEMA)})
            elif int(version) > SCHEMA:
                raise StorageError(
                    f"the journal {self._file.path} was written by a newer raysched (schema {version}, this "
                    f"one knows {SCHEMA}); run that version or a later one"
                )

    def _page(self, after: int) -> Sequence[Any]:
        query = select(_facts).where(_facts.c.seq > after).order_by(_facts.c.seq).limit(_PAGE)
        with self._reading() as connection:
            return connection.execute(query).all()

    def _newest_snapshot(self) -> tuple[State | None, int]:
        with self._reading() as connection:
            rows = connection.execute(select(_snapshots).order_by(_snapshots.c.seq.desc())).all()
        for seq, body, checksum in rows:
            if checksum == _checksum(seq, body):
                return decode_state(json.loads(body)), seq
            _log.warning("The snapshot after fact %d is damaged; an older one is used.", seq)
        return None, 0

    def _writing(self) -> AbstractContextManager[Connection]:
        return self._file.wording(self._engine.begin)

    def _reading(self) -> AbstractContextManager[Connection]:
        return self._file.wording(self._engine.connect)


def _prepare(connection: Any, _record: Any) -> None:
    """A commit is on the disk before it is acknowledged, and somebody who looks in is waited for."""
    for setting in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {setting}")


def _last(connection: Connection) -> int:
    return connection.scalar(select(func.max(_facts.c.seq))) or 0


def _fact_rows(facts: Iterable[Fact], first: int) -> Iterator[dict[str, Any]]:
    for seq, fact in enumerate(facts, first):
        kind, fields = encode_fact(fact)
        body = _dumps(fields)
        yield {"seq": seq, "kind": kind, "body": body, "checksum": _checksum(seq, kind, body)}


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _checksum(*parts: object) -> int:
    return zlib.crc32("\0".join(map(str, parts)).encode())
