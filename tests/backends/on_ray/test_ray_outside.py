"""GPUs that others hold in Ray, on a real Ray."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray_world import RAY_LEAVES_SOCKETS

from raysched.core.request import WHOLE

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(RAY_LEAVES_SOCKETS)]


@ray.remote(num_cpus=0)
class Other:
    """Somebody who uses Ray without asking raysched."""

    def indices(self) -> list[int]:
        return sorted(ray.get_gpu_ids())


def start(world: Any, node: str, gpus: float) -> Any:
    """Work of somebody else on a node."""
    label = {"ray.io/node-id": world.nodes[node].ray_id}
    actor = Other.options(num_gpus=gpus, label_selector=label).remote()
    ray.get(actor.indices.remote(), timeout=60)
    return actor


def test_nothing_is_outside_where_only_leases_hold(world: Any) -> None:
    world.hold(world.lease(world.place("node-a", "2", WHOLE // 4)), world.lease(world.place("node-a", "01")))
    assert world.outside() == {"node-a": (), "node-b": ()}


def test_what_others_hold_is_found_among_leases_and_free_gpus(world: Any) -> None:
    world.hold(world.lease(world.place("node-a", "0", WHOLE // 4)))
    part, whole = start(world, "node-a", 0.5), start(world, "node-a", 1)
    held = {*ray.get(part.indices.remote()), *ray.get(whole.indices.remote())}
    uuids = tuple(f"GPU-node-a-{index}" for index in sorted(held))
    assert world.outside() == {"node-a": uuids, "node-b": ()}
    ray.kill(part)
    ray.kill(whole)
    assert world.outside() == {"node-a": (), "node-b": ()}


def test_parts_of_two_gpus_are_two_gpus_outside(world: Any) -> None:
    others = [start(world, "node-b", 0.6) for _ in range(2)]
    assert world.outside()["node-b"] == ("GPU-node-b-0", "GPU-node-b-1")
    for other in others:
        ray.kill(other)


def test_one_sight_alone_changes_nothing(world: Any) -> None:
    other = start(world, "node-b", 1)
    assert world.do(world.backend.outside())["node-b"] == ()
    ray.kill(other)


def test_looking_for_others_leaves_nothing_behind(world: Any) -> None:
    other = start(world, "node-b", 1)
    before = world.groups().keys()
    world.outside()
    assert world.groups().keys() == before
    assert world.groups("PENDING") == {}
    ray.kill(other)


def test_a_refused_hold_makes_the_backend_look_again(world: Any) -> None:
    """Somebody else moved from one GPU to another, which the numbers alone do not tell."""
    first, second = start(world, "node-b", 1), start(world, "node-b", 1)
    world.until(lambda: world.free("node-b") == 0)
    ray.kill(second)
    world.until(lambda: world.free("node-b") == 1)
    (kept,) = ray.get(first.indices.remote())
    assert world.outside()["node-b"] == (f"GPU-node-b-{kept}",)
    second = start(world, "node-b", 1)
    world.until(lambda: world.free("node-b") == 0)  # Ray's numbers lag behind
    ray.kill(first)
    world.until(lambda: world.free("node-b") == 1)
    (answer,) = world.hold(world.lease(world.place("node-b", str(1 - kept), WHOLE // 2)))
    assert answer.refused == f"GPU {1 - kept} of node-b is held by other work in Ray"
    assert world.outside()["node-b"] == (f"GPU-node-b-{1 - kept}",)
    ray.kill(second)
