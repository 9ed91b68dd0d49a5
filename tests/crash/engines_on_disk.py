"""Backends whose engines are a file (`outer_world.py`): what they start outlives whoever asked for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence

from raysched.backends.base import EngineRefused, HoldAnswer
from raysched.core.lease import Group
from raysched.core.work import Hold, Launch, Run, Seen
from tests.crash.fate import Fate
from tests.crash.outer_world import World, written

REFUSED = 0.05
"""How often an engine says no."""


class DiskBackend:
    """Runs that go on until the world ends them."""

    def __init__(self, name: str, world: World, fate: Fate, chance: random.Random) -> None:
        self.name = name
        self.world = world
        self.fate = fate
        self.chance = chance

    async def observe(self) -> list[Seen]:
        """All runs of the world that this backend started, but for those it forgot."""
        self.world.read()
        running = [Seen(Run.parse(id), "running") for id in self.world.running if self._mine(id)]
        ended = [
            Seen(Run.parse(id), "exited", code=code)
            for id, code in self.world.codes.items()
            if self._mine(id) and id not in self.world.forgotten
        ]
        return running + ended

    def _mine(self, id: str) -> bool:
        """The name of a run's backend begins its job's id."""
        return id.startswith(self.name)

    async def start(self, launch: Launch) -> None:
        """Start a run, or refuse to."""
        await self._work("a start")
        id = str(launch.run)
        self.world.read()
        known = id in self.world.running or (id in self.world.codes and id not in self.world.forgotten)
        if known:
            return
        if (launch.lease, launch.place.node) in self.world.over:
            # Noted there, as in a run folder: this start comes too late.
            self._act("a start", "exit", id, 143)
            return
        if self.chance.random() < REFUSED:
            raise EngineRefused("the engine is busy", final=self.chance.random() < 0.2)
        self._act("a start", "start", id, launch.lease, written([launch.place]))

    async def stop(self, run: Run, grace: float) -> None:
        """End a run; one that was not started never will be."""
        await self._work("a stop")
        self.world.read()
        if str(run) not in self.world.codes:
            self._act("a stop", "exit", str(run), 143)

    async def release(self, hold: Hold) -> None:
        """End what runs under the lease on these nodes, then let go of it there."""
        await self._release(hold.lease, {place.node for place in hold.places})

    async def _release(self, lease: str, nodes: Collection[str]) -> None:
        await self._work("a release")
        self.world.read()
        for id in self.world.runs_of(lease, nodes):
            self._act("a release", "exit", id, 137)
        for node in sorted(nodes):
            if (lease, node) not in self.world.over:
                self._act("a release", "release", lease, node)

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """Nothing was written."""
        return b""

    async def forget(self, runs: frozenset[Run]) -> None:
        """Drop these, where they ended."""
        names = {str(run) for run in runs}
        for id in [id for id in self.world.codes if self._mine(id)]:
            if id in names and id not in self.world.forgotten:
                self._act("to forget", "forget", id)

    async def changed(self, timeout: float) -> None:
        """The world doesn't tell: look again soon."""
        await asyncio.sleep(min(timeout, 0.5))

    async def close(self) -> None:
        """Nothing to let go of."""

    async def _work(self, what: str) -> None:
        self.fate.step(f"before {what}")
        await asyncio.sleep(self.chance.uniform(0, 0.3))

    def _act(self, what: str, *words: object) -> None:
        self.fate.step(f"within {what}, before it is done")
        self.world.say(*words)
        self.fate.step(f"within {what}, after it was done")


class HoldingDiskBackend(DiskBackend):
    """The same, which also keeps leases as Ray does."""

    async def hold(self, holds: Sequence[Hold]) -> list[HoldAnswer]:
        """Hold them, or refuse to."""
        await self._work("a hold")
        return [self._hold(hold) for hold in holds]

    def _hold(self, hold: Hold) -> HoldAnswer:
        self.world.read()
        if hold.lease not in self.world.held:
            if self.chance.random() < REFUSED:
                return HoldAnswer(hold.lease, refused="a placement group did not come")
            self._act("a hold", "hold", hold.lease, written(hold.places))
        return HoldAnswer(hold.lease, tuple(Group(hold.lease, 0) for _ in hold.places))

    async def held(self) -> dict[str, bool]:
        """All that is held is held whole."""
        self.world.read()
        return dict.fromkeys(self.world.held, True)

    async def let_go(self, lease: str) -> None:
        """As after a release."""
        await self._release(lease, self.world.managed)

    async def outside(self) -> dict[str, tuple[str, ...]]:
        """Nobody else uses Ray."""
        return {}
