"""A made-up Ray: which leases it holds on which machines. And the two backends as their actors use them, over
a network that delays, loses and repeats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from raysched.backends.base import EngineRefused, HoldAnswer
from raysched.core.lease import Group, Place
from raysched.core.request import WHOLE
from raysched.core.work import Hold, Launch, Owned, Run, Seen
from tests.simulation.chaos import Chaos, Lost
from tests.simulation.machines import Card, Machine, Process

T = TypeVar("T")

REHOLD_S = 180.0
"""Time in which leases have to be held again on a machine where Ray was started anew, though the ledger be
killed and messages take half a minute each meanwhile."""


@dataclass(slots=True)
class Held:
    """A lease that Ray holds. `ray_ids` are those of the nodes when it was made: a node of Ray that is not
    there any more holds nothing."""

    groups: tuple[Group, ...]
    places: tuple[Place, ...]
    ray_ids: tuple[str, ...]


class MadeUpRay:
    """All machines, and what Ray holds on them."""

    def __init__(self, chaos: Chaos, machines: Sequence[Machine]) -> None:
        self.chaos = chaos
        self.machines = {machine.name: machine for machine in machines}
        self.held: dict[str, Held] = {}
        self.changed = asyncio.Event()

    def alive(self) -> set[str]:
        """Ray's ids of the nodes that it knows."""
        return {machine.ray_id for machine in self.machines.values() if machine.ray_id is not None}

    def hold(self, hold: Hold) -> HoldAnswer:
        """Hold all places of a lease, or say why not."""
        there = self.held.get(hold.lease)
        if there is not None and self.whole(there):
            return HoldAnswer(hold.lease, there.groups)
        problem = self._absent(hold)
        if problem is None and there is not None:
            self.let_go(hold.lease)
        elif problem is None and self.chaos.happens("hold refused"):
            problem = "Ray did not make the placement group in time"
        problem = problem or next((why for place in hold.places if (why := self._lack(place))), None)
        if problem is not None:
            self.chaos.note("hold refused", hold.lease, problem)
            return HoldAnswer(hold.lease, refused=problem)
        groups = tuple(Group(self.chaos.id(), number) for number in range(len(hold.places)))
        ids = tuple(self.machines[place.node].ray_id or "" for place in hold.places)
        self.held[hold.lease] = Held(groups, hold.places, ids)
        self.chaos.note("held", hold.lease)
        return HoldAnswer(hold.lease, groups)

    def whole(self, held: Held) -> bool:
        """Whether every node of it is still the one that it was made on."""
        return set(held.ray_ids) <= self.alive()

    def _absent(self, hold: Hold) -> str | None:
        """Which node or GPU of a hold is not there. What else of it is held stays so."""
        for place in hold.places:
            machine = self.machines[place.node]
            if machine.ray_id is None:
                return f"{place.node} is not in Ray"
            for part in place.slices:
                if machine.cards[part.gpu].hidden:
                    return f"{place.node} no longer has {part.gpu}"
        return None

    def _lack(self, place: Place) -> str | None:
        machine = self.machines[place.node]
        for part in place.slices:
            card = machine.cards[part.gpu]
            if card.taken or self.share_held(machine, part.gpu) + part.share > WHOLE:
                return f"{part.gpu} is not free in Ray"
        return None

    def share_held(self, machine: Machine, gpu: str) -> int:
        """How much of a GPU Ray has given to leases."""
        return sum(
            part.share
            for held in self.held.values()
            for place, ray_id in zip(held.places, held.ray_ids, strict=True)
            for part in place.slices
            if part.gpu == gpu and ray_id == machine.ray_id
        )

    def may_be_taken(self, machine: Machine, card: Card) -> bool:
        """Whether Ray would give a GPU to somebody. Where Ray was started anew a moment ago, what runs there
        is not held again yet: nothing can be done about that, so nobody comes then."""
        held = self.share_held(machine, card.info.uuid)
        young = asyncio.get_running_loop().time() < machine.ray_since + REHOLD_S
        return machine.ray_id is not None and not held and not card.taken and not young

    def let_go(self, lease: str) -> None:
        """Give a hold back; the actors in it die with it."""
        if self.held.pop(lease, None) is None:
            return
        for machine in self.machines.values():
            for process in machine.of_lease(lease):
                if process.ray:
                    machine.finish(process)
        self.chaos.note("let go", lease)

    def enter(self, owned: Owned, what: str) -> list[tuple[Machine, Process]]:
        """A client puts its actors into the groups of its lease. Raises Lost where they are not there."""
        lease = owned.lease or ""
        held = self.held.get(lease)
        if held is None or held.groups != owned.groups or not self.whole(held):
            raise Lost(f"the placement groups of {lease} are not there")
        if not all(self.machines[place.node].is_cut_for(place) for place in owned.places):
            raise Lost(f"the instances of {lease} are not there")
        entered: list[tuple[Machine, Process]] = []
        for place in owned.places:
            process = Process(lease, place, f"{what} in {lease}", ray=True)
            self.machines[place.node].begin(process)
            entered.append((self.machines[place.node], process))
        return entered


