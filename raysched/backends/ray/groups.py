"""Placement groups as Ray has them: made on a node that is named, probed for what they hold, removed.

Ray picks a GPU's index itself, so only a probe, a task inside the group, tells which one it is. All calls
into Ray that may wait run in threads, so that a slow head blocks no event loop.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.exceptions import RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysched.core.request import WHOLE

OURS = re.compile(r"raysched .* #[0-9a-f]{6}", re.DOTALL)
"""The names of our placement groups, and of no others."""

READY_S = 3.0
"""How long Ray may take to make a group before that counts as a no. What was just freed reaches a waiting
group after up to 0.8 s."""

PROBE_S = 60.0
"""How long a probe may take: the first one on a node starts a worker process."""

MIB = 1 << 20
GPU_OF_GROUP = re.compile(r"GPU_group_[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a group takes on the node whose id in Ray is `ray_id`: whole GPUs, `cpus` in ten-thousandths of
    a core, host memory in MiB."""

    ray_id: str
    gpus: int = 0
    cpus: int = 0
    memory: int = 0

    def resources(self) -> dict[str, float]:
        """The bundle in Ray's words; Ray refuses entries of nothing."""
        amounts = {"GPU": self.gpus, "CPU": self.cpus / WHOLE, "memory": self.memory * MIB}
        return {name: float(amount) for name, amount in amounts.items() if amount}


async def make(name: str, bundles: Sequence[Bundle]) -> PlacementGroup | None:
    """A new detached group with one bundle a node, or None where Ray can't give all of it now.

    Nothing is left pending. `name` is what the dashboard shows; a few characters make it unique.
    """
    group = await asyncio.to_thread(
        placement_group,
        [bundle.resources() for bundle in bundles],
        name=f"raysched {name} #{secrets.token_hex(3)}",
        lifetime="detached",
        bundle_label_selector=[{"ray.io/node-id": bundle.ray_id} for bundle in bundles],
    )
    ready = False
    try:
        ready = await _ready(group)
        return group if ready else None
    finally:
        if not ready:
            remove_placement_group(group)


async def _ready(group: PlacementGroup) -> bool:
    # Ray's own `wait` would block a thread, and counts in whole seconds.
    deadline = time.monotonic() + READY_S
    pause = 0.002
    while not await alive(group):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.1)
    return True


async def probe(group: PlacementGroup, bundles: Sequence[Bundle]) -> list[frozenset[int]] | None:
    """The indices of the GPUs that each bundle of an empty group holds, or None where no answer comes."""
    looks = [_look(group, place, bundle.gpus) for place, bundle in enumerate(bundles)]
    try:
        answers = await asyncio.wait_for(asyncio.gather(*looks), PROBE_S)
    except (RayError, asyncio.TimeoutError):
        return None
    finally:
        for look in looks:  # once its group is gone, Ray would let one wait for ever that has not ended
            ray.cancel(look)
    return [frozenset(indices) for indices in answers]


def _look(group: PlacementGroup, place: int, gpus: int) -> Any:
    # The GPUs are asked for in the options: in the decorator they would cost a process for each call.
    return _indices.options(num_gpus=gpus, scheduling_strategy=inside(group, place)).remote()


@ray.remote(num_cpus=0)
def _indices() -> list[int]:
    """The indices of this task's GPUs as the raylet numbers them. `ray.get_gpu_ids` would translate them
    where the node's CUDA_VISIBLE_DEVICES is set."""
    from ray._private.worker import global_worker  # here, as Ray sends this function by value

    worker: Any = global_worker
    held = worker.core_worker.resource_ids()
    return sorted({index for name in held if GPU_OF_GROUP.fullmatch(name) for index, _ in held[name]})


def inside(group: PlacementGroup, bundle: int) -> PlacementGroupSchedulingStrategy:
    """The strategy that puts a task or an actor into a bundle of the group."""
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)


async def remove(group: PlacementGroup) -> None:
    """Give a group back. Removing what is gone is silent."""
    await asyncio.to_thread(remove_placement_group, group)


async def alive(group: PlacementGroup) -> bool:
    """Whether Ray holds all of the group now; not so after its node died or somebody removed it."""
    table = await asyncio.to_thread(placement_group_table, group)
    return cast(dict[str, Any], table).get("state") == "CREATED"


async def ours() -> set[str]:
    """The ids of all groups with a name of ours that Ray still has, whichever process made them."""
    return {id for id, state in (await _states()).items() if state != "REMOVED"}


async def whole() -> set[str]:
    """The ids of those of our groups that Ray holds all of now."""
    return {id for id, state in (await _states()).items() if state == "CREATED"}


async def _states() -> dict[str, str]:
    """The state of each group with a name of ours."""
    table = cast(dict[str, dict[str, Any]], await asyncio.to_thread(placement_group_table))
    return {id: row["state"] for id, row in table.items() if OURS.fullmatch(row["name"])}


def of_id(id: str) -> PlacementGroup:
    """The group whose id in hex is `id`."""
    return PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id)))
