"""The desk of the ledger: takes commands from many, has the book decide all that wait at once, and wakes
those who wait for changes. It needs an event loop and no Ray: tests run the very same under a made-up clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from raysched.actors.clock import Clock
from raysched.core.commands import Command, SetClock
from raysched.core.host import Host
from raysched.core.node import NodeInfo
from raysched.core.state import State
from raysched.core.wanted import host_partitions, known_runs, owned, partitions
from raysched.core.work import Change, Owned, Partition, Run
from raysched.store.book import Book, Event

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Entry:
    """Commands that wait to be decided, and the future of an answer for each."""

    told: Sequence[Command]
    done: asyncio.Future[list[Exception | None]]


class Desk:
    """Serves `book` by `clock`, which goes on from what the book knows of the time. `serve` has to run for
    anything to be decided, and `look_at_clock` now and then."""

    def __init__(self, book: Book, clock: Clock) -> None:
        self.book = book
        self.clock = clock
        self._inbox: asyncio.Queue[Entry] = asyncio.Queue()
        self._change = asyncio.Event()
        clock.resume(book.state.clock, book.state.latest)
        self._set_clock(clock.look())

    @property
    def state(self) -> State:
        """All that the ledger knows; to be read, never to be changed."""
        return self.book.state

    # ------------------------------------------------------------ decide, record, answer

    async def tell(self, told: Sequence[Command]) -> None:
        """Decide commands and return once their facts are written. Raises what the first refused one raises;
        the others are decided all the same."""
        if not told:
            return
        entry = Entry(told, asyncio.get_running_loop().create_future())
        self._inbox.put_nowait(entry)
        for refused in await entry.done:
            if refused is not None:
                raise refused

    async def serve(self) -> None:
        """Decide for ever. Raises StorageError where the journal can't be read any more."""
        while True:
            batch = [await self._inbox.get()]
            while not self._inbox.empty():
                batch.append(self._inbox.get_nowait())
            self._decide(batch)

    def _decide(self, batch: list[Entry]) -> None:
        before = self.book.changes
        answers = iter(self.book.decide([each for entry in batch for each in entry.told], self.clock.now()))
        if self.book.changes != before:
            self._wake()
        for entry in batch:
            own = list(islice(answers, len(entry.told)))
            if not entry.done.cancelled():
                entry.done.set_result(own)

    # ------------------------------------------------------------ the clock

    def look_at_clock(self) -> None:
        """If the wall clock jumped, move all known times as far, so that nothing expires by it."""
        jump = self.clock.look()
        if jump:
            self._set_clock(jump)

    def _set_clock(self, shift: int) -> None:
        """Write down what time it is now, after a shift. Between this and the clock's own shift nothing else
        is decided."""
        clock = self.clock
        (refused,) = self.book.decide([SetClock(clock.boot, clock.uptime(), shift)], clock.now())
        if refused is None:
            clock.shift(shift)
        else:
            log.warning("The clock was perhaps not written down: %s", refused)
            # What failed may be there all the same, and then all times have moved already.
            clock.resume(self.book.state.clock, self.book.state.latest)
        self._wake()

    # ------------------------------------------------------------ waiting for changes

    def _wake(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    async def until(self, ready: Callable[[], T], timeout: float) -> T:
        """What `ready` returns, once that is true, or at the end of the time (s)."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            change = self._change
            found = ready()
            left = deadline - loop.time()
            if found or left <= 0:
                return found
            try:
                await asyncio.wait_for(change.wait(), left)
            except asyncio.TimeoutError:
                return ready()

    async def newer(
        self, key: Hashable, derive: Callable[[State], T], version: int, timeout: float
    ) -> tuple[int, T]:
        """What `derive` makes of the state, with its version: as soon as that is not `version`, or at the end
        of the time (s). It is derived once a change for all who ask under the same `key`."""

        def ready() -> tuple[int, T] | None:
            current = self.book.derived(key, derive)
            return current if current[0] != version else None

        return await self.until(ready, timeout) or self.book.derived(key, derive)

    # ------------------------------------------------------------ what backends and owners ask

    async def wanted(self, backend: str, version: int, timeout: float) -> Change:
        """What must exist at a backend otherwise than at `version`: as soon as something does, or at the end
        of the time."""
        change = await self.until(lambda: self.book.wanted(backend, version), timeout)
        return change or Change(version, version, {})

    async def partitions(self, node: str, version: int, timeout: float) -> tuple[int, tuple[Partition, ...]]:
        """How the agent of a node has to cut its GPUs, and the version of that: as soon as it is not
        `version`, or at the end of the time."""
        return await self.newer(("partitions", node), lambda state: partitions(state, node), version, timeout)

    async def host_partitions(
        self, node: str, version: int, timeout: float
    ) -> tuple[int, tuple[Partition, ...]]:
        """The same for whoever watches a host of the inventory."""
        key = ("host partitions", node)
        return await self.newer(key, lambda state: host_partitions(state, node), version, timeout)

    async def hosts(self, version: int, timeout: float) -> tuple[int, tuple[Host, ...]]:
        """The inventory and its version: as soon as it is not `version`."""
        return await self.newer(("hosts",), _hosts, version, timeout)

    async def owned(self, owner: str, version: int, timeout: float) -> tuple[int, list[Owned]]:
        """The jobs of a client process and their version: as soon as it is not `version`."""
        return await self.newer(("owned", owner), lambda state: owned(state, owner), version, timeout)

    def forget(self, owner: str) -> None:
        """The client process is gone and will not ask again."""
        self.book.drop(("owned", owner))

    async def events(self, after: int, job: str | None, timeout: float) -> list[Event]:
        """The events after number `after`, at least one unless the time ends first."""

        def ready() -> list[Event]:
            events = self.book.events(after)
            return [event for event in events if job is None or job in (event["job"], event["group"])]

        return await self.until(ready, timeout)

    async def nodes(self) -> dict[str, NodeInfo]:
        """The nodes that are there, as their agents described them."""
        return {name: node.info for name, node in self.state.nodes.items() if node.lost is None}

    async def names(self) -> dict[str, tuple[str, ...]]:
        """The names that nodes and hosts have, also those that are lost or were not reached yet, and by which
        backends each is."""
        hosts = dict.fromkeys(self.state.hosts, ("vm",))
        return hosts | {name: node.info.backends for name, node in self.state.nodes.items()}

    async def known(self, backend: str) -> frozenset[Run]:
        """The runs that are remembered; a backend may delete the files of others."""
        return known_runs(self.state, backend)


def _hosts(state: State) -> tuple[Host, ...]:
    return tuple(known.host for known in state.hosts.values())
