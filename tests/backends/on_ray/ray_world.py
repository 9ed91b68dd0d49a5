"""What tests need of a real Ray: nodes as the ledger would know them, agents, and a backend in hand."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray._private.state import available_resources_per_node, state
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated import gcs_pb2
from ray.util.placement_group import placement_group_table

from raysched.backends.base import HoldAnswer
from raysched.backends.node_runs import NodeRuns
from raysched.backends.ray import groups
from raysched.backends.ray.agents import NAMESPACE, agent_name
from raysched.backends.ray.backend import RayBackend
from raysched.core.lease import Place, Slice
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import WHOLE
from raysched.core.work import Hold

GPU_MEMORY = 81920
LIMIT = 60.0
"""Seconds after which something that was to happen is said not to happen. Nothing is timed by it."""

RAY_LEAVES_SOCKETS = "ignore:unclosed:ResourceWarning"
"""Ray's cluster in this process drops sockets without closing them."""

T = TypeVar("T")
WorkerTableData: Any = vars(gcs_pb2)["WorkerTableData"]  # generated: no checker sees these names


def describe(name: str, ray_id: str, gpus: int) -> NodeInfo:
    """What the ledger would know of a node."""
    cards = tuple(GPUInfo(f"GPU-{name}-{i}", i, "A100-80GB", GPU_MEMORY) for i in range(gpus))
    return NodeInfo(name, ("ray",), cards, 4 * WHOLE, 4096, ray_id=ray_id)


def start_agent(node: NodeInfo, folder: Path, base_env: dict[str, str], packages: Path) -> Any:
    """The part of a node agent that runs commands, on its node."""
    options = {
        "name": agent_name(node.name),
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "label_selector": {"ray.io/node-id": node.ray_id},
        "max_restarts": -1,
        "max_task_retries": -1,
    }
    return ray.remote(NodeRuns).options(**options).remote(folder, base_env, packages)


class World:
    """A backend in the hands of a test: plain calls, and a look at what Ray says."""

    def __init__(self, nodes: dict[str, NodeInfo], packages: Path) -> None:
        self.nodes = nodes
        self._packages = packages
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count()
        self.held: dict[str, Hold] = {}
        self.backend = self.make()

    def make(self) -> RayBackend:
        """A new backend object, as after a crash of the backend actor."""

        async def known() -> dict[str, NodeInfo]:
            return self.nodes

        return RayBackend(self._packages, known)

    def restart(self) -> None:
        """Go on with a backend that remembers nothing."""
        self.backend = self.make()

    def do(self, work: Awaitable[T]) -> T:
        """The result of one call."""
        return self._loop.run_until_complete(work)

    def place(self, node: str, gpus: str = "", share: int = WHOLE, cpus: int = 0, memory: int = 0) -> Place:
        """A place with the GPUs of these indices, such as "02"."""
        cards = self.nodes[node].gpus
        slices = (Slice(cards[int(i)].uuid, share, share * GPU_MEMORY // WHOLE) for i in gpus)
        return Place(node, tuple(slices), cpus, memory)

    def lease(self, *places: Place, resident: bool = True) -> Hold:
        """A hold of a new lease: exclusive where it has whole GPUs, else of parts."""
        number = next(self._numbers)
        parts = any(part.share < WHOLE for place in places for part in place.slices)
        lease = f"lease-{os.getpid()}-{id(self)}-{number}"
        sharing = "fraction" if parts else "exclusive"
        return Hold(lease, f"job-{number}", f"job-{number}", sharing, places, resident)

    def hold(self, *holds: Hold) -> list[HoldAnswer]:
        """Hold leases; what they hold is released after the test."""
        self.held.update((hold.lease, hold) for hold in holds)
        return self.do(self.backend.hold(holds))

    def release(self, hold: Hold) -> None:
        """Give a lease back."""
        self.do(self.backend.release(hold))
        del self.held[hold.lease]

    def outside(self) -> dict[str, tuple[str, ...]]:
        """The GPUs that others hold, once that stands still."""
        before = self.do(self.backend.outside())
        for _ in range(3):
            time.sleep(1.1)
            before = self.do(self.backend.outside())
        return before

    def free(self, node: str, resource: str = "GPU") -> float:
        """How much of a resource Ray could give away on a node."""
        return available_resources_per_node()[self.nodes[node].ray_id].get(resource, 0.0)

    def demands(self) -> list[Any]:
        """What waits in Ray for a place."""
        demands = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands
        return [*demands.placement_group_demand, *demands.ray_task_actor_demand]

    def known_workers(self) -> set[int]:
        """The process ids of all workers that have made themselves known to Ray, the dead ones too."""
        rows = state._connect_and_get_accessor().get_worker_table()
        return {WorkerTableData.FromString(row).pid for row in rows}

    def groups(self, *states: str) -> dict[str, dict[str, Any]]:
        """Ray's placement groups in these states, all that are there if none is named."""
        wanted = states or ("PENDING", "PREPARED", "CREATED", "RESCHEDULING")
        return {id: row for id, row in placement_group_table().items() if row["state"] in wanted}

    def until(self, fact: Callable[[], bool]) -> None:
        """Wait for something to become true."""
        limit = time.monotonic() + LIMIT
        while not fact():
            assert time.monotonic() < limit, "it did not become true"
            time.sleep(0.05)

    def close(self) -> None:
        """Release everything, the groups that are kept for reuse included."""
        for hold in list(self.held.values()):
            self.release(hold)
        self.do(self.backend.close())
        self.do(self._loop.shutdown_default_executor())
        self._loop.close()
        for id in self.groups():
            ray.util.remove_placement_group(groups.of_id(id))
        self.until(lambda: not self.groups())
