"""What is asked of a site, and what happens to leases there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import World
from world import node as ray_node

from raysched.core.commands import (
    Cancel,
    Cordon,
    Denied,
    Gone,
    JobRequest,
    NodeSeen,
    Placed,
    Report,
    Submit,
    Tick,
)
from raysched.core.lease import Place, Slice
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import WHOLE, Request
from raysched.core.site import Demand, Site, Unfit, demand, worded
from raysched.core.views import explain_view, plan_view, queue_view
from raysched.core.wanted import wanted
from raysched.core.work import Run, Seen
from raysched.errors import Conflict, Refused

A100 = 81920


def node(name: str, *types: str, parts: int = 0, memory: int = 0, **other: Any) -> NodeInfo:
    """A node of a site with a GPU of each of these types."""
    mps: tuple[Any, ...] = ("mps",) if parts else ()
    gpus = tuple(
        GPUInfo(f"SLURM-{name}-{index}", index, model, memory, parts=parts, mechanisms=mps)
        for index, model in enumerate(types)
    )
    return NodeInfo(name, ("slurm",), gpus, 16 * WHOLE, 64_000, site=True, **other)


SITE = (
    node("n1", "a100", "a100", parts=4, memory=A100),
    node("n2", "a100", "a100", parts=4, memory=A100),
    node("n3", *["1g.10gb"] * 7, *["3g.40gb"] * 2),
)


def asked_of(site: Site, request: Request) -> Demand | str:
    """What is asked of a site, or why it can't be."""
    try:
        return demand(site, request)
    except Unfit as unfit:
        return f"refused: {unfit}"


def ask(*nodes: NodeInfo, **fields: Any) -> str:
    """The same in words, of these nodes or of the usual ones."""
    request = Request(**{"backends": ("slurm",), **fields})
    asked = asked_of(Site(nodes or SITE), request)
    return asked if isinstance(asked, str) else worded(asked, request)


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({}, "gpu:a100:1"),
        ({"gpus": 2}, "gpu:a100:2"),
        ({"gpus": 3}, "gpu:a100:3 on 2 nodes together"),
        ({"gpus": 4}, "gpu:a100:2 on each of 2 nodes"),
        ({"gpus": 2, "nodes": 2}, "gpu:a100:1 on each of 2 nodes"),
        ({"gpus": 5}, "refused: gpus: asks for 5 GPUs, and the site has 4 such GPUs"),
        ({"gpus": 6, "nodes": 2}, "refused: gpus: asks for 6 GPUs, on 2 nodes, and its largest node has 2"),
        ({"gpus": 8, "nodes": 4}, "refused: nodes: asks for 4, and the site has 2 with such GPUs"),
        ({"gpus": 0, "cpus": WHOLE}, "CPUs and memory only"),
        (
            {"gpus": 0, "cpus": 17 * WHOLE},
            "refused: asks for CPUs and memory that no single node of the site has together: "
            "17 CPUs and 0 MiB, and at most 16 CPUs and ",
        ),
        ({"gpu_types": ("A100",)}, "gpu:a100:1"),
        (
            {"gpu_types": ("H100",)},
            "refused: gpu_type: asks for H100, and the site has only",
        ),
        ({"sharing": "time_slice"}, "refused: sharing: time_slice is not to be had at a site"),
        ({"sharing": "mps", "share": 5000}, "mps:a100:50"),
    ],
)
def test_a_request_in_the_words_of_a_site(fields: dict[str, Any], asked: str) -> None:
    """Whole GPUs carry their type where the site has MIG instances too, or they could land on one."""
    assert ask(**fields).startswith(asked)


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"share": 2500}, "shard:a100:1"),
        ({"share": 3000}, "shard:a100:2, 0.5 of the GPU is held"),
        ({"memory": 20480}, "shard:a100:1"),
        ({"memory": 20481}, "shard:a100:2"),
        ({"memory": 90_000}, "refused: gpu_memory: asks for 90000 MiB of one GPU, and the largest has 81920"),
        (
            {"gpus": 2, "share": 7500},
            "refused: gpus: asks for 2 x 0.75 GPU, and a site gives",
        ),
        ({"share": 2500, "isolation": "hard"}, "refused: isolation: hard can't be kept for 0.25 GPU"),
    ],
)
def test_shards_are_rounded_up_and_never_of_several_gpus(fields: dict[str, Any], asked: str) -> None:
    """Case slurm-02."""
    assert ask(sharing="fraction", **fields).startswith(asked)


def test_memory_that_nobody_knows_is_refused_with_what_to_do() -> None:
    """Slurm does not tell the memory of a GPU."""
    assert "backends.slurm.gpu_memory" in ask(node("n1", "a100", parts=4), sharing="fraction", memory=10)


