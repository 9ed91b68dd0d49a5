"""Making a journal as small as it gets, without losing any of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from raysched.store.journal import Journal
from raysched.store.place import InUse, place_of
from raysched.store.reader import Reader
from raysched.store.upkeep import Keeper


def compact(url: str) -> dict[str, Any]:
    """Keep a snapshot, pack what fills a pack, and, where no ledger uses the journal, give the room back.
    Nothing is lost. Answers with `bytes_before`, `bytes_after`, how many facts were `packed`, and whether the
    journal was `in_use`. Raises StorageError."""
    with Reader(url) as reader:
        before = reader.bytes()
    with ExitStack() as held:
        try:
            held.enter_context(Journal(url))
            in_use = False
        except InUse:
            in_use = True
        with Keeper(url) as keeper:
            packed = keeper.pack(keeper.snapshot())
        if not in_use:
            place = place_of(url)
            place.shrink()
    with Reader(url) as reader:
        after = reader.bytes()
    return {"bytes_before": before, "bytes_after": after, "packed": packed, "in_use": in_use}
