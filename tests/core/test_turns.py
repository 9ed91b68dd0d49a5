"""Time-slices and MPS: how many tenants take turns, with what memory, and beside whom."""

from __future__ import annotations

import pytest

from raysched.core.commands import Cancel, CutRefused, Gone
from raysched.core.mig import DAEMON, Layout
from raysched.core.request import WHOLE, Request
from raysched.core.wanted import wanted
from raysched.errors import Refused
from tests.core.world import A100, World, changed, memory, mig_node, node, share, whole

GPU = "GPU-a-0"


def turn(**fields) -> Request:
    """A request for a time-slice."""
    return Request(sharing="time_slice", **fields)


def mps(**fields) -> Request:
    """A request for a share under MPS."""
    return Request(sharing="mps", **fields)


def test_a_time_sliced_gpu_takes_as_many_tenants_as_it_has_replicas():
    world = World(node("a", 1))
    world.submit("j", turn(), array=5)
    states = list(world.states().values())
    assert (states.count("starting"), states.count("waiting")) == (4, 1)
    assert "GPU-a-0 has its 4 turns taken" in world.why("j.4").why
    [slice] = world.lease("j.0").places[0].slices
    assert (slice.share, slice.memory) == (WHOLE // 4, A100 // 4)
    world.finish("j.0")
    assert world.job("j.4").state == "starting"


def test_the_node_says_how_many_replicas():
    world = World(changed(node("a", 1), replicas=3))
    world.submit("j", turn(gpu_types=("A100",)), array=4)
    assert list(world.states().values()).count("starting") == 3
    [slice] = world.lease("j.0").places[0].slices
    assert (slice.share, slice.memory) == (3333, A100 // 3)


@pytest.mark.parametrize(
    ("request_", "mib"),
    [(turn(memory=10_000), 10_000), (turn(share=5000), A100 // 2), (turn(share=5000, memory=7), 7)],
)
def test_the_memory_of_a_turn_is_what_is_asked_for(request_, mib):
    """A fraction of a time-sliced GPU is a fraction of its memory; the compute is taken in turns."""
    world = World(node("a", 1))
    world.submit("j", request_)
    [slice] = world.lease("j").places[0].slices
    assert (slice.share, slice.memory) == (2500, mib)


def test_memory_is_never_oversubscribed_by_taking_turns():
    world = World(node("a", 1))
    world.submit("j", turn(memory=30_000), array=3)
    assert list(world.states().values()).count("starting") == 2
    assert world.why("j.2").short_of == "memory"
    assert "21920 MiB" in world.why("j.2").why


def test_several_time_slices_are_of_several_gpus():
    world = World(node("a", 2))
    world.submit("pair", turn(gpus=2))
    assert world.gpus("pair") == ["GPU-a-0", "GPU-a-1"]
    with pytest.raises(Refused, match="2 such GPUs"):
        world.submit("three", turn(gpus=3))


def test_ways_of_sharing_are_never_mixed_on_one_gpu():
    info = changed(node("a", 1), mechanisms=("mps",))
    requests = {"turn": turn(), "part": share(0.1), "daemon": mps(share=1000), "whole": whole()}
    for first, request in requests.items():
        world = World(info)
        world.submit(first, request)
        for other in requests.keys() - {first}:
            assert world.submit(other, requests[other]).state == "waiting"
        world.finish(first)
        world.cut()  # an MPS daemon ends with its last tenant
        assert sum(state == "starting" for state in world.states().values()) == 1


def test_mps_shares_by_fraction_on_gpus_that_have_it():
    world = World(changed(node("a", 2), index=1, mechanisms=("mps",)))
    world.submit("one", mps(share=5000))
    world.submit("two", mps(memory=A100 // 2))
    assert world.gpus("one") == world.gpus("two") == ["GPU-a-1"]
    assert {world.lease(job).mechanism for job in ("one", "two")} == {"mps"}
    assert world.submit("three", mps(share=1)).state == "waiting"


def test_mps_without_a_daemon_is_refused_with_what_to_ask_for_instead():
    with pytest.raises(Refused, match=r"sharing: mps needs an MPS daemon .* gpu_fraction or gpu_memory"):
        World(node("a", 1)).submit("j", mps(share=5000))


# ---------------------------------------------------------------- isolation


@pytest.mark.parametrize(
    ("request_", "mechanisms", "held_by"),
    [
        (whole(), (), "exclusive"),
        (whole(0), (), "exclusive"),
        (share(0.5), ("memory_limit", "hami"), "variables"),
        (share(0.5, isolation="hard", limitable=True), ("hami", "memory_limit"), "memory_limit"),
        (share(0.5, isolation="hard"), ("hami", "memory_limit"), "hami"),
        (memory(1000, isolation="hard"), ("hami",), "hami"),
        (turn(isolation="hard"), ("hami",), "hami"),
        (whole(isolation="hard"), (), "exclusive"),
        (mps(share=1, isolation="hard"), ("mps", "hami"), "mps"),
    ],
)
def test_the_grant_says_what_holds_the_tenant_to_its_share(request_, mechanisms, held_by):
    world = World(changed(node("a", 1), mechanisms=mechanisms))
    world.submit("j", request_)
    assert world.lease("j").mechanism == held_by
    assert world.job("j").mechanism == held_by


def test_of_several_gpus_the_weakest_mechanism_is_told():
    info = changed(changed(node("a", 2), mechanisms=("memory_limit",)), index=1, mechanisms=("hami",))
    world = World(info)
    world.submit("j", share(0.5, gpus=2, isolation="hard", limitable=True))
    assert world.lease("j").mechanism == "hami"


@pytest.mark.parametrize("request_", [share(0.5, isolation="hard"), turn(isolation="hard")])
def test_a_hard_request_that_nothing_enforces_is_refused(request_):
    """Case sharing-02: on a GPU model without MIG, MPS, HAMi or kernel limits."""
    world = World(node("a", 1, model="L40S", memory=46068))
    with pytest.raises(Refused) as refused:
        world.submit("j", request_)
    for word in ("isolation", "hard", "MIG", "MPS", "HAMi", "kernel memory limit", "L40S", "isolation: soft"):
        assert word in str(refused.value)


HELD = {"isolation": "hard", "or_mig": True, "or_mps": True, "limitable": True}


@pytest.mark.parametrize(
    ("info", "held_by"),
    [
        (mig_node("a", mechanisms=("mig", "mps", "memory_limit")), "mig"),
        (changed(node("a", 1), mechanisms=("mps", "memory_limit")), "mps"),
        (changed(node("a", 1), mechanisms=("memory_limit", "hami")), "memory_limit"),
        (changed(node("a", 1), mechanisms=("hami",)), "hami"),
    ],
)
def test_a_part_that_must_be_held_is_held_by_the_strongest_that_there_is(info, held_by):
    """Case sharing-02: nobody has to say which."""
    world = World(info)
    world.submit("j", memory(5000, **HELD))
    lease = world.lease("j")
    assert (lease.isolation, lease.mechanism) == ("hard", held_by)
    assert lease.sharing == (held_by if held_by in ("mig", "mps") else "fraction")


def test_a_part_that_must_be_held_goes_to_mps_where_no_instance_is_left():
    world = World(mig_node("a"), changed(node("b", 1), mechanisms=("mps",)))
    world.submit("j", share(0.5, **HELD), array=3)
    mechanisms = [world.lease(f"j.{at}").mechanism for at in range(3)]
    assert mechanisms == ["mig", "mps", "mps"]
    world.hold("j.1")
    assert any(change.mps for change in world.cut())
    (launch,) = wanted(world.state, "vm").launches
    env = dict(launch.env)
    assert (launch.run.job, env["RAYSCHED_SHARING"]) == ("j.1", "mps")
    assert "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT" in env


def test_what_raysched_does_not_start_itself_is_never_held_by_a_limit_of_the_kernel():
    """A container has a control group of its own, and a program's lease processes that are there already."""
    world = World(changed(node("a", 1), mechanisms=("memory_limit",)))
    with pytest.raises(Refused, match="isolation: hard can't be kept"):
        world.submit("j", share(0.5, isolation="hard"))
    world.submit("j", share(0.5, isolation="hard", limitable=True))
    world.run("j")
    (launch,) = wanted(world.state, "vm").launches
    assert launch.limited
    world.submit("soft", share(0.5, limitable=True))
    world.run("soft")
    assert [launch.limited for launch in wanted(world.state, "vm").launches] == [True, False]


@pytest.mark.parametrize(
    ("request_", "mechanisms", "says"),
    [
        (share(0.5, **HELD), (), "install MPS there .nvidia-cuda-mps-control"),
        (share(0.5, isolation="hard"), ("mps",), "ask for sharing: mps"),
        (turn(isolation="hard"), ("mps",), "ask for sharing: mps"),
    ],
)
def test_what_could_hold_it_is_named(request_, mechanisms, says):
    world = World(changed(node("a", 1, model="L40S", memory=46068), mechanisms=mechanisms))
    with pytest.raises(Refused, match=says):
        world.submit("j", request_)


def test_a_hard_request_never_lands_on_a_gpu_where_nothing_enforces_it():
    world = World(changed(node("a", 2), index=1, mechanisms=("hami",)))
    world.submit("j", share(0.6, isolation="hard"), array=2)
    assert world.gpus("j.0") == ["GPU-a-1"]
    assert world.job("j.1").state == "waiting"


# ------------------------------------------------------------ MPS


def mps_world():
    return World(changed(node("a", 1), mechanisms=("mps",)))


def test_a_tenant_under_mps_starts_only_once_the_daemon_runs():
    world = mps_world()
    world.submit("a", mps(share=2500))
    world.hold("a")
    assert world.lease("a").state in ("granted", "held")
    (change,) = world.cut()
    assert (change.mps, change.mig) == (True, False)
    assert world.lease("a").state == "bound"
    (launch,) = wanted(world.state, "vm").launches
    env, (slice,) = dict(launch.env), world.lease("a").places[0].slices
    assert env["CUDA_MPS_PIPE_DIRECTORY"] == f"/tmp/{slice.gpu}"
    assert env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"
    assert env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == f"{slice.gpu}={slice.memory}M"
    assert env["CUDA_VISIBLE_DEVICES"] == slice.gpu
    world.submit("b", mps(share=2500))
    world.hold("b")
    assert world.lease("b").state == "bound", "the daemon runs already"
    assert not world.cut()


def test_a_daemon_ends_with_its_last_tenant_and_nobody_comes_before_it_has():
    """Who came while it ends would run without MPS, and not know."""
    world = mps_world()
    for name in ("a", "b"):
        world.submit(name, mps(share=2500))
        world.run(name)
    world.finish("a")
    assert not world.cut(), "one tenant is left"
    world.finish("b")
    assert world.submit("c", mps(share=2500)).state == "waiting"
    assert world.submit("d", whole()).state == "waiting"
    assert "MPS daemon" in world.why("c").why
    (change,) = world.cut()
    assert not change.mps
    assert world.state.jobs["c"].state == "starting"


def test_the_death_of_a_daemon_ends_its_tenants():
    world = mps_world()
    world.submit("a", mps(share=2500))
    world.run("a")
    uuid = world.lease("a").places[0].slices[0].gpu
    world.layout("a", uuid, Layout())
    assert world.state.jobs["a"].state == "failed"
    assert "MPS daemon" in world.state.jobs["a"].reason


def test_a_daemon_that_does_not_start_is_the_reason_why_one_waits():
    world = mps_world()
    world.submit("a", mps(share=2500))
    world.hold("a")
    uuid = world.lease("a").places[0].slices[0].gpu
    world.do(CutRefused("a", uuid, DAEMON, "its MPS daemon does not start: no"))
    world.do(Gone("a.1"))
    assert world.state.jobs["a"].state == "waiting"
    assert "does not start: no" in world.why("a").why
    world.do(Cancel("a", "me"))
    assert world.submit("b", share(0.1)).state == "starting", "without MPS it can be had"