def test_a_site_without_shards_has_no_fractions() -> None:
    """What could be asked for instead is named."""
    said = ask(node("n1", "a100"), sharing="fraction", share=5000)
    assert said == "refused: asks for 0.5 GPU, and the site offers no gres/shard; ask for a whole GPU"


@pytest.mark.parametrize(
    ("types", "profile", "asked"),
    [
        (["nvidia_h100_nvl_1g.12gb"] * 7, "1g.12gb", "gpu:nvidia_h100_nvl_1g.12gb:1"),
        (["a100_3g.39gb"] * 2, "3g.40gb", "gpu:a100_3g.39gb:1"),
        (["1g.10gb"] * 7, "1g.10gb", "gpu:1g.10gb:1"),
        (["1g.10gb"] * 7, "2g.20gb", "refused: mig_profile: asks for 2g.20gb, and the site has 1g.10gb"),
        (
            ["a100"],
            "1g.10gb",
            "refused: mig_profile: asks for 1g.10gb, and no GPU type",
        ),
    ],
)
def test_a_mig_profile_finds_the_type_that_the_site_names(types: list[str], profile: str, asked: str) -> None:
    """Case slurm-01."""
    assert ask(node("n", *types), sharing="mig", mig_profile=profile).startswith(asked)


requests = st.builds(
    Request,
    gpus=st.integers(0, 9),
    share=st.none() | st.integers(1, WHOLE),
    memory=st.none() | st.integers(1, 2 * A100),
    sharing=st.sampled_from(["exclusive", "fraction", "mps", "mig", "time_slice"]),
    isolation=st.sampled_from(["soft", "hard"]),
    mig_profile=st.none() | st.sampled_from(["1g.10gb", "3g.40gb", "7g.80gb"]),
    gpu_types=st.sampled_from([(), ("A100",), ("H100",)]),
    nodes=st.none() | st.integers(1, 4),
    cpus=st.integers(0, 20 * WHOLE),
    host_memory=st.integers(0, 70_000),
    backends=st.just(("slurm",)),
)


@given(requests)
def test_nothing_is_asked_that_the_site_can_never_give(request: Request) -> None:
    """Case slurm-02: what Slurm would keep pending for ever is refused before."""
    asked = asked_of(Site(SITE), request)
    if isinstance(asked, str):
        return
    room = [n for n in SITE if request.cpus <= n.cpus and request.host_memory <= n.memory]
    assert len(room) >= asked.nodes
    have = sorted((sum(gpu.model == asked.type for gpu in n.gpus) for n in room), reverse=True)
    if asked.kind == "gpu":
        assert asked.count <= (sum(have[: asked.nodes]) if asked.together else have[asked.nodes - 1])
    elif asked.kind == "shard":
        assert request.gpus == 1
        assert asked.count <= 4
        assert asked.share * 4 == asked.count * WHOLE
        assert request.share is None or asked.share >= request.share
        assert request.memory is None or asked.share * A100 >= request.memory * WHOLE
    assert request.isolation == "soft" or asked.kind in ("", "gpu")


# ---------------------------------------------------------------- leases at a site


SHARD = Request(share=3000, sharing="fraction", backends=("slurm",))
GPU = Request(backends=("slurm",))


