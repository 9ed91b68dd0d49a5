"""Leases held in Ray's placement groups, on a real Ray."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.state import available_resources_per_node
from ray.cluster_utils import Cluster
from ray.exceptions import ActorUnavailableError, GetTimeoutError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from ray_world import RAY_LEAVES_SOCKETS, describe, start_agent

from raysched.backends.base import HoldAnswer
from raysched.backends.ray import groups, holds
from raysched.backends.ray.agents import NAMESPACE
from raysched.backends.ray.backend import RayBackend
from raysched.backends.ray.residents import name
from raysched.core.lease import Group
from raysched.core.node import NodeInfo
from raysched.core.request import WHOLE
from raysched.core.work import Hold
from raysched.errors import Unreachable
from raysched.gpu.processes import Process, end_processes, processes_of

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(RAY_LEAVES_SOCKETS)]

QUARTER = WHOLE // 4


@ray.remote(num_cpus=0)
def indices() -> list[int]:
    """The GPUs of a task."""
    return sorted(ray.get_gpu_ids())


@ray.remote(num_cpus=0)
class Loader:
    """A client's actor that starts a process in a session of its own."""

    def child(self) -> int:
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    def indices(self) -> list[int]:
        return sorted(ray.get_gpu_ids())


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Host:
    """The backend in an actor, as it runs."""

    def __init__(self, nodes: dict[str, NodeInfo], packages: Path) -> None:
        self._nodes = nodes
        self._backend = RayBackend(packages, self._known)

    async def _known(self) -> dict[str, NodeInfo]:
        return self._nodes

    async def hold(self, holds: list[Hold]) -> list[HoldAnswer]:
        return await self._backend.hold(holds)

    async def release(self, hold: Hold) -> None:
        await self._backend.release(hold)

    @ray.method(max_task_retries=0)
    async def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def strategy(group: Group) -> PlacementGroupSchedulingStrategy:
    """Puts an actor where the ledger says that the lease is held."""
    held = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group.id)))
    return PlacementGroupSchedulingStrategy(held, placement_group_bundle_index=group.bundle)


def inside(group: Group, gpus: float) -> list[int]:
    """The GPUs that a task in the group gets."""
    task = indices.options(num_gpus=gpus, scheduling_strategy=strategy(group))
    return ray.get(task.remote(), timeout=60)


def pid_of(hold: Hold) -> int | None:
    """The process of the lease's first resident, None while it comes back after a kill."""
    actor: Any = ray.get_actor(name(hold, 0), NAMESPACE)
    try:
        return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=60)
    except ActorUnavailableError:
        return None


@pytest.mark.parametrize("order", ["3120", "0123", "2301"])
def test_each_lease_gets_exactly_its_gpu(world: Any, order: str) -> None:
    holds = [world.lease(world.place("node-a", index, QUARTER), resident=False) for index in order]
    for hold, index in zip(holds, order, strict=True):
        (answer,) = world.hold(hold)
        assert answer.refused is None
        assert inside(answer.groups[0], 0.25) == [int(index)]


@pytest.mark.parametrize("gpus", ["3", "13", "023"])
def test_whole_gpus_are_exactly_those_of_the_lease(world: Any, gpus: str) -> None:
    (answer,) = world.hold(world.lease(world.place("node-a", gpus, cpus=WHOLE), resident=False))
    assert inside(answer.groups[0], len(gpus)) == [int(index) for index in gpus]
    world.until(lambda: world.free("node-a") == 4 - len(gpus))
    assert world.free("node-a", "CPU") == 3


def test_a_gang_has_a_bundle_on_each_node(world: Any) -> None:
    places = world.place("node-a", "12"), world.place("node-b", "1")
    (answer,) = world.hold(world.lease(*places, resident=False))
    assert len({group.id for group in answer.groups}) == 1
    assert [inside(answer.groups[0], 2), inside(answer.groups[1], 1)] == [[1, 2], [1]]


def test_ray_counts_the_shares_of_residents(world: Any) -> None:
    holds = [world.lease(world.place("node-a", "2", QUARTER)) for _ in range(3)]
    answers = world.hold(*holds)
    (group,) = {answer.groups[0].id for answer in answers}
    world.until(lambda: world.free("node-a", f"GPU_group_0_{group}") == 0.25)
    assert world.free("node-a") == 3


