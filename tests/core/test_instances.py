"""MIG: which instance a job gets, what is cut for it, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raysched.core import facts, views
from raysched.core.commands import Cancel, CutRefused, Gone, Held, NodeSeen, Tick, Usage
from raysched.core.cutting import REFUSAL
from raysched.core.decide import CUT_PATIENCE
from raysched.core.environment import variables
from raysched.core.mig import Cut, Layout
from raysched.core.request import Request
from raysched.core.wanted import owned, partitions, wanted
from raysched.core.work import Partition
from raysched.errors import Refused
from raysched.gpu.geometries import CUT
from raysched.gpu.models import MODELS
from tests.core.world import World, changed, instances, memory, mig, mig_node, node, share, whole

GPU = "GPU-a-0"


def layout(world: World, gpu: str = GPU) -> Layout:
    return world.state.nodes["a"].gpus[gpu].info.layout


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "id", "starts"),
    [
        ("3g.40gb", 9, {0, 4}),
        ("3g.39gb", 9, {0, 4}),
        ("7g.79gb", 0, {0}),
        ("4g.39gb", 5, {0}),
        ("1g.10gb+me", 20, set(range(7))),
        ("1g.20gb", 15, {0, 2, 4, 6}),
        ("2g.20gb", 14, {0, 2, 4}),
    ],
)
def test_names_of_other_drivers_mean_the_same_cut(name, id, starts):
    """Case spec-04."""
    world = World(mig_node("a"))
    world.submit("j", mig(name))
    [slice] = world.lease("j").places[0].slices
    assert slice.cut is not None
    assert slice.cut.profile == id
    assert slice.cut.start in starts


@pytest.mark.parametrize("name", ["3g.20gb", "5g.40gb", "1g.10gb+gfx", "7g.94gb", "1g.5gb"])
def test_a_profile_that_no_gpu_has_is_refused_with_the_list_of_those_there_are(name):
    """Case spec-04: 3g.20gb is the 40 GB card's."""
    with pytest.raises(
        Refused, match=r"mig_profile: asks for .*A100-80GB has 1g\.10gb, .*3g\.40gb"
    ) as refused:
        World(mig_node("a")).submit("j", mig(name))
    assert name in str(refused.value)


def test_names_that_gb300s_drivers_disagree_on_are_one():
    """1g.35gb under driver 59x is 1g.31gb under 61x, and 7g.278gb is 7g.251gb."""
    info = mig_node("a", model="GB300", memory=MODELS["GB300"])
    for name, id in (("1g.31gb", 19), ("1g.35gb", 19), ("3g.126gb", 9), ("7g.251gb", 0)):
        world = World(info)
        world.submit("j", mig(name))
        assert world.lease("j").places[0].slices[0].cut == Cut(id, world.start_of("j")[0])


