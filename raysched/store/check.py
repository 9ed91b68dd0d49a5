"""Checking a journal from its first fact to its last, while a ledger writes it or none does."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy.engine import URL

from raysched.core.state import State
from raysched.core.validate import validate
from raysched.errors import StorageError
from raysched.store import snapshots
from raysched.store.reader import Reader, fold_in, no_collection


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot: the number of its last fact, and whether a start can use it. One that another version made
    can't be used, and is not wrong."""

    seq: int
    usable: bool


@dataclass(slots=True)
class Findings:
    """What a journal holds, and what is wrong with it, a sentence each. `facts` counts those that are whole,
    `packed` those among them that are packed; `bytes` is what it takes on the disk."""

    journal: str
    schema: int
    bytes: int
    facts: int = 0
    packed: int = 0
    jobs: int = 0
    snapshots: list[Kept] = field(default_factory=list[Kept])
    problems: list[str] = field(default_factory=list[str])

    def document(self) -> dict[str, Any]:
        """The same for JSON."""
        return {**asdict(self), "ok": not self.problems}


def check(url: str | URL) -> Findings:
    """Read all of a journal: checksums, numbers, whether it folds, and whether each snapshot is what its
    facts fold to. Raises StorageError where it can't be opened, ConfigError for a URL that names none."""
    with Reader(url) as journal:
        found = Findings(journal.place.where, journal.schema, journal.bytes(), packed=journal.packed())
        found.problems += journal.complaints()
        if (lost := journal.lost()) is not None:
            found.problems.append(f"facts {lost[0]} to {lost[1]} were acknowledged and are missing")
        kept = _snapshots(journal, found)
        with no_collection():
            _fold(journal, found, kept)
    return found


def _snapshots(journal: Reader, found: Findings) -> dict[int, State]:
    """Those that a start could use, by the number of their last fact."""
    usable: dict[int, State] = {}
    for row in journal.snapshots():
        if (problem := _problem_of(journal, row)) is not None:
            found.problems.append(f"the snapshot after fact {row.seq} {problem}; a start passes it over")
        elif row.shape == snapshots.shape():
            usable[row.seq] = snapshots.state_of(row)
        found.snapshots.append(Kept(row.seq, row.seq in usable))
    return usable


def _problem_of(journal: Reader, row: Any) -> str | None:
    if not snapshots.whole(row):
        return "is damaged"
    try:
        return None if row.fact == journal.checksum(row.seq) else "is of other facts"
    except StorageError as problem:
        return f"has no fact before it that can be read ({problem})"


def _fold(journal: Reader, found: Findings, kept: dict[int, State]) -> None:
    state = State()
    try:
        for seq, fact in journal.facts():
            fold_in(journal, state, seq, fact)
            found.facts = seq
            if seq in kept and kept.pop(seq) != state:
                found.problems.append(f"the snapshot after fact {seq} is not what the facts fold to")
        validate(state)
    except StorageError as problem:
        found.problems.append(str(problem))
    except AssertionError as broken:
        found.problems.append(f"what the facts fold to can't be: {broken}")
    found.jobs = len(state.jobs)
