"""Shares of GPUs: what fits beside what, and where it goes."""

from __future__ import annotations

import pytest

from raysched.core.commands import Gone, NodeSeen, Outside, Usage
from raysched.errors import Refused
from tests.core.world import A100, World, memory, node, share, whole


def test_two_halves_run_together_and_a_quarter_waits_until_one_ends():
    world = World(node("a", 1))
    for id, fraction in (("one", 0.5), ("two", 0.5), ("three", 0.25)):
        world.submit(id, share(fraction))
    assert world.states() == {"one": "starting", "two": "starting", "three": "waiting"}
    assert "0.25" in world.why("three").why
    world.finish("one")
    assert world.job("three").state == "starting"


def test_half_of_each_of_three_gpus():
    """Case spec-01."""
    world = World(node("a", 4))
    world.submit("one", share(0.5, gpus=3))
    slices = world.lease("one").places[0].slices
    assert len({slice.gpu for slice in slices}) == 3
    assert {(slice.share, slice.memory) for slice in slices} == {(5000, A100 // 2)}
    world.submit("two", share(0.5, gpus=3))
    assert len(set(world.gpus("two"))) == 3
    world.submit("three", share(0.5, gpus=3))
    assert world.states() == {"one": "starting", "two": "starting", "three": "waiting"}


def test_twenty_three_of_2000_mib_fit_on_46068():
    """Case sharing-01: memory alone decides, the rounding of shares loses nobody."""
    world = World(node("a", 1, memory=46068, model="L40S"))
    world.submit("small", memory(2000), array=24)
    states = list(world.states().values())
    assert (states.count("starting"), states.count("waiting")) == (23, 1)
    explanation = world.why("small.23")
    assert explanation.short_of == "memory"
    assert "2000" in explanation.why
    assert "68 MiB" in explanation.why
    world.finish("small.4")
    assert world.job("small.23").state == "starting"


def test_a_whole_gpu_is_whole():
    """Case sharing-03: nobody beside an exclusive tenant; the mode follows the tenants."""
    world = World(node("a", 1))
    world.submit("A", whole())
    world.submit("B", share(0.22))
    world.submit("C", share(0.22))
    gpu = world.state.nodes["a"].gpus["GPU-a-0"]
    assert gpu.mode == "exclusive"
    assert world.states() == {"A": "starting", "B": "waiting", "C": "waiting"}
    for job in "BC":
        assert "exclusive" in world.why(job).why
        assert "A" in world.why(job).why
    world.finish("A")
    assert gpu.mode == "shared"
    assert gpu.share_used == 4400
    world.submit("D", whole())
    assert world.job("D").state == "waiting"
    world.finish("B")
    assert world.job("D").state == "waiting"
    world.finish("C")
    assert gpu.mode == "exclusive"


def test_what_is_free_in_sum_but_on_no_card_is_not_free():
    """Case sharing-04."""
    world = World(node("a", 2))
    for id in "abc":
        world.submit(id, share(0.6))
    assert world.gpus("a") != world.gpus("b")
    explanation = world.why("c")
    assert "0.6" in explanation.why
    assert "0.4" in explanation.why
    assert "0.8" not in explanation.why
    assert explanation.change == "gpu_fraction: 0.4 would start now"
    world.submit("d", share(0.4))
    assert world.job("d").state == "starting"
    world.finish("a")
    assert world.job("c").state == "starting"


def test_memory_gets_the_share_of_the_card_it_lands_on():
    world = World(node("big", 1), node("small", 1, memory=24576, model="A30"))
    world.submit("large", memory(40000))
    assert world.gpus("large") == ["GPU-big-0"]
    assert world.lease("large").places[0].slices[0].share == 40000 * 10_000 // A100
    world.submit("filler", share(0.5, gpu_types=("A100",)))
    world.submit("small", memory(8192))
    [slice] = world.lease("small").places[0].slices
    assert (slice.gpu, slice.share, slice.memory) == ("GPU-small-0", 3333, 8192)


def test_shares_fill_a_gpu_in_use_before_they_open_another():
    world = World(node("a", 3))
    for id in "abcd":
        world.submit(id, share(0.25))
    assert {gpu for id in "abcd" for gpu in world.gpus(id)} == {"GPU-a-0"}


def test_whole_gpus_come_from_the_node_with_the_fewest_free():
    world = World(node("a", 4), node("b", 2))
    world.submit("pair", whole(2))
    assert world.gpus("pair") == ["GPU-b-0", "GPU-b-1"]


@pytest.mark.parametrize("most", [{"cpus": 30_000}, {"host_memory": 40_000}])
def test_cpus_and_memory_of_a_node_are_granted_once(most):
    world = World(node("a", 4, cpus=4))
    world.submit("one", whole(**most))
    world.submit("two", whole(**most))
    assert world.states() == {"one": "starting", "two": "waiting"}
    world.finish("one")
    assert world.job("two").state == "starting"


def test_a_gang_is_granted_over_nodes_or_not_at_all():
    world = World(node("a", 2), node("b", 2))
    world.submit("holder", whole())
    world.submit("gang", whole(4))
    assert world.job("gang").state == "waiting"
    assert not any(
        "gang" in tenant for n in world.state.nodes.values() for g in n.gpus.values() for tenant in g.tenants
    )
    world.finish("holder")
    assert {place.node: len(place.slices) for place in world.lease("gang").places} == {"a": 2, "b": 2}


def test_nodes_spreads_equally():
    world = World(node("a", 4), node("b", 4))
    world.submit("spread", whole(4, nodes=2))
    assert [len(place.slices) for place in world.lease("spread").places] == [2, 2]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (whole(5), "4"),
        (whole(3, nodes=1), "the largest node has 2"),
        (whole(1, gpu_types=("H100",)), "A100-80GB"),
        (memory(90000), "81920"),
        (whole(1, cpus=170_000), "16"),
        (whole(1, host_memory=100_000), "65536"),
        (whole(2, backends=("k8s",)), "k8s"),
        (share(0.5, isolation="hard"), "MIG"),
    ],
)
def test_what_no_node_could_ever_give_is_refused_naming_the_most_there_is(request_, words):
    world = World(node("a", 2), node("b", 2))
    with pytest.raises(Refused, match=words):
        world.submit("never", request_)
    assert not world.state.jobs


