"""Watches one node for the ledger: tells it what GPUs there are and who uses them, and has them cut as it
wants. It needs an event loop and no Ray, so that it serves nodes of Ray and machines behind SSH alike.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from raysched.core import commands, gpu_views
from raysched.core.commands import Command
from raysched.core.node import NodeInfo
from raysched.core.work import Partition
from raysched.gpu.driver import PartitionRefused, Sample

DESCRIBE_S = 5.0
"""Time between two descriptions of the node to the ledger, which writes down only what changed."""
SAMPLE_S = 2.0
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


class Ledger(Protocol):
    """What a watch asks of the ledger. Any call may fail, and is made again."""

    async def tell(self, told: Sequence[Command]) -> None:
        """Return once what follows from the commands is written."""
        ...

    async def partitions(self, node: str, version: int, timeout: float) -> tuple[int, tuple[Partition, ...]]:
        """How the GPUs of a node have to be cut: as soon as that is not `version`, or after the time."""
        ...

    async def sample(self, node: str, usage: gpu_views.Usage) -> None:
        """Take what was measured on a node just now."""
        ...


class Watch:
    """Watches the `machine` that the ledger calls `node`; `seen` is the command that describes it."""

    def __init__(
        self,
        node: str,
        machine: Machine,
        ledger: Ledger,
        seen: Callable[[NodeInfo], Command] = commands.NodeSeen,
    ) -> None:
        self.node = node
        self.uuids: frozenset[str] = frozenset()
        self._machine = machine
        self._ledger = ledger
        self._seen = seen
        self._cutting = asyncio.Lock()
        self._describing = asyncio.Lock()
        self._version = -1

    async def run(self) -> None:
        """Go on until cancelled."""
        steps = ((self.describe, DESCRIBE_S), (self._sample, SAMPLE_S), (self._partition, 0.0))
        await asyncio.gather(*(self._repeat(step, every) for step, every in steps))

    async def _repeat(self, step: Callable[[], Awaitable[None]], every: float) -> None:
        while True:
            try:
                await step()
                await asyncio.sleep(every)
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
            await self._ledger.tell((self._seen(info),))

    async def _sample(self) -> None:
        if not self.uuids:
            return
        sample = await self._machine.sample()
        await self._ledger.sample(self.node, _usage(sample))
        told = tuple(_strange(self.node, uuid, sample) for uuid in sample.uses)
        await self._ledger.tell(told)


def _usage(sample: Sample) -> gpu_views.Usage:
    gpus = {uuid: use.memory_mib for uuid, use in sample.uses.items() if use.memory_mib is not None}
    tenants: dict[tuple[str, str], int] = {}
    for uuid, use in sample.uses.items():
        for process in use.processes:
            lease = sample.leases.get(process.pid)
            if lease is not None and process.memory_mib is not None:
                tenants[uuid, lease] = tenants.get((uuid, lease), 0) + process.memory_mib
    return gpu_views.Usage(gpus, tenants)


def _strange(node: str, gpu: str, sample: Sample) -> commands.Usage:
    """What processes without a lease hold. One whose memory the driver does not tell counts as 1 MiB: the GPU
    is in use, though nobody can say how much of it."""
    uses = sample.uses[gpu].processes
    strangers = [process for process in uses if sample.leases.get(process.pid) is None]
    memory = sum(1 if process.memory_mib is None else process.memory_mib for process in strangers)
    instances = {process.instance for process in strangers if process.instance is not None}
    return commands.Usage(node, gpu, memory, tuple(sorted(instances)))
