"""The ledger without Ray: decides a batch of commands in order, writes its facts in one transaction, and only
then answers.

If a write fails, memory is thrown away and folded anew from the journal, and every command of the batch gets
the error. Nothing here waits or reads a clock: `now` is milliseconds since 1970, given by the caller.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

from raysched.core.commands import Command, Tick
from raysched.core.events import event_view
from raysched.core.facts import Fact
from raysched.core.following import Following
from raysched.core.scheduler import Scheduler
from raysched.core.state import State
from raysched.core.work import Change
from raysched.errors import RayschedError, StorageError
from raysched.store.journal import Journal
from raysched.store.reader import fold

T = TypeVar("T")
Event = dict[str, Any]

EVENTS_KEPT = 10_000
"""Events kept in memory; who asks for older ones gets them from the journal."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Derived:
    """Something derived from the state: what it was when last asked for, after how many changes that was,
    and its version, which is another one whenever the value is."""

    change: int
    version: int
    value: Any


class Book:
    """The ledger's memory and its journal. Raises StorageError where the journal can't be read.

    `version` is where the versions of what is derived begin: another one each time a journal is opened, so
    that a version which an earlier book gave out is never taken for one of this book's. A snapshot is kept
    every `snapshot_every` facts; with None that is left to the journal's upkeep, for which nothing waits.
    """

    def __init__(self, journal: Journal, version: int, snapshot_every: int | None = None) -> None:
        self.changes = 0
        self._journal = journal
        self._version = version
        self._snapshot_every = snapshot_every
        self._derived: dict[Hashable, Derived] = {}
        self._followed: dict[str, Following] = {}
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._fold()

    @property
    def state(self) -> State:
        """All that the ledger knows; to be read, never to be changed."""
        return self._scheduler.state

    def decide(self, batch: Sequence[Command], now: int) -> list[Exception | None]:
        """Decide the commands in order and write what follows. One answer for each: None, or why it was
        refused. Raises StorageError where the journal could neither be written nor read again: this book is
        then of no more use."""
        answers: list[Exception | None] = []
        try:
            facts = [fact for command in batch for fact in self._handle(command, now, answers)]
            if facts or any(isinstance(command, Tick) for command in batch):
                facts += self._scheduler.schedule(now)
            if facts:
                self._record(facts)
        except Exception as error:
            log.exception("The batch was not written; the state is read again from the journal.")
            self._fold()
            return [error] * len(batch)
        return answers

    def _handle(self, command: Command, now: int, answers: list[Exception | None]) -> list[Fact]:
        try:
            facts = self._scheduler.handle(command, now)
        except RayschedError as error:
            answers.append(error)
            return []
        answers.append(None)
        return facts

    def _record(self, facts: list[Fact]) -> None:
        last = self._journal.append(facts)
        for seq, fact in enumerate(facts, last - len(facts) + 1):
            event = event_view(self.state, seq, fact)
            if event is not None:
                self._events.append(event)
        self.seq = last
        self.changes += 1
        if self._snapshot_every is not None and last - self._snapshot_seq >= self._snapshot_every:
            self._snapshot()

    def _snapshot(self) -> None:
        """Keep a snapshot; without it the next start only takes longer."""
        self._snapshot_seq = self.seq
        try:
            self._journal.snapshot(self.state, self.seq)
        except StorageError as error:
            log.warning("No snapshot was kept: %s", error)

    def _fold(self) -> None:
        state, self.seq = fold(self._journal)
        self._snapshot_seq = self.seq
        self._scheduler = Scheduler(state, self._hear)
        for following in self._followed.values():
            following.lose_track()
        self._events.clear()  # a batch that failed may have been written all the same
        self.changes += 1

    # ------------------------------------------------------------ what follows from the state

    def _hear(self, state: State, fact: Fact) -> None:
        for following in self._followed.values():
            following.hear(state, fact)

    def wanted(self, backend: str, version: int) -> Change | None:
        """What changed of what must exist at a backend since `version`; None where nothing did."""
        following = self._followed.get(backend)
        if following is None:
            following = self._followed[backend] = Following(backend, self._version)
        return None if following.version(self.state) == version else following.since(version)

    def derived(self, key: Hashable, derive: Callable[[State], T]) -> tuple[int, T]:
        """The version and the value of what `derive` makes of the state. It is derived once a change, however
        many ask for it, and kept under `key` until `drop`."""
        known = self._derived.get(key)
        if known is None:
            known = self._derived[key] = Derived(self.changes, self._version, derive(self.state))
        elif known.change != self.changes:
            value = derive(self.state)
            if value != known.value:
                known.version, known.value = known.version + 1, value
            known.change = self.changes
        return known.version, known.value

    def drop(self, key: Hashable) -> None:
        """Forget what is kept under `key`."""
        self._derived.pop(key, None)

    def events(self, after: int) -> Iterable[Event]:
        """The events after number `after`, the oldest first, and no more than EVENTS_KEPT of them."""
        if after >= self.seq:
            return []
        if self._events and self._events[0]["seq"] <= after + 1:
            newest = list(takewhile(lambda event: event["seq"] > after, reversed(self._events)))
            return reversed(newest)
        found = (event_view(self.state, seq, fact) for seq, fact in self._journal.facts(after))
        return [event for event in found if event is not None][:EVENTS_KEPT]
