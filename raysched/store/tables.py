"""The tables of a journal, the same in every database, and how their rows are made and checked.

    facts      every fact in order, until it is packed
    packs      older facts, PACK of them in a row, compressed; nothing of them is lost
    snapshots  states that facts up to a number fold to; they save time and nothing else. `shape` names what
               made one, `fact` is the checksum of the last fact in it
    meta       `schema`, the version of these tables; `id`, which no other journal has

Every fact, pack and snapshot carries a checksum, and facts are numbered without gaps, so that damage is
noticed instead of folded.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, String, Table, Text

from raysched.core.codec import decode_fact, encode_fact
from raysched.core.facts import Fact
from raysched.errors import StorageError

SCHEMA = 2
"""The version of the tables; a journal with a higher one is refused. The first had no packs and no id."""

PACKS_SINCE = 2

PACK = 1000
"""Facts in one pack, and facts read at a time: no read holds the database for long, and no start the whole
journal in memory."""

dumps = json.JSONEncoder(separators=(",", ":")).encode
"""JSON in ASCII, on one line, so that it can hold what no database takes as text."""

_Number = BigInteger().with_variant(Integer, "sqlite")
tables = MetaData()
facts = Table(
    "facts",
    tables,
    Column("seq", _Number, primary_key=True, autoincrement=False),
    Column("kind", String, nullable=False),
    Column("body", Text, nullable=False),
    Column("checksum", _Number, nullable=False),
)
packs = Table(
    "packs",
    tables,
    Column("first", _Number, primary_key=True, autoincrement=False),
    Column("last", _Number, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("checksum", _Number, nullable=False),
)
snapshots = Table(
    "snapshots",
    tables,
    Column("seq", _Number, primary_key=True, autoincrement=False),
    Column("shape", String, nullable=False),
    Column("fact", _Number, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("checksum", _Number, nullable=False),
)
meta = Table(
    "meta", tables, Column("name", String, primary_key=True), Column("value", String, nullable=False)
)


class FactRow(NamedTuple):
    """A row of `facts`."""

    seq: int
    kind: str
    body: str
    checksum: int

    @property
    def whole(self) -> bool:
        """Whether it is as it was written."""
        return self.checksum == _fact_checksum(self.seq, self.kind, self.body)

    def fact(self) -> Fact:
        """The fact. Raises StorageError for one that this version can't read."""
        return decode_fact(self.kind, json.loads(self.body))


def fact_row(seq: int, fact: Fact) -> FactRow:
    """The row of a fact."""
    kind, fields = encode_fact(fact)
    body = dumps(fields)
    return FactRow(seq, kind, body, _fact_checksum(seq, kind, body))


def pack_row(rows: Sequence[FactRow]) -> dict[str, Any]:
    """The row of `packs` that holds these facts, which follow each other."""
    lines = "\n".join(f"{row.kind} {row.body}" for row in rows)
    body = zlib.compress(lines.encode())
    first, last = rows[0].seq, rows[-1].seq
    return {"first": first, "last": last, "body": body, "checksum": checksum(first, last, body)}


def unpack(row: Any) -> Iterable[FactRow]:
    """The facts of a row of `packs`. Raises StorageError where it is not as it was written."""
    if row.checksum != checksum(row.first, row.last, row.body):
        raise StorageError(f"facts {row.first} to {row.last} are damaged")
    lines = zlib.decompress(row.body).decode().split("\n")
    for seq, line in enumerate(lines, row.first):
        kind, _, body = line.partition(" ")
        yield FactRow(seq, kind, body, _fact_checksum(seq, kind, body))


def in_packs(rows: Iterable[FactRow]) -> Iterator[dict[str, Any]]:
    """Rows of `packs` that hold these facts."""
    held: list[FactRow] = []
    for row in rows:
        held.append(row)
        if len(held) == PACK:
            yield pack_row(held)
            held = []
    if held:
        yield pack_row(held)


_encode = json.JSONEncoder(separators=(",", ":")).encode
"""`json.dumps` would make an encoder at each call."""


def checksum(*parts: object) -> int:
    """CRC-32 of these parts in a row."""
    return zlib.crc32(b"\0".join(part if isinstance(part, bytes) else str(part).encode() for part in parts))


def _fact_checksum(seq: int, kind: str, body: str) -> int:
    """The same for the parts of a fact, of which there are many."""
    return zlib.crc32(f"{seq}\0{kind}\0{body}".encode())