def test_two_mig_instances_of_one_gpu_are_two_shares_of_it(world: Any) -> None:
    """The instances are not made yet when the GPU is held: that it is held is what lets it be cut."""
    hold = replace(world.lease(world.place("node-a", "22", WHOLE // 7)), sharing="mig")
    (answer,) = world.hold(hold)
    (group,) = answer.groups
    world.until(lambda: world.free("node-a", f"GPU_group_0_{group.id}") == pytest.approx(1 - 2 * 0.1428))
    assert world.free("node-a") == 3
    other = replace(world.lease(world.place("node-a", "2", WHOLE * 3 // 7), resident=False), sharing="mig")
    (beside,) = world.hold(other)
    assert beside.groups == (group,)
    assert inside(group, 0.4285) == [2]


def test_shares_never_exceed_the_gpu(world: Any) -> None:
    """A fifth quarter, which the ledger would never grant, finds no room, and the four stay."""
    holds = [world.lease(world.place("node-b", "0", QUARTER)) for _ in range(4)]
    (group,) = {answer.groups[0] for answer in world.hold(*holds)}
    fifth = Loader.options(num_gpus=0.25, scheduling_strategy=strategy(group)).remote()
    with pytest.raises(GetTimeoutError):
        ray.get(fifth.indices.remote(), timeout=1)
    world.release(holds[1])
    assert ray.get(fifth.indices.remote(), timeout=60) == [0]
    ray.kill(fifth)


def test_the_dashboard_tells_which_job_holds_which_share(world: Any) -> None:
    hold = world.lease(world.place("node-a", "1", QUARTER))
    (answer,) = world.hold(hold)
    actor: Any = ray.get_actor(name(hold, 0), NAMESPACE)
    text = ray.get(actor.__ray_call__.remote(repr), timeout=60)
    assert text == f"{hold.label}: 0.25 of GPU 1 of node-a"
    assert world.groups()[answer.groups[0].id]["name"].startswith("raysched gpu node-a:1 A100-80GB")


def test_parts_of_several_gpus_are_held_though_the_client_has_only_the_first(world: Any) -> None:
    (answer,) = world.hold(world.lease(world.place("node-a", "31", QUARTER), resident=False))
    assert len(answer.groups) == 1
    assert inside(answer.groups[0], 1) == [3]
    assert world.free("node-a") == 2


def test_cpus_and_memory_are_held_beside_a_share(world: Any) -> None:
    hold = world.lease(world.place("node-a", "0", QUARTER, cpus=15000, memory=256))
    before = world.free("node-a", "memory")
    (answer,) = world.hold(hold)
    assert inside(answer.groups[0], 0.5) == [0]
    world.until(lambda: world.free("node-a", "CPU") == 2.5)
    assert before - world.free("node-a", "memory") == 256 << 20


def test_a_lease_without_gpus_holds_its_cpus(world: Any) -> None:
    (answer,) = world.hold(world.lease(world.place("node-b", cpus=2 * WHOLE)))
    assert answer.groups[0].bundle == 0
    world.until(lambda: world.free("node-b", "CPU") == 2)


def test_a_lease_of_nothing_is_held_at_once(world: Any) -> None:
    hold = world.lease(world.place("node-a"))
    (answer,) = world.hold(hold)
    assert (answer.groups, answer.refused) == ((), None)
    world.release(hold)


def test_holding_again_changes_nothing(world: Any) -> None:
    holds = [
        world.lease(world.place("node-a", "1", QUARTER, cpus=WHOLE)),
        world.lease(world.place("node-a", "23"), world.place("node-b", "0")),
        world.lease(world.place("node-b", "1", QUARTER), resident=False),
    ]
    first = world.hold(*holds)
    pids, groups = [pid_of(hold) for hold in holds[:2]], world.groups().keys()
    assert world.hold(*holds) == first
    world.restart()
    assert world.hold(*holds) == first
    assert ([pid_of(hold) for hold in holds[:2]], world.groups().keys()) == (pids, groups)


def test_a_new_backend_releases_what_an_earlier_one_held(world: Any) -> None:
    hold = world.lease(world.place("node-a", "1", QUARTER, cpus=WHOLE))
    world.hold(hold)
    world.restart()
    world.release(hold)
    with pytest.raises(ValueError, match="Failed to look up"):
        ray.get_actor(name(hold, 0), NAMESPACE)
    world.until(lambda: world.free("node-a", "CPU") == 4)


def test_what_is_held_for_a_lease_that_nobody_knows_is_let_go(world: Any) -> None:
    hold = world.lease(world.place("node-a", "1", QUARTER, cpus=WHOLE))
    world.hold(hold)
    world.restart()
    assert world.do(world.backend.held()) == {hold.lease: True}
    world.do(world.backend.let_go(hold.lease))
    assert world.do(world.backend.held()) == {}
    with pytest.raises(ValueError, match="Failed to look up"):
        ray.get_actor(name(hold, 0), NAMESPACE)
    world.until(lambda: world.free("node-a", "CPU") == 4)


def test_what_a_killed_backend_left_half_made_is_cleared_away(world: Any) -> None:
    shape = [{"GPU": 1.0}]
    orphan = ray.util.placement_group(shape, name="raysched gpu node-a:0 #00dead", lifetime="detached")
    assert orphan.wait(30)
    mine = ray.util.placement_group(shape, name="raysched of somebody else", lifetime="detached")
    assert mine.wait(30)
    world.restart()
    world.hold()
    assert orphan.id.hex() not in world.groups()
    assert mine.id.hex() in world.groups()
    ray.util.remove_placement_group(mine)


def test_a_killed_resident_keeps_its_share(world: Any) -> None:
    hold = world.lease(world.place("node-a", "0", QUARTER))
    (answer,) = world.hold(hold)
    old = pid_of(hold)
    assert old
    os.kill(old, signal.SIGKILL)
    world.until(lambda: pid_of(hold) not in (None, old))
    group = answer.groups[0].id
    world.until(lambda: world.free("node-a", f"GPU_group_0_{group}") == 0.75)


def test_a_gpu_that_another_has_in_ray_is_refused_and_nothing_stays_behind(world: Any) -> None:
    others = [Loader.options(num_gpus=1).remote() for _ in range(2)]
    taken = sorted(i for other in others for i in ray.get(other.indices.remote(), timeout=60))
    assert taken == [0, 1]
    before = world.groups().keys()
    part = world.lease(world.place("node-a", "1", QUARTER, cpus=WHOLE))
    whole = world.lease(world.place("node-a", "13"), world.place("node-b", "0"))
    refusals = [answer.refused for answer in world.hold(part, whole)]
    assert refusals[0] == "GPU 1 of node-a is held by other work in Ray"
    assert "of node-a are held by other work in Ray" in (refusals[1] or "")
    assert world.groups().keys() == before
    for other in others:
        ray.kill(other)


def test_a_probe_that_brought_no_answer_does_not_wait_in_ray_for_ever(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it once its group is gone: an autoscaler would take it for work that needs a GPU."""
    monkeypatch.setattr(groups, "PROBE_S", 0.0)
    (answer,) = world.hold(world.lease(world.place("node-a", "0", QUARTER)))
    assert answer.refused == "node-a did not answer in time"
    world.until(lambda: world.demands() == [])
    made = world.do(groups.make("gone", [groups.Bundle(world.nodes["node-a"].ray_id, gpus=1)]))
    world.do(groups.remove(made))
    monkeypatch.setattr(groups, "PROBE_S", 1.0)
    assert world.do(groups.probe(made, [groups.Bundle("", gpus=1)])) is None
    world.until(lambda: world.demands() == [])


def test_cpus_that_another_has_in_ray_are_refused(world: Any) -> None:
    other = Loader.options(num_cpus=4, label_selector={"ray.io/node-id": world.nodes["node-b"].ray_id})
    actor = other.remote()
    ray.get(actor.indices.remote(), timeout=60)
    (answer,) = world.hold(world.lease(world.place("node-b", cpus=WHOLE)))
    assert answer.refused == "node-b's CPUs are held by other work in Ray"
    ray.kill(actor)


def test_a_gpu_that_its_node_lost_is_refused(world: Any) -> None:
    hold = world.lease(world.place("node-a", "0"))
    nodes = world.nodes
    world.nodes = {**nodes, "node-a": nodes["node-b"]}
    (answer,) = world.hold(hold)
    assert answer.refused == "node-a no longer has GPU-node-a-0"
    world.nodes = {}
    (answer,) = world.hold(hold)
    assert answer.refused == "node-a is not in Ray"
    assert world.do(world.backend.held()) == {}
    world.nodes = nodes


def test_a_shared_gpu_that_nobody_uses_any_more_can_be_had_whole(world: Any) -> None:
    part = world.lease(world.place("node-b", "1", QUARTER))
    world.hold(part)
    world.release(part)
    (answer,) = world.hold(world.lease(world.place("node-b", "01"), resident=False))
    assert inside(answer.groups[0], 2) == [0, 1]


def test_the_group_of_a_shared_gpu_is_used_again(world: Any) -> None:
    first, second = (world.lease(world.place("node-b", "1", QUARTER)) for _ in range(2))
    (before,) = world.hold(first)
    world.release(first)
    assert world.free("node-b") == 1
    (after,) = world.hold(second)
    assert before.groups == after.groups


def test_the_group_of_a_gpu_is_not_given_back_under_a_lease_that_just_comes(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor that is put into a group which is gone waits in Ray for ever."""
    first, second = (world.lease(world.place("node-b", "1", QUARTER), resident=False) for _ in range(2))
    world.hold(first)
    world.release(first)
    remove = groups.remove

    async def remove_slowly(group: PlacementGroup) -> None:
        await asyncio.sleep(0.5)
        await remove(group)

    monkeypatch.setattr(groups, "remove", remove_slowly)
    monkeypatch.setattr(holds, "IDLE_S", 0.0)
    _, (answer,) = world.do(both(world.backend.outside(), world.backend.hold([second])))
    world.held[second.lease] = second
    assert answer.groups[0].id in world.groups("CREATED")


async def both(*calls: Any) -> Any:
    return await asyncio.gather(*calls)


def test_a_group_that_somebody_removed_is_made_again(world: Any) -> None:
    holds = [world.lease(world.place("node-b", "1", QUARTER)) for _ in range(2)]
    for answer in world.hold(*holds)[:1]:
        ray.util.remove_placement_group(
            PlacementGroup(ray.PlacementGroupID(bytes.fromhex(answer.groups[0].id)))
        )
    answers = world.hold(*holds)
    (group,) = {answer.groups[0].id for answer in answers}
    world.until(lambda: world.free("node-b", f"GPU_group_0_{group}") == 0.5)


@pytest.mark.parametrize("share", [QUARTER, WHOLE])
def test_a_share_is_free_only_when_its_processes_are_gone(world: Any, share: int) -> None:
    """Case ray-03: a child in a session of its own, of an actor that would restart for ever."""
    hold, other = (world.lease(world.place("node-a", i, share), resident=False) for i in "01")
    pids: list[int] = []
    actors: list[Any] = []  # one whose handle is dropped ends by itself
    for answer in world.hold(hold, other):
        options = {"env_vars": {"RAYSCHED_LEASE": answer.lease}}
        actor = Loader.options(
            num_gpus=share / WHOLE,
            max_restarts=-1,
            scheduling_strategy=strategy(answer.groups[0]),
            runtime_env=options,
        ).remote()
        pids.append(ray.get(actor.child.remote(), timeout=60))
        actors.append(actor)
    world.release(hold)
    assert [alive(pid) for pid in pids] == [False, True]
    world.release(other)
    assert not alive(pids[1])


def test_a_worker_that_is_still_starting_is_not_killed_before_ray_knows_it(world: Any) -> None:
    """Else Ray counts it as starting for a minute, and starts no other meanwhile on a node of few CPUs."""
    lease = f"lease-{uuid.uuid4().hex}"
    loader = Loader.options(runtime_env={"env_vars": {"RAYSCHED_LEASE": lease}}).remote()
    found: frozenset[Process] = frozenset()
    while not found:
        found = processes_of(lease)
    ray.kill(loader)
    end_processes(lease, 0)
    assert not processes_of(lease)
    world.until(lambda: world.known_workers() & {process.pid for process in found})


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_node_that_died_keeps_no_hold_and_delays_no_release(
    world: Any, cluster: Cluster, tmp_path: Path
) -> None:
    node = cluster.add_node(num_cpus=1, num_gpus=1)
    world.nodes = {**world.nodes, "node-c": describe("node-c", node.node_id, 1)}
    part = world.lease(world.place("node-c", "0", QUARTER))
    gang = world.lease(world.place("node-a", "2"), world.place("node-c", cpus=WHOLE))
    first = world.hold(part, gang)
    assert [answer.refused for answer in first] == [None, None]
    assert world.do(world.backend.held()) == {part.lease: True, gang.lease: True}
    cluster.remove_node(node, allow_graceful=False)
    world.until(lambda: world.nodes["node-c"].ray_id not in available_resources_per_node())
    world.until(lambda: world.do(world.backend.held()) == {part.lease: False, gang.lease: False})
    world.restart()
    assert [answer.refused for answer in world.hold(part, gang)] == ["node-c is not in Ray"] * 2
    assert world.free("node-a") == 3
    with pytest.raises(Unreachable, match="node-c is not in Ray"):
        world.release(gang)
    world.release(replace(gang, places=gang.places[:1]))

    again = cluster.add_node(num_cpus=1, num_gpus=1)
    world.nodes["node-c"] = describe("node-c", again.node_id, 1)
    agent = start_agent(world.nodes["node-c"], tmp_path, {}, tmp_path)
    (answer,) = world.hold(part)
    assert answer.refused is None
    assert world.do(world.backend.held()) == {part.lease: True}
    world.release(part)
    assert world.groups("RESCHEDULING") == {}
    ray.kill(agent)
    cluster.remove_node(again)


def test_a_killed_backend_actor_finds_everything_again(world: Any, tmp_path: Path) -> None:
    host = Host.remote(world.nodes, tmp_path)
    holds = [
        world.lease(world.place("node-a", "2", QUARTER, cpus=WHOLE)),
        world.lease(world.place("node-b", "1"), resident=False),
    ]
    first = ray.get(host.hold.remote(holds), timeout=60)
    groups, pid = world.groups().keys(), pid_of(holds[0])
    host.die.remote()
    assert ray.get(host.hold.remote(holds), timeout=60) == first
    assert (world.groups().keys(), pid_of(holds[0])) == (groups, pid)
    for hold in holds:
        ray.get(host.release.remote(hold), timeout=60)
    world.restart()
    ray.kill(host)