def test_a_submission_is_refused_whole():
    world = World(node("a", 1))
    from raysched.core.commands import JobRequest, Submit

    jobs = (JobRequest("ok", "ok", "command", whole()), JobRequest("no", "no", "command", whole(9)))
    with pytest.raises(Refused):
        world.do(Submit("k", "ana", jobs))
    assert not world.state.jobs


@pytest.mark.parametrize(
    ("kind", "there"),
    [("A100", True), ("a100-80gb", True), ("80GB", True), ("A10", False), ("A100-40GB", False)],
)
def test_gpu_type_matches_whole_words_whatever_the_case(kind, there):
    world = World(node("a", 1))
    if there:
        assert world.submit("j", whole(1, gpu_types=(kind,))).state == "starting"
    else:
        with pytest.raises(Refused):
            world.submit("j", whole(1, gpu_types=(kind,)))


def test_memory_that_a_stranger_holds_is_not_free():
    world = World(node("a", 1))
    world.do(Usage("a", "GPU-a-0", 30_000))
    assert world.submit("whole", whole()).state == "waiting"
    assert "without a lease" in world.why("whole").why
    world.do(Usage("a", "GPU-a-0", 0))
    assert world.job("whole").state == "starting"


def test_a_share_fits_beside_a_stranger_only_in_the_memory_that_is_left():
    world = World(node("a", 1))
    world.do(Usage("a", "GPU-a-0", 60_000))
    assert world.submit("half", share(0.5)).state == "waiting"
    assert world.submit("little", memory(10_000)).state == "waiting"  # half keeps the GPU that it waits for
    world.do(Usage("a", "GPU-a-0", 0))
    assert world.states() == {"half": "starting", "little": "starting"}


def test_a_gpu_that_somebody_holds_in_ray_is_not_free():
    world = World(node("a", 2))
    world.do(Outside("a", ("GPU-a-0",)))
    world.submit("one", share(0.5))
    assert world.gpus("one") == ["GPU-a-1"]
    world.submit("two", whole())
    assert "did not ask raysched" in world.why("two").why
    world.do(Outside("a", ()))
    assert world.gpus("two") == ["GPU-a-0"]


def test_a_lease_is_capacity_until_its_processes_are_gone():
    world = World(node("a", 1))
    world.submit("one", whole())
    world.submit("two", whole())
    lease = world.lease("one").id
    world.run("one")
    world.exit("one")
    assert world.states() == {"one": "succeeded", "two": "waiting"}
    assert "ending" in world.why("two").why
    world.do(Gone(lease))
    assert world.job("two").state == "starting"


def test_a_gpu_that_two_nodes_report_is_one_gpu():
    world = World(node("a", 2))
    twin = node("b", 0)
    world.do(
        NodeSeen(type(twin)(**{**{f: getattr(twin, f) for f in twin.__slots__}, "gpus": node("a", 2).gpus}))
    )
    assert len(world.state.nodes["a"].gpus) == 2
    assert not world.state.nodes["b"].gpus


def test_a_node_that_returns_with_fewer_gpus_keeps_the_tenants_of_the_lost_ones():
    world = World(node("a", 2))
    world.submit("both", whole(2))
    world.do(NodeSeen(node("a", 1)))
    assert set(world.state.nodes["a"].gpus) == {"GPU-a-0", "GPU-a-1"}
    assert not world.state.nodes["a"].gpus["GPU-a-1"].present
    lease = world.lease("both").id
    world.run("both")
    world.exit("both")
    world.do(Gone(lease))
    assert set(world.state.nodes["a"].gpus) == {"GPU-a-0"}


def test_a_container_goes_where_something_runs_it():
    world = World(node("a", 1), node("b", 1, containers="podman"))
    world.submit("boxed", whole(container=True))
    assert world.gpus("boxed") == ["GPU-b-0"]
    world.submit("next", whole(container=True))
    assert world.job("next").state == "waiting"
    assert "GPU-b" in world.why("next").why


def test_a_container_that_nothing_runs_is_refused():
    world = World(node("a", 1))
    with pytest.raises(Refused, match="nothing runs containers on a: install docker, podman or nerdctl"):
        world.submit("boxed", whole(container=True))
