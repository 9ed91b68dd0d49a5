"""The node agent: reads the GPUs of its node, cuts them, watches who uses them, and runs what the ray backend
starts."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import ray

from raysched.actors.metrics import NodeMetrics
from raysched.actors.names import LEASE_LABEL
from raysched.actors.remote_ledger import RemoteLedger
from raysched.actors.settings import Settings
from raysched.backends.containers import Engines
from raysched.backends.node_runs import NodeRuns
from raysched.backends.runner import forget_worker
from raysched.backends.runs import of_this_machine
from raysched.core.node import NodeInfo
from raysched.core.request import WHOLE
from raysched.core.work import Partition
from raysched.folders import NODE_FOLDER
from raysched.gpu.driver import Sample, open_driver
from raysched.gpu.driving import Driving
from raysched.gpu.processes import Process, send
from raysched.gpu.watch import Rules, Watch

MIB = 1024 * 1024


class NodeAgent(NodeRuns):
    """One a node, named after it, restarted for ever."""

    async def __init__(self, settings: Settings, node: str, ray_id: str, simulate: str | None) -> None:
        forget_worker()
        folder = Path(os.environ.get(NODE_FOLDER, settings.folder))
        runs = of_this_machine(folder / "runs-ray")
        super().__init__(runs, settings.environment, settings.packages, [folder / "runs"])
        self.settings = settings
        self.node = node
        self.ray_id = ray_id
        self.driving = Driving(open_driver(simulate, node, folder=folder))
        self.engines = Engines(settings.environment)
        rules = Rules(settings.watchdog, settings.sample, NodeMetrics().show, settings.replicas, folder)
        self.watch = Watch(node, self, RemoteLedger(), rules=rules)
        self.task = asyncio.create_task(self.watch.run())

    def __repr__(self) -> str:
        return f"NodeAgent({self.node}, {len(self.watch.uuids)} GPUs)"

    async def ping(self) -> str:
        """Whether the agent answers."""
        return self.node

    async def end_processes(self, lease_id: str, grace_s: float) -> None:
        """End every process that carries the lease's marker, and return when none is left; not before a GPU
        that is being cut is done. Raises RayschedError where one does not end."""
        await self.watch.until_cut()
        await super().end_processes(lease_id, grace_s)
        await self.watch.tell_use(lease_id)

    async def describe(self) -> NodeInfo:
        """The node as it is: what Ray manages of it, with the GPUs that the driver sees."""
        engine = await asyncio.to_thread(self.engines.name)
        return replace(await self.driving.do(self._info), containers=engine)

    def _info(self) -> NodeInfo:
        found = self.driving.driver.discover()
        known = next(node for node in ray.nodes() if node["NodeID"] == self.ray_id)
        resources, address = known["Resources"], known["NodeManagerAddress"]
        head = "node:__internal_head__" in resources
        managed = int(resources.get("GPU", 0))
        return NodeInfo(
            name=self.node,
            backends=tuple(name for name in self.settings.on_nodes if name != "vm" or head),
            gpus=tuple(gpu for gpu in found.gpus if gpu.index < managed),
            cpus=int(resources.get("CPU", 0) * WHOLE),
            memory=int(resources.get("memory", 0)) // MIB,
            ray_id=self.ray_id,
            driver=found.driver_version,
            simulated=found.simulated,
            address=address,
            cuda=found.cuda,
            problem=found.problem,
            lease=known.get("Labels", {}).get(LEASE_LABEL, ""),
        )

    async def sample(self) -> Sample:
        """Who uses the GPUs now."""
        return await self.driving.sample()

    async def partition(self, change: Partition) -> None:
        """Cut a GPU. Raises PartitionRefused."""
        await self.driving.do(self.driving.driver.partition, change)

    async def end_strays(self, processes: tuple[Process, ...], kill: bool) -> None:
        """Send SIGTERM to exactly these processes, or with `kill` SIGKILL."""
        send(processes, signal.SIGKILL if kill else signal.SIGTERM)
