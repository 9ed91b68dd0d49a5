"""Several Kubernetes clusters: which one a job is handed to, and what is told of those that none can take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from world import World, whole

from raysched.core.clusters import backend_of, cluster_of, kind_of
from raysched.core.commands import Gone, NodeGone, NodeSeen, Placed, Report
from raysched.core.compile import compile_request
from raysched.core.lease import Place, Slice
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import WHOLE
from raysched.core.views import explain_view, plan_view
from raysched.core.wanted import wanted
from raysched.core.work import Run, Seen
from raysched.specs.job import check_job

A100 = 81920
ANY = whole(backends=("k8s",))


def node(cluster: str, name: str = "n1", gpus: int = 2, called: str = "") -> NodeInfo:
    """A node of a cluster with GPUs of Kubernetes."""
    infos = tuple(
        GPUInfo(f"K8S-{cluster}-{name}-{index}", index, "A100", A100, resource="nvidia.com/gpu")
        for index in range(gpus)
    )
    return NodeInfo(
        called or name, (f"k8s-{cluster}",), infos, 16 * WHOLE, 64_000, containers="kubernetes", site=True
    )


EAST, WEST = node("east"), node("west", gpus=4, called="n1@k8s-west")


def place(world: World, job: str, info: NodeInfo, index: int = 0) -> None:
    """The cluster says that a job runs there."""
    slices = (Slice(info.gpus[index].uuid, WHOLE, A100),)
    world.report(job, "running")
    world.do(Placed(world.lease(job).id, (Place(info.name, slices, WHOLE, 100),)))


def submitted(world: World, id: str, **fields: Any) -> str | None:
    """The backend that a job of a job file is handed to."""
    spec = check_job({"entrypoint": "true", "backend": "k8s", "working_dir": None, **fields})
    return world.submit(id, compile_request(spec)).backend


def test_names() -> None:
    for cluster, backend in (("", "k8s"), ("east", "k8s-east"), ("us-east-1", "k8s-us-east-1")):
        assert (backend_of(cluster), cluster_of(backend), kind_of(backend)) == (backend, cluster, "k8s")
    assert [cluster_of(name) for name in ("ray", "vm", "slurm", "k8s2")] == [None] * 4
    assert kind_of("slurm") == "slurm"


def test_a_job_goes_where_the_fewest_of_ours_wait() -> None:
    """But to the one that it names, and only to one that can ever give what it asks for."""
    world = World(EAST, WEST)
    assert [submitted(world, f"any{number}") for number in range(3)] == ["k8s-east", "k8s-west", "k8s-east"]
    assert submitted(world, "east", k8s={"cluster": "east"}) == "k8s-east"
    assert submitted(world, "large", resources={"gpus": 3}) == "k8s-west"
    assert submitted(world, "next") == "k8s-west"
    for number, job in enumerate(("any1", "large", "next")):
        place(world, job, WEST, number)
    assert submitted(world, "again") == "k8s-west", "where nobody waits any more"
    world.do(Report(Seen(Run("any0", 1, 0), "exited", code=0)))
    world.do(Gone("any0.1"))
    assert world.state.unplaced == {"k8s-east": 2, "k8s-west": 1}


def test_each_backend_is_told_of_its_own_jobs_with_what_they_say_to_kubernetes() -> None:
    world = World(EAST, WEST)
    spec = check_job(
        {"entrypoint": "true", "backend": "k8s", "working_dir": None, "k8s": {"node_selector": {"a": "b"}}}
    )
    for name in ("one", "two"):
        world.submit(name, ANY)
        world.job(name).spec = spec.as_json()
    for backend, job in (("k8s-east", "one"), ("k8s-west", "two")):
        (launch,) = wanted(world.state, backend).launches
        assert launch.run.job == job
        assert launch.order is not None
        assert dict(launch.order.options)["node_selector"] == {"a": "b"}
    assert not wanted(world.state, "k8s").launches


def test_why_no_cluster_can_take_it_is_told_of_each() -> None:
    world = World(EAST, WEST)
    request = whole(5, backends=("k8s",))
    (planned,) = plan_view(world.state, "ana", [_asked(request)], world.now)["jobs"]
    assert planned["why"] == (
        "job: k8s-east: gpus: asks for 5 GPUs, and the cluster has 2 such GPUs, 2 on one node at most; "
        "k8s-west: gpus: asks for 5 GPUs, and the cluster has 4 such GPUs, 4 on one node at most"
    )
    (named,) = plan_view(world.state, "ana", [_asked(replace(request, backends=("k8s-east",)))], world.now)[
        "jobs"
    ]
    assert "k8s-west" not in named["why"]
    assert "the cluster has 2 such GPUs" in named["why"]


def _asked(request: Any) -> Any:
    from raysched.core.commands import JobRequest

    return JobRequest("job", "job", "command", request, {"entrypoint": "true"})


def test_a_job_that_waits_goes_to_the_cluster_that_grows() -> None:
    world = World(EAST, WEST)
    job = world.submit("job", whole(2, backends=("k8s",)))
    assert job.backend == "k8s-east"
    taken = Seen(Run("job", 1, 0), "taken", reason="evicted")
    world.do(NodeSeen(replace(EAST, gpus=EAST.gpus[:1])))
    world.do(Report(taken))
    world.now += 60_000
    world.do(Gone("job.1"))
    assert world.job("job").backend == "k8s-west"
    assert explain_view(world.state, world.job("job"), world.now)["why"] == "is being handed to k8s-west"


def test_namesakes_of_two_clusters_are_two_nodes() -> None:
    """One tells of a node that is called like the other's before it knows; then it is called differently."""
    world = World(EAST)
    world.do(NodeSeen(replace(WEST, name="n1")))
    assert world.state.nodes["n1"].info == EAST
    world.do(NodeSeen(WEST))
    assert {name: list(one.gpus) for name, one in world.state.nodes.items()} == {
        "n1": [gpu.uuid for gpu in EAST.gpus],
        "n1@k8s-west": [gpu.uuid for gpu in WEST.gpus],
    }
    world.do(NodeGone("n1", "k8s-west"))
    assert world.state.nodes["n1"].lost is None


@pytest.mark.parametrize("known", [(), (EAST,)])
def test_a_cluster_that_was_not_heard_of_yet_can_take_nothing(known: tuple[NodeInfo, ...]) -> None:
    world = World(*known)
    (planned,) = plan_view(world.state, "ana", [_asked(whole(backends=("k8s-north",)))], world.now)["jobs"]
    assert "no node is reached by k8s-north" in planned["why"]
