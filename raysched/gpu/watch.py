"""Watches one node for the ledger: tells it what GPUs there are and who uses them, and has them cut as it
wants. It needs an event loop and no Ray, so that it serves nodes of Ray and machines behind SSH alike.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from raysched.core import commands, gpu_views
from raysched.core.commands import Command
from raysched.core.measured import USUAL, Guidance, Policy
from raysched.core.node import REPLICAS, NodeInfo
from raysched.core.work import Partition
from raysched.gpu.driver import PartitionRefused, Sample
from raysched.gpu.meter import Meter
from raysched.gpu.processes import Process
from raysched.gpu.strays import Stray, Strays
from raysched.gpu.untold import Untold
from raysched.tasks import together

DESCRIBE_S = 5.0
"""Time between two descriptions of the node to the ledger, which writes down only what changed."""
TELL_S = 600.0
"""Time after which the use that leases made so far is written down; at their end it is as well."""
KEEP_S = 10.0
"""Time after which the same is kept on disk: so much of it is lost where this process is killed."""
RETRY_S = 2.0
POLL_S = 10.0
"""How long the ledger is asked to wait for GPUs that have to be cut. What could not be cut for a reason that
nobody told is tried again after this time."""

log = logging.getLogger(__name__)


class Machine(Protocol):
    """The node that is watched. A call may fail, and is made again later."""

    async def describe(self) -> NodeInfo:
        """The node as it is now."""
        ...

    async def sample(self) -> Sample:
        """Who uses its GPUs now."""
        ...

    async def partition(self, change: Partition) -> None:
        """Cut a GPU; what is so already is left as it is. Raises PartitionRefused."""
        ...

    async def end_strays(self, processes: tuple[Process, ...], kill: bool) -> None:
        """Send SIGTERM to exactly these processes, or with `kill` SIGKILL; silent where one is gone."""
        ...


class Ledger(Protocol):
    """What a watch asks of the ledger. Any call may fail, and is made again."""

    async def tell(self, told: Sequence[Command]) -> None:
        """Return once what follows from the commands is written."""
        ...

    async def partitions(self, node: str, version: int, timeout: float) -> tuple[int, tuple[Partition, ...]]:
        """How the GPUs of a node have to be cut: as soon as that is not `version`, or after the time."""
        ...

    async def sample(self, node: str, usage: gpu_views.Usage, told: Sequence[Command]) -> Guidance:
        """Take what was measured on a node just now: `usage` to be shown, `told` to be decided on. The answer
        says who has a part of its GPUs. One call, as it is made every second."""
        ...


Show = Callable[[str, gpu_views.Usage, Guidance, Sequence[Stray]], None]
"""Told after each sample: the node, what was measured, who has what, and who was asked to end."""


def _show_nobody(node: str, usage: gpu_views.Usage, guidance: Guidance, ended: Sequence[Stray]) -> None:
    """Nobody else wants to know."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How nodes are watched: what is done about those who take more than they have, how many seconds lie
    between two samples, who is shown them, how many tenants a time-sliced GPU takes, and in which state
    folder is kept what was measured."""

    policy: Policy = USUAL
    every: float = 2.0
    show: Show = _show_nobody
    replicas: int = REPLICAS
    folder: Path | None = None


USUAL_RULES = Rules()


class Watch:
    """Watches the `machine` that the ledger calls `node`; `seen` is the command that describes it."""

    def __init__(
        self,
        node: str,
        machine: Machine,
        ledger: Ledger,
        seen: Callable[[NodeInfo], Command] = commands.NodeSeen,
        rules: Rules = USUAL_RULES,
    ) -> None:
        self.node = node
        self.uuids: frozenset[str] = frozenset()
        self._machine = machine
        self._ledger = ledger
        self._seen = seen
        self._cutting = asyncio.Lock()
        self._describing = asyncio.Lock()
        self._version = -1
        self._rules = rules
        self._meter = Meter(node, rules.policy)
        self._untold = Untold(rules.folder, node)
        self._strays = Strays(rules.policy)
        self._guidance = Guidance()

    async def run(self) -> None:
        """Go on until cancelled."""
        self._meter.resume(await asyncio.to_thread(self._untold.kept))
        steps = (
            (self.describe, DESCRIBE_S),
            (self._sample, self._rules.every),
            (self._tell_use, TELL_S),
            (self._keep_use, KEEP_S),
            (self._partition, 0.0),
        )
        await together(*(self._repeat(step, every) for step, every in steps))

    async def _repeat(self, step: Callable[[], Awaitable[None]], every: float) -> None:
        while True:
            begun = time.monotonic()
            try:
                await step()
                await asyncio.sleep(max(0.0, begun + every - time.monotonic()))
            except Exception:
                log.exception("node %s: a step failed and is tried again", self.node)
                await asyncio.sleep(RETRY_S)

    # ------------------------------------------------------------ cutting

    async def until_cut(self) -> None:
        """Return when no GPU is being cut."""
        async with self._cutting:
            pass

    async def _partition(self) -> None:
        """Wait until the ledger wants GPUs cut otherwise, and cut them."""
        version, wanted = await self._ledger.partitions(self.node, self._version, POLL_S)
        if wanted:
            await self._cut_all()
        self._version = version

    async def _cut_all(self) -> None:
        """Cut what the ledger wants cut now. Who ends a lease of this node waits meanwhile (`until_cut`), so
        none of this can be granted to somebody else before it is done."""
        async with self._cutting:
            _, wanted = await self._ledger.partitions(self.node, -1, 0.0)
            for change in wanted:
                await self._cut(change)

    async def _cut(self, change: Partition) -> None:
        try:
            await self._machine.partition(change)
        except PartitionRefused as refused:
            await self.describe()
            log.warning("node %s: %s", self.node, refused)
            told = commands.CutRefused(self.node, change.gpu, refused.cut, str(refused))
            await self._ledger.tell((told,))
        else:
            await self.describe()

    # ------------------------------------------------------------ looking

    async def describe(self) -> None:
        """Tell the ledger how the node is."""
        async with self._describing:  # in order: an old layout that came late would end healthy tenants
            info = await self._machine.describe()
            self.uuids = frozenset(gpu.uuid for gpu in info.gpus)
            if self._guidance.elsewhere:
                self._guidance = Guidance()  # it is asked again whether that is so
            gpus = tuple(replace(gpu, replicas=self._rules.replicas) for gpu in info.gpus)
            info = replace(info, gpus=gpus)
            await self._ledger.tell((self._seen(info),))

    async def _sample(self) -> None:
        if not self.uuids or self._guidance.elsewhere:
            return
        sample = await self._machine.sample()
        now = time.monotonic_ns() // 1_000_000
        measured = self._meter.take(sample, self._guidance.tenants, now)
        self._guidance = await self._ledger.sample(self.node, measured.usage, measured.told)
        due = self._strays.look(measured.seen, self._guidance.orphans, now)
        for stray in due.new:
            log.warning("node %s: %s", self.node, _worded(stray))
        for stray in due.ask:
            log.warning("node %s: it is told to end: %s", self.node, _worded(stray))
        if due.ask:
            await self._machine.end_strays(tuple(stray.process for stray in due.ask), False)
        if due.kill:
            await self._machine.end_strays(tuple(stray.process for stray in due.kill), True)
        self._rules.show(self.node, measured.usage, self._guidance, due.ask)

    # ------------------------------------------------------------ the use of each lease

    async def tell_use(self, lease: str) -> None:
        """Have the use that a lease made written down: it ends now."""
        self._meter.close(_wall_clock(), lease)
        await self._tell_closed()

    async def _tell_use(self) -> None:
        """Have the use that all leases made so far written down."""
        self._meter.close(_wall_clock())
        await self._tell_closed()

    async def _keep_use(self) -> None:
        """Have the next one who watches this node find what was not written down."""
        if self.uuids:
            await asyncio.to_thread(self._untold.keep, self._meter.untold(_wall_clock()))

    async def _tell_closed(self) -> None:
        if told := self._meter.closed():
            await self._ledger.tell((commands.Measured(self.node, told),))
            self._meter.forget(told)


def _wall_clock() -> int:
    return time.time_ns() // 1_000_000


def _worded(stray: Stray) -> str:
    whose = f"of lease {stray.lease}, which is over," if stray.lease else "without a lease"
    return f"process {stray.process.pid} ({stray.process.name}) {whose} is on {stray.gpu}"