class Client:
    """A backend as its actor has it: one a process, and dead with it."""

    def __init__(self, name: str, ray: MadeUpRay, die: Callable[[], None]) -> None:
        self.name = name
        self.chaos = ray.chaos
        self.ray = ray
        self._die = die

    async def _ask(self, machine: Machine, what: str, do: Callable[[], T]) -> T:
        """Have something done on a machine."""

        async def serve() -> T:
            if not machine.reachable or machine.ray_id is None:
                await asyncio.sleep(self.chaos.dice.uniform(0, 10))
                raise Lost(f"{machine.name} does not answer")
            if what == "end processes":  # it waits until a GPU that is being cut is done
                async with machine.cutting:
                    pass
            return do()

        await self._line()
        answer = await self.chaos.call(f"{what} on {machine.name}", serve)
        await self._line()
        return answer

    async def _line(self) -> None:
        """A line at which this process may die."""
        if self.chaos.happens("killed amid a call"):
            self._die()
            await asyncio.Event().wait()

    # ------------------------------------------------------------ base.Backend

    def _mine(self) -> list[Machine]:
        """The machines on which this backend runs something."""
        return [m for m in self.ray.machines.values() if self.name in m.info.backends]

    async def observe(self) -> list[Seen]:
        seen: list[Seen] = []
        for machine in self._mine():
            try:
                seen += await self._ask(machine, "observe", lambda m=machine: self._seen(m))
            except Lost:
                continue
        self.chaos.dice.shuffle(seen)
        return seen

    def _seen(self, machine: Machine) -> list[Seen]:
        return [command.seen for command in machine.commands[self.name].values()]

    async def start(self, launch: Launch) -> None:
        machine = self.ray.machines[launch.place.node]
        await self._ask(machine, f"start {launch.run}", lambda: self._start(machine, launch))

    def _start(self, machine: Machine, launch: Launch) -> None:
        if launch.run not in machine.commands[self.name]:
            if self.chaos.happens("start refused"):
                raise EngineRefused("the disk is full")
            if launch.run in machine.refused or self.chaos.happens("start refused for good"):
                machine.refused.add(launch.run)
                raise EngineRefused("the entrypoint is no file", final=True)
        machine.start(self.name, launch)
        self._change()

    async def stop(self, run: Run, grace: float) -> None:
        machine = await self._home(run)
        await self._ask(machine, f"stop {run}", lambda: machine.stop(self.name, run, grace))
        self._change()

    async def _home(self, run: Run) -> Machine:
        """The machine that has the run; one that no machine has was never started, and any can note that."""
        mine = self._mine()
        found = [machine for machine in mine if run in machine.commands[self.name]]
        silent = [machine.name for machine in mine if not machine.reachable or machine.ray_id is None]
        if not found and silent:
            raise Lost(f"{run} may be on {silent}")
        return (found or mine)[0]

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        return b""

    async def forget(self, runs: frozenset[Run]) -> None:
        for machine in self._mine():
            await self._ask(machine, "forget", lambda m=machine: self._forget(m, runs))

    def _forget(self, machine: Machine, runs: frozenset[Run]) -> None:
        shelf = machine.commands[self.name]
        for run, command in list(shelf.items()):
            if run in runs and command.seen.state != "running":
                del shelf[run]
                self.chaos.note("forgotten", run)

    def _change(self) -> None:
        self.ray.changed.set()
        self.ray.changed = asyncio.Event()

    async def changed(self, timeout: float) -> None:
        try:
            await asyncio.wait_for(self.ray.changed.wait(), self.chaos.dice.uniform(0.1, timeout))
        except asyncio.TimeoutError:
            return

    async def close(self) -> None:
        return


class HoldingClient(Client):
    """The ray backend: it holds leases in Ray, too."""

    async def hold(self, holds: Sequence[Hold]) -> list[HoldAnswer]:
        return [await self._far("hold", lambda hold=hold: self.ray.hold(hold)) for hold in holds]

    async def release(self, hold: Hold) -> None:
        for place in hold.places:
            machine = self.ray.machines[place.node]
            await self._ask(machine, "end processes", lambda m=machine: m.end_processes(hold.lease))
        await self._far("let go", lambda: self.ray.let_go(hold.lease))

    async def held(self) -> dict[str, bool]:
        return await self._far("held", self._held)

    def _held(self) -> dict[str, bool]:
        return {lease: self.ray.whole(held) for lease, held in self.ray.held.items()}

    async def let_go(self, lease: str) -> None:
        for machine in self.ray.machines.values():
            if machine.ray_id is not None:
                await self._ask(machine, "end processes", lambda m=machine: m.end_processes(lease))
        await self._far("let go", lambda: self.ray.let_go(lease))

    async def outside(self) -> dict[str, tuple[str, ...]]:
        return await self._far("outside", self._taken)

    def _taken(self) -> dict[str, tuple[str, ...]]:
        return {
            name: tuple(uuid for uuid, card in machine.cards.items() if card.taken)
            for name, machine in self.ray.machines.items()
            if machine.ray_id is not None
        }

    async def _far(self, what: str, do: Callable[[], T]) -> T:
        async def serve() -> T:
            return do()

        await self._line()
        answer: Any = await self.chaos.call(what, serve)
        await self._line()
        return answer
