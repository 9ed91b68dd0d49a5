"""One simulation: first everything goes wrong that can, then nothing does and all has to come to its end.

The production core, journal, book, desk, clock and reconciler run in made-up time over made-up machines. One
seed makes one history, event by event: what fails once fails again.

    python -m tests.simulation.simulation SEED       shows the history of one seed
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from raysched.core import decide
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import WHOLE
from raysched.core.work import Run
from raysched.gpu.geometries import geometry_of
from tests.simulation import made_up_time
from tests.simulation.chaos import Chaos
from tests.simulation.hosts import AgentProcess, BackendProcess, LedgerProcess
from tests.simulation.machines import Machine
from tests.simulation.made_up_ray import MadeUpRay
from tests.simulation.people import People
from tests.simulation.verdict import check_history, left_over

CHAOS_S = 400.0
PATIENCE_S = 1500.0
"""Made-up seconds within which everything has to be over once nothing goes wrong any more."""
JOBS_KEPT = 30
"""As in core/decide.py, but small, so that jobs are forgotten."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one seed: `problem` is empty if every promise was kept."""

    seed: int
    events: int
    digest: str
    problem: str
    last: tuple[str, ...]


def simulate(seed: int, echo: Callable[[str], None] | None = None) -> Result:
    """Run the history of one seed."""
    logger = logging.getLogger("raysched")
    listener = _Listener()
    level, logger.propagate = logger.level, False
    logger.addHandler(listener)
    try:
        with tempfile.TemporaryDirectory(dir=_fast()) as folder, patch.object(decide, "JOBS_KEPT", JOBS_KEPT):
            return made_up_time.run(_history(seed, Path(folder), listener, echo))
    finally:
        logger.removeHandler(listener)
        logger.propagate = True
        logger.setLevel(level)


def _fast() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


class _Listener(logging.Handler):
    """Hears what the production code logs: an error that is no answer was a bug."""

    chaos: Chaos | None = None

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if self.chaos is not None and error is not None:
            with suppress(BaseException):
                self.chaos.tolerate(error)


async def _history(
    seed: int, folder: Path, listener: _Listener, echo: Callable[[str], None] | None
) -> Result:
    chaos = listener.chaos = Chaos(seed, echo)
    world = World(chaos, folder)
    try:
        await world.run()
        problem = "" if chaos.broken is None else f"{type(chaos.broken).__name__}: {chaos.broken}"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    return Result(seed, chaos.events, chaos.digest, problem, tuple(chaos.last))


