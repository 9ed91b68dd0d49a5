"""The node agent: reads the GPUs of its node, watches who uses them, and runs what the ray backend starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import ray

from raysched.actors import names
from raysched.actors.node_runs import NodeRuns
from raysched.actors.settings import Settings
from raysched.core import commands, views
from raysched.core.node import NodeInfo
from raysched.core.request import WHOLE
from raysched.gpu.driver import Driver, GPUUse, open_driver
from raysched.gpu.processes import leases_of

MIB = 1024 * 1024
DESCRIBE_S = 10.0
"""Time between two descriptions of the node to the ledger, which writes down only what changed."""
SAMPLE_S = 2.0
RETRY_S = 2.0

log = logging.getLogger(__name__)


class NodeAgent(NodeRuns):
    """One a node, named after it, restarted for ever."""

    async def __init__(self, settings: Settings, node: str, ray_id: str, simulate: str | None) -> None:
        super().__init__(Path(settings.folder) / "runs-ray", settings.environment, settings.packages)
        self.settings = settings
        self.node = node
        self.ray_id = ray_id
        self.driver: Driver = open_driver(simulate, node)
        self.ledger = ray.get_actor(names.LEDGER, namespace=names.NAMESPACE)
        self.uuids: frozenset[str] = frozenset()
        steps = ((self._describe, DESCRIBE_S), (self._sample, SAMPLE_S))
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

    async def _describe(self) -> None:
        info = await asyncio.to_thread(self._info)
        self.uuids = frozenset(gpu.uuid for gpu in info.gpus)
        await self.ledger.tell.remote((commands.NodeSeen(info),))

    def _info(self) -> NodeInfo:
        """The node as it is: what Ray manages of it, with the GPUs that the driver sees."""
        found = self.driver.discover()
        resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == self.ray_id)
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
        )

    async def _sample(self) -> None:
        if not self.uuids:
            return
        uses = await asyncio.to_thread(self.driver.sample)
        pids = [process.pid for use in uses.values() for process in use.processes]
        leases = await asyncio.to_thread(leases_of, pids) if pids else {}
        await self.ledger.sample.remote(self.node, _usage(uses, leases))
        foreign = [commands.Usage(self.node, uuid, _foreign(use, leases)) for uuid, use in uses.items()]
        await self.ledger.tell.remote(tuple(foreign))


def _usage(uses: dict[str, GPUUse], leases: dict[int, str | None]) -> views.Usage:
    gpus = {uuid: use.memory_mib for uuid, use in uses.items() if use.memory_mib is not None}
    tenants: dict[tuple[str, str], int] = {}
    for uuid, use in uses.items():
        for process in use.processes:
            lease = leases.get(process.pid)
            if lease is not None and process.memory_mib is not None:
                tenants[uuid, lease] = tenants.get((uuid, lease), 0) + process.memory_mib
    return views.Usage(gpus, tenants)


def _foreign(use: GPUUse, leases: dict[int, str | None]) -> int:
    """MiB that processes without a lease hold. One whose memory the driver does not tell counts as 1: the
    GPU is in use, though nobody can say how much of it."""
    strangers = [process for process in use.processes if leases.get(process.pid) is None]
    return sum(1 if process.memory_mib is None else process.memory_mib for process in strangers)
