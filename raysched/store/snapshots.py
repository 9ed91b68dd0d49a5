"""Snapshots: states that facts up to a number fold to, so that a start need not fold them all.

They save time and hold nothing of their own: one that is damaged, or was made by another version, is passed
over.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, get_args, get_type_hints

from sqlalchemy import delete, insert, select
from sqlalchemy.engine import Connection

from raysched import __version__
from raysched.core.codec import decode_state, encode_state
from raysched.core.state import State
from raysched.store.tables import checksum, dumps, snapshots

KEPT = 2
"""Snapshots kept: the newest, and one in case that one is damaged."""

_log = logging.getLogger(__name__)


def write(connection: Connection, row: dict[str, Any]) -> None:
    """Keep a snapshot, and of the older ones what is to be kept."""
    newest = select(snapshots.c.seq).order_by(snapshots.c.seq.desc()).limit(KEPT)
    connection.execute(delete(snapshots).where(snapshots.c.seq == row["seq"]))
    connection.execute(insert(snapshots), row)
    old = [seq for (seq,) in connection.execute(newest)][-1]
    connection.execute(delete(snapshots).where(snapshots.c.seq < old))


def row_of(state: State, seq: int, fact: int) -> dict[str, Any]:
    """The row of a snapshot: `state` is what facts up to number `seq` fold to, of which the last one has the
    checksum `fact`."""
    body = zlib.compress(dumps(encode_state(state)).encode(), 1)
    sum = checksum(seq, shape(), fact, body)
    return {"seq": seq, "shape": shape(), "fact": fact, "body": body, "checksum": sum}


def usable(rows: Iterable[Any], fact: Callable[[int], int | None]) -> Iterator[tuple[int, State]]:
    """Those of these snapshots that are whole, of this version, and of these facts: `fact` gives the checksum
    of a fact that is there. The others are passed over, and said to be."""
    for row in rows:
        if not whole(row):
            _log.warning("The snapshot after fact %d is damaged; it is passed over.", row.seq)
        elif row.fact != fact(row.seq):
            _log.warning("The snapshot after fact %d is of other facts; it is passed over.", row.seq)
        elif row.shape != shape():
            _log.info("The snapshot after fact %d is another version's; it is passed over.", row.seq)
        else:
            yield row.seq, state_of(row)


def whole(row: Any) -> bool:
    """Whether a row is as it was written."""
    return row.checksum == checksum(row.seq, row.shape, row.fact, row.body)


def state_of(row: Any) -> State:
    """The state in a row that is whole. Raises StorageError for one that this version can't read."""
    return decode_state(json.loads(zlib.decompress(row.body)))


@cache
def shape() -> str:
    """Names what made a snapshot: this version, and what its states consist of. `evolve` may make something
    else of the same facts in another one."""
    return f"{__version__} {checksum(_described(State)):08x}"


def _described(hint: Any, within: frozenset[Any] = frozenset()) -> str:
    """A type, and all types in it, as text."""
    if dataclasses.is_dataclass(hint) and hint not in within:
        hints, inner = get_type_hints(hint), within | {hint}
        fields = (
            f"{field.name}: {_described(hints[field.name], inner)}" for field in dataclasses.fields(hint)
        )
        return f"{hint}({', '.join(fields)})"
    parts = [_described(part, within) for part in get_args(hint)]
    return f"{getattr(hint, '__name__', hint)}[{', '.join(parts)}]" if parts else str(hint)