class World:
    """Machines, processes and people."""

    def __init__(self, chaos: Chaos, folder: Path) -> None:
        self.chaos = chaos
        started: Counter[Run] = Counter()
        self.ray = MadeUpRay(chaos, [Machine(chaos, info, started) for info in some_nodes()])
        self.ledger = LedgerProcess(chaos, self.ray, folder)
        self.people = People(chaos, self.ray, self.ledger)
        machines = list(self.ray.machines.values())
        self.processes = [
            self.ledger,
            BackendProcess("vm", self.ray, self.ledger),
            BackendProcess("ray", self.ray, self.ledger),
            *(AgentProcess(machine, self.ledger) for machine in machines),
        ]
        self.mishaps = [
            self._wall_clock(),
            *(
                step(machine)
                for machine in machines[1:]
                for step in (self._silent, self._reboot, self._cut_off)
            ),
            *(step(machine) for machine in machines for step in (self._taken, self._stranger, self._vanish)),
            *(step(m) for m in machines for step in (self._cut_by_hand, self._fails, self._drained)),
        ]
        self.tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Chaos, then calm until all is over; then look at all that was written."""
        for process in self.processes:
            self._spawn(process.run())
        self._spawn(self.people.submit_for_ever())
        self._spawn(self.people.programs_for_ever())
        troubles = [self._spawn(mishap) for mishap in self.mishaps]
        await self._pass(CHAOS_S)
        self.chaos.calm = True
        self.chaos.note("calm")
        for trouble in troubles:
            trouble.cancel()
        self._heal()
        await self._until_over()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.chaos.broken is None:
            self.ledger.journal.close()
            check_history(self.ledger.url, self.ledger.desk, self.people, self.ray)

    def _spawn(self, step: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(step))
        self.chaos.watch(self.tasks[-1])
        return self.tasks[-1]

    async def _pass(self, seconds: float) -> None:
        """Let time go by, unless a promise is broken."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.chaos.over.wait(), seconds)
        if self.chaos.broken is not None:
            raise self.chaos.broken

    async def _until_over(self) -> None:
        end = asyncio.get_running_loop().time() + PATIENCE_S
        while left := left_over(self.ledger.desk, self.people, self.ray):
            await self._pass(5)
            assert asyncio.get_running_loop().time() < end, f"does not come to an end: {'; '.join(left[:8])}"

    def _heal(self) -> None:
        for machine in self.ray.machines.values():
            machine.reachable = True
            if machine.ray_id is None:
                machine.ray_starts()
            for card in machine.cards.values():
                card.hidden, card.taken, card.stranger = False, False, 0
                machine.report(card, "")
            self._spawn(self._use_again(machine))

    async def _use_again(self, machine: Machine) -> None:
        await asyncio.sleep(40)  # what was said again before is heard by then
        await self.people.drain(machine.name, on=False)

    # ------------------------------------------------------------ what happens by itself

    async def _wall_clock(self) -> None:
        while await self.chaos.next("wall clock jumps"):
            jump = self.chaos.dice.choice((-3_600_000, 3_600_000, 172_800_000, 5_000, -5_000, 400))
            self.ledger.wall_off += jump
            self.chaos.note("the wall clock jumps by", jump)

    async def _silent(self, machine: Machine) -> None:
        while await self.chaos.next("agent silent"):
            self.chaos.note("silent:", machine.name)
            machine.reachable = False
            await asyncio.sleep(self.chaos.dice.uniform(1, 40))
            machine.reachable = True

    async def _reboot(self, machine: Machine) -> None:
        while await self.chaos.next("node reboots"):
            if machine.ray_id is not None:
                self.chaos.note("reboots:", machine.name)
                machine.reboot()
                await self._come_back(machine)

    async def _cut_off(self, machine: Machine) -> None:
        while await self.chaos.next("node cut off"):
            if machine.ray_id is not None:
                self.chaos.note("cut off:", machine.name)
                machine.ray_dies()
                await self._come_back(machine)

    async def _come_back(self, machine: Machine) -> None:
        await asyncio.sleep(self.chaos.dice.choice((3, 30, 200)) * self.chaos.dice.uniform(0.5, 1))
        machine.ray_starts()

    async def _taken(self, machine: Machine) -> None:
        while await self.chaos.next("somebody takes a GPU in Ray"):
            card = self.chaos.dice.choice(list(machine.cards.values()))
            if self.ray.may_be_taken(machine, card):
                self.chaos.note("taken in Ray:", card.info.uuid)
                machine.take(card)
                await asyncio.sleep(self.chaos.dice.uniform(5, 60))
                card.taken = False

    async def _stranger(self, machine: Machine) -> None:
        while await self.chaos.next("a stranger's process"):
            card = self.chaos.dice.choice(list(machine.cards.values()))
            card.stranger = self.chaos.dice.choice((1, 5_000, 70_000))
            self.chaos.note("a stranger on", card.info.uuid)
            await asyncio.sleep(self.chaos.dice.uniform(5, 60))
            card.stranger = 0

    async def _vanish(self, machine: Machine) -> None:
        while await self.chaos.next("GPU vanishes"):
            card = self.chaos.dice.choice(list(machine.cards.values()))
            self.chaos.note("vanishes:", card.info.uuid)
            card.hidden = True
            await asyncio.sleep(self.chaos.dice.uniform(5, 100))
            card.hidden = False

    async def _fails(self, machine: Machine) -> None:
        """The driver reports a hardware error until somebody has reset the GPU."""
        while await self.chaos.next("GPU fails"):
            card = self.chaos.dice.choice(list(machine.cards.values()))
            self.chaos.note("fails:", card.info.uuid)
            machine.report(card, "XID 79")
            await asyncio.sleep(self.chaos.dice.uniform(5, 100))
            machine.report(card, "")

    async def _drained(self, machine: Machine) -> None:
        while await self.chaos.next("node drained"):
            await self.people.drain(machine.name, on=True)
            await asyncio.sleep(self.chaos.dice.uniform(5, 60))
            await self.people.drain(machine.name, on=False)

    async def _cut_by_hand(self, machine: Machine) -> None:
        """An administrator destroys the instances that nobody uses at that moment."""
        while await self.chaos.next("instances destroyed by hand"):
            for card in machine.cards.values():
                used = {part.cut for parts in card.tenants.values() for part in parts}
                kept = tuple(each for each in card.info.layout.instances if each.cut in used)
                if kept != card.info.layout.instances:
                    card.disturbed = True
                    machine.lay_out(card, True, kept)


def some_nodes() -> list[NodeInfo]:
    """The head, which alone runs what the vm backend starts, and three other machines."""
    shapes = (("head", 2, 81_920), ("a", 2, 81_920), ("b", 2, 40_960), ("c", 1, 24_576))
    return [
        NodeInfo(
            name=name,
            backends=("ray", "vm") if name == "head" else ("ray",),
            gpus=tuple(some_gpu(f"GPU-{name}-{at}", at, memory) for at in range(count)),
            cpus=16 * WHOLE,
            memory=65_536,
            ray_id=f"{name}-0",
        )
        for name, count, memory in shapes
    ]


def some_gpu(uuid: str, index: int, memory: int) -> GPUInfo:
    """A GPU of so many MiB: those of 80 GB can be cut, and the others hold MPS tenants to their shares."""
    if memory < 81_920:
        return GPUInfo(uuid, index, "A100", memory, mechanisms=("mps",))
    mig = geometry_of("A100-80GB", memory)
    return GPUInfo(uuid, index, "A100-80GB", memory, mig, mechanisms=("mig",))


def main() -> int:
    """Show the history of one seed."""
    result = simulate(int(sys.argv[1]), print)
    print(f"seed {result.seed}: {result.events} events, digest {result.digest}")
    print(result.problem or "every promise was kept")
    return 1 if result.problem else 0


if __name__ == "__main__":
    sys.exit(main())