def at(name: str, index: int, share: int = WHOLE) -> tuple[Place, ...]:
    """A place that a site gave."""
    return (Place(name, (Slice(f"SLURM-{name}-{index}", share, share * A100 // WHOLE),), WHOLE, 100),)


def test_a_job_is_handed_over_at_once_and_holds_nothing_until_it_is_placed() -> None:
    """However much of the site is in use: its own scheduler has the queue."""
    world = World(*SITE)
    jobs = [world.submit(f"job{number}", GPU) for number in range(9)]
    assert {job.state for job in jobs} == {"starting"}
    assert len(wanted(world.state, "slurm").launches) == 9
    assert not any(gpu.tenants for each in world.state.nodes.values() for gpu in each.gpus.values())


def test_a_job_with_a_part_of_a_gpu_tells_frameworks_their_part() -> None:
    """Two shards of four, for 0.3; a whole GPU needs no such thing."""
    world = World(*SITE)
    world.submit("part", SHARD)
    world.submit("whole", GPU)
    part, whole = (dict(launch.env) for launch in wanted(world.state, "slurm").launches)
    for name in ("RAYSCHED_GPU_FRACTION", "RAYSCHED_GPU_MEMORY_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        assert part[name] == "0.5"
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in whole


def test_the_sites_own_reason_is_told() -> None:
    """`explain` says what Slurm says."""
    world = World(*SITE)
    job = world.submit("job", GPU)
    world.do(Report(Seen(Run("job", 1, 0), "queued", reason="waits in Slurm (Priority)")))
    assert "(Priority)" in explain_view(world.state, job, world.now)["why"]
    [handed] = queue_view(world.state, world.now)["waiting"]
    assert (handed["id"], handed["position"], handed["why"]) == ("job", None, job.reason)
    assert not world.do(Report(Seen(Run("job", 1, 0), "queued", reason=job.reason)))
    world.do(Report(Seen(Run("job", 1, 0), "running")))
    assert (job.state, job.reason) == ("running", "")
    assert queue_view(world.state, world.now) == {"waiting": []}


def test_a_site_that_says_no_again_and_again_is_asked_less_and_less_often() -> None:
    """A thousand jobs above the site's limit of submitted ones shall not keep its controller busy."""
    world = World(*SITE)
    job = world.submit("job", GPU)
    rests: list[int] = []
    for _ in range(9):
        world.do(Denied(job.lease, "MaxSubmitJobs"))
        world.do(Gone(f"job.{job.attempt}"))
        rests.append(job.until - world.now)
        world.now = job.until
        world.do(Tick())
    assert rests == [3_000, 6_000, 12_000, 24_000, 48_000, 96_000, 192_000, 300_000, 300_000]


def test_the_ledger_counts_what_the_site_really_gave() -> None:
    """Case slurm-02: two shards of four are held for 0.3."""
    world = World(*SITE)
    world.submit("job", SHARD)
    world.do(Report(Seen(Run("job", 1, 0), "running")))
    world.do(Placed("job.1", at("n2", 1, 5000)))
    assert world.state.nodes["n2"].gpus["SLURM-n2-1"].share_used == 5000
    assert not world.do(Placed("job.1", at("n2", 1, 5000)))
    world.do(Placed("job.1", at("n1", 0, 5000)))
    assert world.state.nodes["n2"].gpus["SLURM-n2-1"].share_used == 0
    world.do(Report(Seen(Run("job", 1, 0), "exited", code=0)))
    assert world.state.nodes["n1"].gpus["SLURM-n1-0"].share_used == 0
    assert world.job("job").state == "succeeded"


def test_a_gpu_is_never_counted_twice() -> None:
    """A site may give a GPU to the next job before the ledger has heard that the last one ended."""
    world = World(*SITE)
    for id in ("first", "second"):
        world.submit(id, GPU)
        world.do(Report(Seen(Run(id, 1, 0), "running")))
        world.do(Placed(f"{id}.1", at("n1", 0)))
    gpu = world.state.nodes["n1"].gpus["SLURM-n1-0"]
    assert list(gpu.tenants) == ["first.1"]
    world.do(Report(Seen(Run("first", 1, 0), "exited", code=0)))
    world.do(Placed("second.1", at("n1", 0)))
    assert list(gpu.tenants) == ["second.1"]
    assert not world.do(Placed("second.1", at("elsewhere", 0)))


def test_a_site_puts_nothing_on_nodes_that_are_not_its_own() -> None:
    """Nor on a GPU that one of its nodes no longer has."""
    world = World(*SITE, ray_node("r", 1))
    world.submit("job", GPU)
    world.do(Report(Seen(Run("job", 1, 0), "running")))
    assert not world.do(Placed("job.1", (Place("r", (), WHOLE, 0),)))
    world.do(Placed("job.1", at("n1", 0)))
    world.do(NodeSeen(replace(SITE[0], gpus=())))
    assert world.job("job").warning == "SLURM-n1-0 is no longer there on n1"
    assert not world.do(Placed("job.1", at("n1", 0, 5000)))
    world.do(Placed("job.1", at("n2", 0)))
    assert world.job("job").warning == ""


def test_a_job_that_a_site_can_no_longer_give_its_gpus_waits() -> None:
    """Beside GPUs of which nobody knows the memory, and it keeps none of them from anybody."""
    unknown = node("n4", "v100", parts=2)
    world = World(*SITE[:2], unknown)
    job = world.submit("job", Request(memory=20480, sharing="fraction", backends=("slurm",)))
    for each in SITE[:2]:
        world.do(NodeSeen(replace(each, gpus=())))
    world.do(Report(Seen(Run("job", 1, 0), "taken", reason="Slurm took its nodes")))
    world.now += 10_000
    other = world.submit("other", Request(share=5000, sharing="fraction", backends=("slurm",)))
    assert (job.state, other.state) == ("waiting", "starting")
    why = explain_view(world.state, job, world.now)["why"]
    assert why.startswith("can't be given as things are: gpu_memory: the memory of v100 is not known")


def test_what_a_site_took_away_starts_again_and_costs_no_retry() -> None:
    """Where the job is preemptible; else it is a failed attempt."""
    world = World(*SITE)
    job = world.submit("job", GPU)
    world.do(Report(Seen(Run("job", 1, 0), "running")))
    world.do(Report(Seen(Run("job", 1, 0), "taken", reason="Slurm took its nodes")))
    assert (job.state, job.failures, job.reason) == ("waiting", 0, "Slurm took its nodes")
    world.now += 10_000
    world.do(Report(Seen(Run("job", 1, 0), "running")))
    assert (job.state, job.attempt) == ("starting", 2)
    spec = {"entrypoint": "true", "preemptible": False}
    world.do(Submit("key", "ana", (JobRequest("keeps", "keeps", "command", GPU, spec),)))
    world.do(Report(Seen(Run("keeps", 1, 0), "taken", reason="Slurm took its nodes")))
    assert (world.job("keeps").state, world.job("keeps").reason) == ("failed", "Slurm took its nodes")


def test_a_job_of_several_nodes_is_one_run_at_a_site() -> None:
    """Slurm starts it on each node; each is told which one it is."""
    world = World(*SITE)
    world.submit("job", Request(gpus=2, nodes=2, backends=("slurm",)))
    (launch,) = wanted(world.state, "slurm").launches
    assert launch.order is not None
    assert [dict(rank)["RAYSCHED_NODE_RANK"] for rank in launch.order.ranks] == ["0", "1"]
    assert dict(launch.order.ranks[1])["MASTER_ADDR"] == "@0@"
    world.do(Report(Seen(Run("job", 1, 0), "running")))
    world.do(Placed("job.1", (*at("n1", 0), *at("n2", 0))))
    assert len(wanted(world.state, "slurm").launches) == 1
    world.do(Report(Seen(Run("job", 1, 0), "exited", code=3)))
    assert (world.job("job").state, world.job("job").code) == ("failed", 3)


def test_a_job_has_its_own_image_at_a_site() -> None:
    """Not that of jobs which name none."""
    world = World(node("n1", containers="kubernetes"))
    spec = {"entrypoint": "true", "image": "python:3.12"}
    asked = Request(gpus=0, backends=("slurm",), container=True)
    world.do(Submit("key", "ana", (JobRequest("job", "job", "command", asked, spec),)))
    (launch,) = wanted(world.state, "slurm").launches
    assert launch.image == "python:3.12"


def test_a_cancelled_job_is_ended_at_the_site() -> None:
    """Whether or not it began."""
    world = World(*SITE)
    world.submit("job", GPU)
    world.do(Report(Seen(Run("job", 1, 0), "queued", reason="")))
    world.do(Cancel("job", "ana"))
    assert [stop.run for stop in wanted(world.state, "slurm").stops] == [Run("job", 1, 0)]


def test_what_a_site_can_never_give_is_refused_at_submit() -> None:
    """With the site's own reason, and in a plan as well."""
    world = World(*SITE)
    large = Request(gpus=5, backends=("slurm",))
    with pytest.raises(Refused, match="gpus: asks for 5 GPUs, and the site has 4 such GPUs"):
        world.submit("job", large)
    jobs = [JobRequest(id, id, "command", request, {}) for id, request in (("a", SHARD), ("b", large))]
    first, second = plan_view(world.state, "ana", jobs, world.now)["jobs"]
    assert (first["outcome"], second["outcome"]) == ("starts", "refused")
    assert "shard:a100:2, 0.5 of the GPU is held" in first["why"]


def test_a_node_of_a_site_is_drained_there() -> None:
    """raysched says how."""
    world = World(*SITE)
    with pytest.raises(Conflict, match="`raysched node cordon n1` does"):
        world.do(Cordon("n1", True))


def test_a_hard_part_is_no_mig_instance_of_unknown_size() -> None:
    """Case slurm-02: a part by fraction has no size that a site's instance could be compared with."""
    world = World(*SITE)
    hard = Request(share=2500, sharing="fraction", isolation="hard", or_mig=True, backends=("slurm",))
    with pytest.raises(Refused, match="a site's shards do not hold memory"):
        world.submit("job", hard)
    world = World(node("n1", "1g.10gb", memory=9536))
    by_memory = Request(memory=9000, sharing="fraction", isolation="hard", or_mig=True, backends=("slurm",))
    world.submit("fits", by_memory)
    (launch,) = wanted(world.state, "slurm").launches
    assert launch.order is not None
    assert launch.order.demand.type == "1g.10gb"
