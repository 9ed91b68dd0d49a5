"""Closes the difference between what the ledger wants and what a backend has, for ever.

It decides nothing. Each round asks the ledger what must exist, looks at what does, starts and stops what
differs, and reports; it may die between any two lines and be started again. It needs an event loop and no
Ray, so that tests run the very same under a made-up clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from typing import Any, Protocol

from raysched import tasks
from raysched.backends.base import Backend, EngineRefused, Holding, Mirroring, Releasing, Spread
from raysched.backends.difference import GOES_ON, difference
from raysched.core.commands import Command, Denied, Gone, Held, NodeGone, NodeSeen, Outside, Report
from raysched.core.node import NodeInfo
from raysched.core.work import NOTHING, Change, Hold, Launch, Run, Seen, Stop, Wanted
from raysched.errors import Unreachable

LOOK_S = 5.0
"""Longest time between two looks at a backend in which nothing seems to change."""
PAUSE_S = 0.02
"""Shortest time between two looks: many changes at once are seen in one."""
EACH_S = 0.0001
"""How much longer it is for each run that was seen: a look at many takes its time."""
RETRY_S = 1.0
"""Time before a round, a release or a hold that failed is tried again."""
INSPECT_S = 3.0
"""Time between two looks at what is held."""
MIRROR_S = 1.0
"""Time between two looks at a site."""
MIRROR_ALL_S = 15.0
"""Time after which the ledger is told again what it was told of a site's nodes before."""
FORGET_S = 60.0

Told = tuple[type, str]
"""What kind of thing was told of which node."""

log = logging.getLogger(__name__)


class Ledger(Protocol):
    """What a reconciler asks of the ledger. Any call may fail, and is made again."""

    async def wanted(self, backend: str, version: int, timeout: float) -> Change:
        """What must exist at a backend otherwise than at `version`: as soon as something does, or at the end
        of the time."""
        ...

    async def tell(self, told: Sequence[Command]) -> None:
        """Return once what follows from the commands is written."""
        ...

    async def nodes(self) -> dict[str, NodeInfo]:
        """The nodes that are there, by name."""
        ...

    async def known(self, backend: str) -> frozenset[Run]:
        """The runs that are remembered."""
        ...


