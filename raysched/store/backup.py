"""Backups: all facts of a journal in one file, itself a journal (SQLite), wherever the journal is.

A journal up to any fact is what it was at that moment, so a backup is made while the ledger writes on, and
neither waits for the other.
"""

from __future__ import annotations

import time
import uuid
from itertools import takewhile
from pathlib import Path
from typing import Any

from sqlalchemy import insert
from sqlalchemy.engine import Connection

from raysched.errors import Conflict, StorageError
from raysched.store import snapshots
from raysched.store.check import check
from raysched.store.file import url_of, write_new
from raysched.store.place import place_of
from raysched.store.reader import Reader
from raysched.store.tables import SCHEMA, in_packs, meta, packs, tables
from raysched.store.tables import snapshots as table


def backup(url: str, file: Path) -> dict[str, Any]:
    """Write all facts that are there now, and the newest snapshot, into a new `file`; each is checked on the
    way. Answers with `file`, the number of `facts` and the file's `bytes`.

    Raises Conflict where the file exists, StorageError where the journal is damaged or either can't be used.
    """
    if file.exists():
        raise Conflict(f"{file} exists already: name another file, or move it away")
    part = file.with_name(f"{file.name}.part")
    try:
        with Reader(url) as journal:
            last = journal.last()
            write_new(part, lambda connection: _copy(journal, last, connection, journal.id()))
        part.replace(file)  # a backup is there whole or not at all
    except OSError as problem:
        raise StorageError(f"the backup {file} can't be written: {problem.strerror}") from problem
    finally:
        part.unlink(missing_ok=True)
    return {"file": str(file), "facts": last, "bytes": file.stat().st_size}


def restore(file: Path, url: str) -> dict[str, Any]:
    """Put a backup in the place of the journal at `url`, which is kept aside. Answers with the number of
    `facts`, and where the journal is `aside`, None if there was none.

    Raises StorageError where the backup is damaged, or a ledger uses the journal.
    """
    if not file.is_file():
        raise StorageError(f"the backup {file} is not there; name another")
    found = check(url_of(file))
    if found.problems:
        raise StorageError(f"the backup {file} is damaged ({found.problems[0]}); take another one")
    place = place_of(url)
    try:
        with Reader(url_of(file)) as source:
            aside = place.replace(
                # As another journal: what was acknowledged after the backup is no longer asked for.
                lambda connection: _copy(source, found.facts, connection, uuid.uuid4().hex),
                time.strftime("%Y%m%d_%H%M%S", time.gmtime()),
            )
    finally:
        place.close()
    return {"facts": found.facts, "aside": aside}


def _copy(source: Reader, last: int, target: Connection, id: str) -> None:
    """Make the tables of the journal `id`, and fill them with the facts up to number `last`."""
    tables.create_all(target)
    target.execute(insert(meta), [{"name": "schema", "value": str(SCHEMA)}, {"name": "id", "value": id}])
    for pack in in_packs(takewhile(lambda row: row.seq <= last, source.rows())):
        target.execute(insert(packs), pack)
    for row in source.snapshots():
        if row.seq <= last and snapshots.whole(row):
            target.execute(insert(table), row._asdict())
            return
