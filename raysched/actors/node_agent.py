"""The node agent: reads the GPUs of its node, cuts them, watches who uses them, and runs what the ray backend
starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import ray

from raysched.actors.node_runs import NodeRuns
from raysched.actors.remote_ledger import RemoteLedger
from raysched.actors.settings import Settings
from raysched.backends.containers import Engines
from raysched.core import commands, gpu_views
from raysched.core.node import NodeInfo
from raysched.core.request import WHOLE
from raysched.core.work import Partition
from raysched.gpu.driver import Driver, GPUUse, PartitionRefused, open_driver
from raysched.gpu.processes import leases_of

MIB = 1024 * 1024
DESCRIBE_S = 5.0
"""Time between two descriptions of the node to the ledger, which writes down only what changed."""
SAMPLE_S = 2.0
RETRY_S = 2.0
POLL_S = 10.0
"""How long the ledger is asked to wait for GPUs that have to be cut. What could not be cut for a reason that
nobody told is tried again after this time."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class NodeAgent(NodeRuns):
    """One a node, named after it, restarted for ever."""

    async def __init__(self, settings: Settings, node: str, ray_id: str, simulate: str | None) -> None:
        folder = Path(settings.folder)
        super().__init__(folder / "runs-ray", settings.environment, settings.packages, [folder / "runs"])
        self.settings = settings
        self.node = node
        self.ray_id = ray_id
        self.driver: Driver = open_driver(simulate, node, folder=Path(settings.folder))
        self.engines = Engines(settings.environment)
        self.driving = asyncio.Lock()
        self.cutting = asyncio.Lock()
        self.describing = asyncio.Lock()
        self.version = -1
        self.ledger = RemoteLedger()
        self.uuids: frozenset[str] = frozenset()
        steps = ((self._describe, DESCRIBE_S), (self._sample, SAMPLE_S), (self._partition, 0.0))
        self.tasks = [asyncio.create_task(self._repeat(step, every)) for step, every in steps]

    def __repr__(self) -> str:
        return f"NodeAgent({self.node}, {len(self.uuids)} GPUs)"

    async def ping(self) -> str:
        """Whether the agent answers."""
        return self.node

    async def _repeat(self, step: Callable[[], Awaitable[None]], every: float) -> None:
        while True:
            try:
                await step()
                await asyncio.sleep(every)
            except Exception:
                log.exception("node agent %s: a step failed and is tried again", self.node)
                await asyncio.sleep(RETRY_S)

    async def _drive(self, call: Callable[..., T], *arguments: object) -> T:
        """Let the driver do one thing, in a thread, and nothing else meanwhile: what it knows of a GPU is
        stale once that is cut."""
        async with self.driving:
            return await asyncio.to_thread(call, *arguments)

    # ------------------------------------------------------------ cutting

    async def _partition(self) -> None:
        """Wait until the ledger wants GPUs cut otherwise, and cut them."""
        version, wanted = await self.ledger.partitions(self.node, self.version, POLL_S)
        if wanted:
            await self._cut_all()
        self.version = version

    async def _cut_all(self) -> None:
        """Cut what the ledger wants cut now. No lease of this node ends meanwhile (`end_processes`), so none
        of this can be granted to somebody else before it is done."""
        async with self.cutting:
            _, wanted = await self.ledger.partitions(self.node, -1, 0.0)
            for change in wanted:
                await self._cut(change)

    async def _cut(self, change: Partition) -> None:
        try:
            await self._drive(self.driver.partition, change)
        except PartitionRefused as refused:
            await self._describe()
            log.warning("node agent %s: %s", self.node, refused)
            told = commands.CutRefused(self.node, change.gpu, refused.cut, str(refused))
            await self.ledger.tell((told,))
        else:
            await self._describe()

    async def end_processes(self, lease_id: str, grace_s: float) -> None:
        """End every process that carries the lease's marker, and return when none is left; not before a GPU
        that is being cut is done. Raises RayschedError where one does not end."""
        async with self.cutting:
            pass
        await super().end_processes(lease_id, grace_s)

    # ------------------------------------------------------------ looking

    async def _describe(self) -> None:
        async with self.describing:  # in order: an old layout that came late would end healthy tenants
            engine = await asyncio.to_thread(self.engines.name)
            info = replace(await self._drive(self._info), containers=engine)
            self.uuids = frozenset(gpu.uuid for gpu in info.gpus)
            await self.ledger.tell((commands.NodeSeen(info),))

    def _info(self) -> NodeInfo:
        """The node as it is: what Ray manages of it, with the GPUs that the driver sees."""
        found = self.driver.discover()
        known = next(node for node in ray.nodes() if node["NodeID"] == self.ray_id)
        resources, address = known["Resources"], known["NodeManagerAddress"]
        head = "node:__internal_head__" in resources
        managed = int(resources.get("GPU", 0))
        return NodeInfo(
            name=self.node,
            backends=tuple(name for name in self.settings.backends if name != "vm" or head),
            gpus=tuple(gpu for gpu in found.gpus if gpu.index < managed),
            cpus=int(resources.get("CPU", 0) * WHOLE),
            memory=int(resources.get("memory", 0)) // MIB,
            ray_id=self.ray_id,
            driver=found.driver_version,
            simulated=found.simulated,
            address=address,
            cuda=found.cuda,
            problem=found.problem,
        )

    async def _sample(self) -> None:
        if not self.uuids:
            return
        uses = await self._drive(self.driver.sample)
        pids = [process.pid for use in uses.values() for process in use.processes]
        leases = await asyncio.to_thread(leases_of, pids) if pids else {}
        await self.ledger.sample(self.node, _usage(uses, leases))
        await self.ledger.tell(tuple(_strange(self.node, uuid, use, leases) for uuid, use in uses.items()))


def _usage(uses: dict[str, GPUUse], leases: dict[int, str | None]) -> gpu_views.Usage:
    gpus = {uuid: use.memory_mib for uuid, use in uses.items() if use.memory_mib is not None}
    tenants: dict[tuple[str, str], int] = {}
    for uuid, use in uses.items():
        for process in use.processes:
            lease = leases.get(process.pid)
            if lease is not None and process.memory_mib is not None:
                tenants[uuid, lease] = tenants.get((uuid, lease), 0) + process.memory_mib
    return gpu_views.Usage(gpus, tenants)


def _strange(node: str, gpu: str, use: GPUUse, leases: dict[int, str | None]) -> commands.Usage:
    """What processes without a lease hold. One whose memory the driver does not tell counts as 1 MiB: the GPU
    is in use, though nobody can say how much of it."""
    strangers = [process for process in use.processes if leases.get(process.pid) is None]
    memory = sum(1 if process.memory_mib is None else process.memory_mib for process in strangers)
    instances = {process.instance for process in strangers if process.instance is not None}
    return commands.Usage(node, gpu, memory, tuple(sorted(instances)))