@pytest.mark.parametrize("model", sorted(CUT))
def test_every_profile_of_every_gpu_is_had_as_often_as_it_fits(model):
    """Every GPU of the table, each profile alone: so many run, and one more waits."""
    info = mig_node("a", model=model, memory=MODELS[model])
    geometry = info.gpus[0].mig
    assert geometry is not None
    for profile in geometry.profiles:
        world = World(info)
        world.submit("j", mig(profile.name), array=profile.most + 1)
        world_states = list(world.states().values())
        assert world_states.count("starting") == profile.most, f"{model} {profile.name}"
        gpu = world.state.nodes["a"].gpus[GPU]
        assert gpu.memory_used == profile.most * profile.memory
        assert gpu.share_used == profile.most * (profile.slices * 10_000 // geometry.slices)


@pytest.mark.parametrize(
    ("mib", "profile"), [(1, 19), (9_728, 19), (9_729, 15), (19_968, 15), (30_000, 9), (40_193, 0)]
)
def test_use_mig_with_gpu_memory_takes_the_smallest_instance_that_has_it(mib, profile):
    world = World(mig_node("a"))
    world.submit("j", Request(memory=mib, sharing="mig"))
    assert world.lease("j").places[0].slices[0].cut.profile == profile
    with pytest.raises(Refused, match="use_mig: asks for at least 90000 MiB"):
        world.submit("huge", Request(memory=90_000, sharing="mig"))


# ---------------------------------------------------------------- where


def test_three_small_slices_then_a_big_one():
    """Case sharing-05."""
    world = World(mig_node("a"))
    for number, name in enumerate(["1g.10gb", "1g.10gb", "1g.10gb", "3g.40gb", "1g.10gb"]):
        world.submit(f"j{number}", mig(name))
    assert world.start_of("j3") == [4]
    assert sorted(world.start_of(f"j{number}")[0] for number in (0, 1, 2, 4)) == [0, 1, 2, 3]
    for number in range(5):
        world.run(f"j{number}")
    assert set(world.states().values()) == {"running"}
    assert len(layout(world).instances) == 5
    world.submit("sixth", mig("1g.10gb"))
    assert world.job("sixth").state == "waiting"
    assert "no MIG slice is free for 1g.10gb" in world.why("sixth").why
    world.finish("j1")
    assert world.job("sixth").state == "starting"


def test_the_same_jobs_fit_in_any_order_that_leaves_a_way():
    """Case sharing-05, the other way round and with free instances in the way, which are destroyed."""
    world = World(mig_node("a"))
    world.submit("small", mig("1g.10gb"), array=7)
    for number in range(7):
        world.finish(f"small.{number}")
    assert len(layout(world).instances) == 7, (
        "free instances are left as they are until another needs the room"
    )
    world.submit("big", mig("3g.40gb"), array=2)
    for number in range(2):
        world.run(f"big.{number}")
    assert {there.cut for there in layout(world).instances} == {Cut(9, 0), Cut(9, 4)}


def test_an_instance_that_exists_is_taken_before_one_is_made():
    info = changed(mig_node("a", enabled=True), layout=Layout(True, instances((19, 5), (9, 0))))
    world = World(info)
    world.submit("j", mig("1g.10gb"))
    assert world.start_of("j") == [5]
    world.hold("j")
    assert world.lease("j").state == "bound", "nothing has to be cut"
    assert world.lease("j").places[0].slices[0].instance == "MIG-19-5"


def test_a_place_that_needs_no_destroying_is_preferred():
    info = changed(mig_node("a", enabled=True), layout=Layout(True, instances((19, 0), (19, 1))))
    world = World(info)
    world.submit("j", mig("3g.40gb"))
    assert world.start_of("j") == [4]
    world.submit("k", mig("3g.40gb"))
    assert world.start_of("k") == [0]
    world.hold("k")
    [change] = partitions(world.state, "a")
    assert change == Partition(GPU, True, destroy=(Cut(19, 0), Cut(19, 1)), create=(Cut(9, 0),))


def test_a_gpu_in_mig_mode_is_used_before_another_is_turned():
    world = World(mig_node("a", 3))
    world.submit("j", mig("2g.20gb"), array=4)
    used = [world.gpus(f"j.{number}")[0] for number in range(4)]
    assert len(set(used[:3])) == 1
    assert used[3] != used[0]


def test_shares_and_whole_gpus_leave_a_gpu_in_mig_mode_alone_while_there_are_others():
    info = mig_node("a", 2)
    world = World(changed(info, layout=Layout(True)))
    world.submit("whole", whole())
    assert world.gpus("whole") == ["GPU-a-1"]
    world.submit("other", whole())
    world.hold("other")
    assert partitions(world.state, "a") == (Partition(GPU, False),)
    world.cut()
    assert world.lease("other").state == "bound"
    assert not layout(world).enabled


def test_several_instances_may_lie_on_one_gpu():
    world = World(mig_node("a", 2))
    world.submit("pair", mig("3g.40gb", gpus=2))
    assert set(world.gpus("pair")) == {GPU}
    assert sorted(world.start_of("pair")) == [0, 4]
    world.run("pair")
    [place] = world.lease("pair").places
    env = variables("pair.1", "mig", place)
    assert env["CUDA_VISIBLE_DEVICES"] == ",".join(str(slice.instance) for slice in place.slices)
    assert env["CUDA_VISIBLE_DEVICES"].startswith("MIG-")
    world.finish("pair")
    assert not world.state.nodes["a"].gpus[GPU].tenants


def test_no_more_gpus_are_turned_than_are_needed():
    world = World(mig_node("a", 2))
    world.submit("j", mig("1g.20gb", gpus=3))
    assert len(set(world.gpus("j"))) == 1


def test_instances_are_granted_over_nodes_or_not_at_all():
    world = World(mig_node("a"), mig_node("b"))
    world.submit("gang", mig("7g.80gb", gpus=2))
    assert {place.node for place in world.lease("gang").places} == {"a", "b"}
    with pytest.raises(Refused, match="all nodes together have 2 such instances"):
        world.submit("more", mig("7g.80gb", gpus=3))


def test_a_mig_tenant_keeps_shares_and_whole_gpus_off_and_the_other_way_round():
    world = World(mig_node("a"))
    world.submit("slice", mig("1g.10gb"))
    for id, request in (("whole", whole()), ("half", share(0.5)), ("turn", Request(sharing="time_slice"))):
        assert world.submit(id, request).state == "waiting"
    assert (
        world.why("whole").why == "no whole GPU is free; GPU-a-0 is cut into MIG instances until slice ends"
    )
    world = World(mig_node("a"))
    world.submit("half", share(0.5))
    world.submit("slice", mig("1g.10gb"))
    assert world.job("slice").state == "waiting"
    assert "GPU-a-0 is shared until half ends" in world.why("slice").why


# ---------------------------------------------------------------- life


def test_a_lease_is_held_until_its_instance_exists_and_then_bound_to_it():
    world = World(mig_node("a"))
    world.submit("j", mig("2g.20gb"))
    assert world.lease("j").state == "granted"
    assert partitions(world.state, "a") == (), "nothing is cut before Ray holds the GPU"
    world.hold("j")
    assert world.lease("j").state == "held"
    assert wanted(world.state, "vm").launches == ()
    explained = views.explain_view(world.state, world.job("j"), world.now)
    assert explained["why"] == "has its lease on a, where a GPU is being cut for it"
    [change] = partitions(world.state, "a")
    assert (change.gpu, change.mig, change.destroy) == (GPU, True, ())
    world.cut()
    lease = world.lease("j")
    assert lease.state == "bound"
    assert partitions(world.state, "a") == ()
    [launch] = wanted(world.state, "vm").launches
    env = dict(launch.env)
    assert env["CUDA_VISIBLE_DEVICES"] == "MIG-1" == lease.places[0].slices[0].instance
    assert (env["RAYSCHED_SHARING"], env["RAYSCHED_GPU_MEMORY_MIB"]) == ("mig", "19968")
    assert lease.mechanism == "mig"
    assert world.job("j").places == lease.places


def test_a_client_waits_until_its_instance_exists():
    world = World(mig_node("a"))
    world.submit("j", mig("1g.10gb"), kind="lease", owner="o")
    world.hold("j")
    assert [one.state for one in owned(world.state, "o")] == ["waiting"]
    world.cut()
    [one] = owned(world.state, "o")
    assert one.state == "bound"
    assert dict(one.env)["CUDA_VISIBLE_DEVICES"] == "MIG-1"


def test_on_a_node_that_ray_does_not_manage_cutting_starts_at_once():
    world = World(mig_node("a", ray_id=None, backends=("vm",)))
    world.submit("j", mig("1g.10gb"))
    assert world.lease("j").state == "held"
    world.cut()
    assert world.lease("j").state == "bound"


def test_a_change_of_the_layout_alone_is_a_small_fact():
    world = World(mig_node("a", 8))
    written = world.layout("a", GPU, Layout(True))
    assert written == [facts.LayoutChanged(world.now, "a", GPU, Layout(True))]
    assert world.layout("a", GPU, Layout(True)) == []


def test_a_cancelled_job_needs_no_cut():
    world = World(mig_node("a"))
    world.submit("j", mig("1g.10gb"))
    world.hold("j")
    lease = world.lease("j").id
    world.do(Cancel("j", "ana"))
    assert partitions(world.state, "a") == ()
    world.do(Gone(lease))
    assert world.state.nodes["a"].gpus[GPU].mode == "free"


def test_a_gpu_that_vanished_is_not_taken_for_one_that_is_cut_as_needed():
    info = mig_node("a", enabled=True)
    world = World(info)
    world.submit("j", whole())
    world.hold("j")
    assert world.lease("j").state == "held", "the MIG mode has to be switched off"
    world.do(NodeSeen(replace(info, gpus=())))
    assert world.lease("j").state == "held"
    assert partitions(world.state, "a") == ()
    world.do(Tick())
    assert world.job("j").state == "waiting"
    assert "GPU-a-0 is no longer there" in world.job("j").reason


# ---------------------------------------------------------------- refusals


def test_a_refusal_of_the_driver_leads_to_another_plan():
    world = World(mig_node("a"))
    world.submit("j", mig("3g.40gb"))
    first = world.start_of("j")[0]
    world.hold("j")
    [change] = partitions(world.state, "a")
    lease = world.lease("j").id
    world.do(CutRefused("a", GPU, change.create[0], "insufficient resources"))
    world.do(Gone(lease))
    assert world.job("j").failures == 0, "a refusal costs no retry"
    assert world.start_of("j") == [4 - first]
    assert world.job("j").attempt == 2


def test_without_another_plan_the_job_waits_with_the_drivers_reason_and_is_tried_again_later():
    world = World(mig_node("a"))
    world.submit("j", mig("7g.80gb"))
    world.hold("j")
    lease = world.lease("j").id
    world.do(CutRefused("a", GPU, None, "clients use the GPU"))
    world.do(Gone(lease))
    assert world.job("j").state == "waiting"
    assert "clients use the GPU" in world.why("j").why
    world.submit("k", mig("1g.10gb"))
    assert world.job("k").state == "waiting", "the same switch is not asked for again"
    world.submit("other", whole())
    world.now += REFUSAL - 1
    world.do(Tick())
    assert world.job("j").state == "waiting"
    world.now += 1
    world.do(Tick())
    assert not world.state.nodes["a"].gpus[GPU].refusals
    assert world.job("j").state == "starting"


def test_a_refusal_is_forgotten_once_the_gpu_is_cut_differently():
    world = World(mig_node("a", enabled=True))
    world.submit("j", mig("7g.80gb"))
    world.hold("j")
    lease = world.lease("j").id
    world.do(CutRefused("a", GPU, Cut(0, 0), "no"))
    world.do(Gone(lease))
    assert world.job("j").state == "waiting"
    world.layout("a", GPU, Layout(True, instances((19, 0))))
    assert world.job("j").state == "starting"


def test_an_instance_that_can_not_be_destroyed_is_left_where_it_is():
    world = World(changed(mig_node("a", enabled=True), layout=Layout(True, instances((19, 0), (19, 4)))))
    world.submit("j", mig("3g.40gb"))
    world.hold("j")
    [change] = partitions(world.state, "a")
    lease = world.lease("j").id
    world.do(CutRefused("a", GPU, change.destroy[0], "in use by another client"))
    world.do(Gone(lease))
    world.hold("j")
    [other] = partitions(world.state, "a")
    assert set(other.destroy) == {Cut(19, 0), Cut(19, 4)} - set(change.destroy)


def test_a_gpu_that_is_not_cut_in_time_leads_to_another_plan():
    """The agent or the driver of its node hangs."""
    world = World(mig_node("a"), mig_node("b"))
    world.submit("j", mig("1g.10gb"))
    first, [place] = world.lease("j").id, world.lease("j").places
    world.hold("j")
    world.now += CUT_PATIENCE - 1
    world.do(Tick())
    assert world.lease("j").id == first
    world.now += 1
    world.do(Tick())
    assert world.job("j").failures == 0
    assert world.lease("j").places[0].node != place.node


def test_the_smallest_change_names_the_largest_profile_that_would_start():
    world = World(mig_node("a"))
    world.submit("one", mig("3g.40gb"))
    world.submit("two", mig("7g.80gb"))
    assert world.why("two").change == "mig_profile: 4g.40gb would start now"
    world = World(mig_node("a"))
    world.submit("one", mig("4g.40gb"))
    world.submit("two", mig("4g.40gb"))
    assert world.why("two").change == "mig_profile: 3g.40gb would start now"
    world = World(mig_node("a"))
    world.submit("one", mig("2g.20gb"), array=2)
    world.submit("two", Request(memory=50_000, sharing="mig"))
    assert world.why("two").change == "mig_profile: 3g.40gb would start now"


# ---------------------------------------------------------------- strangers, changes by hand


def test_an_instance_that_a_stranger_uses_is_neither_given_nor_destroyed():
    world = World(changed(mig_node("a", enabled=True), layout=Layout(True, instances((19, 0), (19, 1)))))
    world.do(Usage("a", GPU, 500, ("MIG-19-0",)))
    world.submit("one", mig("1g.10gb"))
    assert world.start_of("one") == [1]
    world.submit("big", mig("4g.40gb"))
    assert world.job("big").state == "waiting", "4g needs slices 0 to 3"
    world.submit("whole", whole())
    assert world.job("whole").state == "waiting"
    world.finish("one")
    world.do(Usage("a", GPU, 0))
    assert world.job("big").state == "starting"


def test_where_it_is_not_known_which_instance_strangers_use_none_that_exists_is_free():
    world = World(changed(mig_node("a", enabled=True), layout=Layout(True, instances((19, 0), (19, 1)))))
    world.do(Usage("a", GPU, 500))
    world.submit("one", mig("1g.10gb"))
    assert world.start_of("one")[0] not in (0, 1)


def test_a_gpu_that_a_stranger_uses_is_not_turned():
    world = World(mig_node("a"))
    world.do(Usage("a", GPU, 500))
    assert world.submit("j", mig("1g.10gb")).state == "waiting"
    assert "without a lease" in world.why("j").why
    world.do(Usage("a", GPU, 0))
    world.hold("j")
    world.do(Usage("a", GPU, 300))
    assert partitions(world.state, "a") == (), "somebody came before it was turned"
    lease = world.lease("j").id
    world.do(Tick())
    world.do(Gone(lease))
    assert world.job("j").state == "waiting"
    assert "processes without a lease use it" in world.job("j").reason


@pytest.mark.parametrize("left", [Layout(True), Layout(False), Layout(True, instances((19, 0), name="new-"))])
def test_an_instance_that_is_gone_under_its_tenant_fails_the_attempt_with_that_reason(left):
    world = World(mig_node("a"))
    world.submit("j", mig("1g.10gb"), retries=1)
    world.submit("held", mig("1g.10gb"), kind="lease", owner="o")
    for id in ("j", "held"):
        world.run(id)
    written = world.layout("a", GPU, left)
    assert world.job("j").failures == 1
    [retried] = [fact for fact in written if isinstance(fact, facts.Retried)]
    assert "MIG instance MIG-1 of GPU-a-0 on a is gone" in retried.reason
    assert world.job("held").state == "failed"
    assert "is gone" in world.job("held").reason


def test_a_node_that_returns_with_another_layout_is_taken_as_it_is():
    info = mig_node("a", 2)
    world = World(info)
    world.submit("j", mig("1g.10gb"))
    world.run("j")
    world.do(NodeSeen(changed(info, layout=Layout(True, instances((9, 4), name="other-")))))
    assert world.job("j").state == "failed"
    world.do(NodeSeen(replace(info, gpus=info.gpus[:1])))
    assert list(world.state.nodes["a"].gpus) == [GPU]


# ---------------------------------------------------------------- what can't be


def test_a_gpu_that_can_not_be_turned_here_says_so():
    world = World(mig_node("a", switchable=False))
    with pytest.raises(Refused, match=r"MIG mode of A100-80GB is off .* nvidia-smi -mig 1"):
        world.submit("j", mig("1g.10gb"))
    assert world.submit("half", share(0.5)).state == "starting"
    world = World(mig_node("a", switchable=False, enabled=True))
    assert world.submit("j", mig("1g.10gb")).state == "starting"
    with pytest.raises(Refused, match=r"A100-80GB is in MIG mode, .* nvidia-smi -mig 0"):
        world.submit("half", share(0.5))


def test_gpus_without_mig_say_so():
    with pytest.raises(Refused, match=r"L40S can't be cut by MIG; ask for gpu_memory"):
        World(node("a", 1, model="L40S")).submit("j", mig("1g.10gb"))


def test_hard_isolation_is_granted_as_a_mig_instance_once_there_is_one():
    """Case sharing-02."""
    fenced = memory(3815, isolation="hard", or_mig=True)
    world = World(node("l40s", 1, model="L40S", memory=46068))
    with pytest.raises(Refused, match=r"isolation: hard .* MIG, MPS, HAMi or a kernel memory limit"):
        world.submit("fenced", fenced)
    world.do(NodeSeen(mig_node("a")))
    world.submit("fenced", fenced)
    lease = world.lease("fenced")
    assert (lease.sharing, lease.isolation, lease.mechanism) == ("mig", "hard", "mig")
    world.run("fenced")
    env = dict(wanted(world.state, "vm").launches[0].env)
    assert env["CUDA_VISIBLE_DEVICES"].startswith("MIG-")
    assert env["RAYSCHED_SHARING"] == "mig"
    assert int(env["RAYSCHED_GPU_MEMORY_MIB"]) >= 3815


def test_a_held_lease_that_is_held_again_elsewhere_keeps_its_instance():
    from raysched.core.lease import Group

    world = World(mig_node("a"))
    world.submit("j", mig("1g.10gb"))
    world.run("j")
    world.do(Held(world.lease("j").id, (Group("ab", 0),)))
    lease = world.lease("j")
    assert (lease.state, lease.groups) == ("bound", (Group("ab", 0),))
    assert lease.places[0].slices[0].instance == "MIG-1"