class Reconciler:
    """Drives one backend, as its only caller."""

    def __init__(self, backend: Backend, ledger: Ledger) -> None:
        self._backend = backend
        self._ledger = ledger
        self._wanted = Wanted()
        self._version = -1
        self._news = asyncio.Event()
        self._told: dict[Run, Seen] = {}
        self._held: dict[str, Held] = {}
        self._busy: dict[Hashable, asyncio.Task[None]] = {}
        self._seen = 0
        self._again: asyncio.TimerHandle | None = None
        # What the ledger was told last of the nodes of a site, and when it was told all of it.
        self._mirrored: dict[Told | None, Command] = {}
        self._mirrored_all = float("-inf")
        # How many refusals the ledger was told; how many of them it knew when `_wanted` was asked for; and
        # the number of the last one of each run.
        self._refusals = 0
        self._heard = 0
        self._refused: dict[Run, int] = {}

    async def run(self) -> None:
        """Go on until cancelled."""
        steps: list[Callable[[], Awaitable[None]]] = [self._listen, self._round, self._look, self._forget]
        if isinstance(self._backend, Holding):
            steps.append(self._inspect)
        if isinstance(self._backend, Mirroring):
            steps.append(self._mirror)
        try:
            await tasks.together(*(self._for_ever(step) for step in steps))
        finally:
            await tasks.stop(*self._busy.values())
            if self._again is not None:
                self._again.cancel()

    async def _for_ever(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except Unreachable as error:
                log.warning("backend %s: %s", self._backend.name, error)
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("backend %s: a step failed and is tried again", self._backend.name)
                await asyncio.sleep(RETRY_S)
                self._news.set()

    # ------------------------------------------------------------ what leads to a round

    async def _listen(self) -> None:
        """Wait until the ledger wants something else."""
        refusals, before = self._refusals, self._wanted
        change = await self._ledger.wanted(self._backend.name, self._version, LOOK_S)
        self._wanted = before.after(change)
        more, self._heard = refusals > self._heard, refusals
        if self._version != -1:
            self._start_new(before, change)
        self._version = change.version
        await asyncio.sleep(0)  # what starts is on its way before the ledger is asked again
        if more or self._asks_for_a_look(before, change):
            self._news.set()

    def _asks_for_a_look(self, before: Wanted, change: Change) -> bool:
        """Whether there may be more to do than to start what is new; where all that changed is that runs are
        wanted no more of which the ledger was told that they have ended, there is not."""
        if change.since is None:
            return True
        for lease, part in change.parts.items():
            if part.stops or part.hold or part.release:
                return True
            runs = {launch.run for launch in part.launches}
            for launch in before.parts.get(lease, NOTHING).launches:
                told = self._told.get(launch.run)
                if launch.run not in runs and (told is None or told.state in GOES_ON):
                    return True
        return False

    def _start_new(self, before: Wanted, change: Change) -> None:
        """Start at once what was not wanted before: a look would show nothing of it, and takes time."""
        for lease, part in change.parts.items():
            known = before.parts.get(lease, NOTHING).launches
            runs = {launch.run for launch in known}
            for launch in part.launches:
                if launch.run not in runs and self._refused.get(launch.run, 0) <= self._heard:
                    self._do(launch.run, self._start(launch))

    async def _look(self) -> None:
        """Wait until the backend seems to have changed."""
        await self._backend.changed(LOOK_S)
        self._news.set()
        await asyncio.sleep(PAUSE_S + self._seen * EACH_S)

    def _look_again(self) -> None:
        """Have a look, which soon follows another."""
        if self._again is None:
            self._again = asyncio.get_running_loop().call_later(self._seen * EACH_S, self._look_now)

    def _look_now(self) -> None:
        self._again = None
        self._news.set()

    # ------------------------------------------------------------ one round

    async def _round(self) -> None:
        await self._news.wait()
        self._news.clear()
        if self._version == -1:
            return
        seen = await self._backend.observe()
        wanted = self._wanted  # what is wanted now: a look may take long
        if isinstance(self._backend, Spread):
            self._backend.locate(_homes(wanted))
        self._seen = len(seen)
        actions = difference(wanted, seen, self._told)
        for launch in actions.start:
            if self._refused.get(launch.run, 0) <= self._heard:
                self._do(launch.run, self._start(launch))
        for stop in actions.stop:
            self._do(stop.run, self._stop(stop))
        for run in actions.forget:
            self._do(run, self._backend.forget(frozenset({run})))
        if isinstance(self._backend, Holding):
            self._close_holds(wanted, self._backend)
        if isinstance(self._backend, Releasing):
            for hold in wanted.releases:
                self._do(hold.lease, self._release(self._backend, hold))
        await self._report(actions.report)

    def _do(self, key: Hashable, step: Coroutine[Any, Any, None]) -> None:
        """Do one thing for a run or a lease, unless something is being done for it already."""
        if key in self._busy:
            step.close()
            return
        self._busy[key] = asyncio.create_task(self._finish(key, step))

    async def _finish(self, key: Hashable, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
        except Unreachable as error:  # a machine that is away for hours is no fault of ours
            log.warning("backend %s: %s is tried again: %s", self._backend.name, key, error)
            await asyncio.sleep(RETRY_S)
        except Exception:
            log.exception("backend %s: %s failed and is tried again", self._backend.name, key)
            await asyncio.sleep(RETRY_S)
        finally:
            del self._busy[key]
            self._look_again()

    async def _start(self, launch: Launch) -> None:
        try:
            await self._backend.start(launch)
        except EngineRefused as refused:
            try:
                await self._ledger.tell([Denied(launch.lease, refused.reason, refused.final)])
            finally:
                # The ledger may have given the GPUs to another by now. What it wanted before is no reason to
                # start the run after all: only what it says when asked after this.
                self._refusals += 1
                self._refused[launch.run] = self._refusals

    async def _stop(self, stop: Stop) -> None:
        await self._backend.stop(stop.run, stop.grace)

    async def _report(self, seen: tuple[Seen, ...]) -> None:
        if seen:
            await self._ledger.tell([Report(each) for each in seen])
            self._told.update({each.run: each for each in seen})

    # ------------------------------------------------------------ holds

    def _close_holds(self, wanted: Wanted, holding: Holding) -> None:
        leases = {hold.lease for hold in wanted.holds}
        for gone in self._held.keys() - leases:
            del self._held[gone]
        # One at a time for a lease, so that none is let go while it is being made; and no lease waits for
        # another that is slow to be held or to be refused.
        for hold in wanted.holds:
            if hold.lease not in self._held:
                self._do(hold.lease, self._hold(holding, hold))

    async def _hold(self, holding: Holding, hold: Hold) -> None:
        for answer in await holding.hold([hold]):
            if answer.refused is not None:
                await self._ledger.tell([Denied(answer.lease, answer.refused)])
                await asyncio.sleep(RETRY_S)  # the ledger may want it all the same: work of it runs already
            else:
                held = Held(answer.lease, answer.groups)
                await self._ledger.tell([held])
                self._held[answer.lease] = held

    async def _release(self, holding: Releasing, hold: Hold) -> None:
        await holding.release(hold)
        there = tuple(place.node for place in hold.places)
        await self._ledger.tell([Gone(hold.lease, there, self._backend.name)])

    async def _inspect(self) -> None:
        """See whether what is held is what should be, and what others hold."""
        await asyncio.sleep(INSPECT_S)
        assert isinstance(self._backend, Holding)
        if self._version != -1:
            self._compare(self._backend, await self._backend.held())
        outside = await self._backend.outside()
        nodes = await self._ledger.nodes()
        managed = [name for name, info in nodes.items() if info.ray_id is not None]
        await self._ledger.tell([Outside(node, outside.get(node, ())) for node in managed])

    async def _mirror(self) -> None:
        """Tell the ledger what the site is like; of its nodes, which may be thousands, mostly what is new."""
        assert isinstance(self._backend, Mirroring)
        found = await self._backend.mirror()
        now = asyncio.get_running_loop().time()
        known, self._mirrored = self._mirrored, {}  # of what can't be told, nobody knows whether it was heard
        if now - self._mirrored_all >= MIRROR_ALL_S:
            known, self._mirrored_all = {}, now
        await self._ledger.tell([each for each in found if known.get(_of_node(each)) != each])
        self._mirrored = {_of_node(each): each for each in found}
        self._mirrored.pop(None, None)
        await asyncio.sleep(MIRROR_S)

    def _compare(self, holding: Holding, held: dict[str, bool]) -> None:
        """What is held no more, as Ray started anew on a node, is held again; what is held for a lease that
        the ledger does not know is let go: it was restored from a backup, or a call had its effect late."""
        for lease in [lease for lease, its in self._held.items() if its.groups and not held.get(lease)]:
            del self._held[lease]
            self._news.set()
        known = {hold.lease for hold in (*self._wanted.holds, *self._wanted.releases)}
        for stray in [lease for lease in held if lease not in known]:
            self._do(stray, holding.let_go(stray))

    async def _forget(self) -> None:
        await asyncio.sleep(FORGET_S)
        # Looked at first: what starts after the ledger has answered is not among what is deleted.
        seen = {each.run for each in await self._backend.observe()}
        known = await self._ledger.known(self._backend.name)
        await self._backend.forget(frozenset(seen - known))
        self._told = {run: seen for run, seen in self._told.items() if run in known}
        self._refused = {run: number for run, number in self._refused.items() if run in known}


def _of_node(command: Command) -> Told | None:
    """What a command tells of which node of a site; None where it tells something else."""
    if isinstance(command, NodeSeen):
        return NodeSeen, command.node.name
    if isinstance(command, NodeGone | Outside):
        return type(command), command.node
    return None


def _homes(wanted: Wanted) -> dict[Run, str]:
    """The nodes of the runs that are launched or stopped, where the ledger knows them."""
    homes = {launch.run: launch.host or launch.place.node for launch in wanted.launches}
    homes.update((stop.run, stop.node) for stop in wanted.stops if stop.node)
    return homes
