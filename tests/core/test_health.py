"""GPUs that fail or vanish, nodes that drain or come back: who is told, and what is still granted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raysched.core import facts, views
from raysched.core.commands import Cordon, Gone, NodeGone, NodeSeen, Tick
from raysched.core.decide import NODE_PATIENCE
from raysched.core.events import event_view
from raysched.errors import NotFound
from tests.core.world import World, changed, mig, mig_node, node, share, whole

BROKEN = "XID 79: the GPU has fallen off the bus"


def shown(world: World, job: str) -> dict:
    return views.job_view(world.state, world.job(job), world.now)


def test_nothing_is_placed_on_a_faulty_gpu_and_its_tenants_are_told():
    info = node("a", 2)
    world = World(info)
    world.submit("one", share(0.5))
    world.submit("two", share(0.5))
    world.run("one")
    written = world.do(NodeSeen(changed(info, fault=BROKEN)))
    told = [fact for fact in written if isinstance(fact, facts.Warned)]
    assert [(fact.job, fact.warning) for fact in told] == [
        ("one", f"GPU-a-0 on a is faulty: {BROKEN}"),
        ("two", f"GPU-a-0 on a is faulty: {BROKEN}"),
    ]
    event = event_view(world.state, 1, told[0])
    assert event is not None
    assert (event["job"], event["event"], event["message"]) == ("one", "warned", told[0].warning)
    assert world.job("one").state == "running", "it goes on: only its owner knows whether it can"
    assert shown(world, "one")["warning"] == told[0].warning
    world.submit("three", share(0.1))
    assert world.gpus("three") == ["GPU-a-1"]
    world.submit("pair", whole(2))
    assert world.job("pair").state == "waiting"


def test_a_job_that_waits_because_of_a_faulty_gpu_is_told_so():
    world = World(changed(node("a", 1), fault=BROKEN))
    assert world.submit("j", whole()).state == "waiting"
    assert world.why("j").why == f"no whole GPU is free; GPU-a-0 is faulty: {BROKEN}"
    world.do(NodeSeen(node("a", 1)))
    assert world.job("j").state == "starting"


def test_what_is_free_on_a_faulty_gpu_is_not_told_as_free():
    world = World(changed(node("a", 2), fault=BROKEN))
    world.submit("one", share(0.7))
    world.submit("two", share(0.5))
    assert world.why("two").why == (
        "needs 0.5 of one GPU; the largest free share is 0.3 (GPU-a-1 on a); GPU-a-0 is faulty: " + BROKEN
    )


def test_a_gpu_that_is_well_again_is_used_and_the_warning_taken_back():
    info = node("a", 1)
    world = World(info)
    world.submit("j", share(0.5))
    world.do(NodeSeen(changed(info, fault=BROKEN)))
    assert shown(world, "j")["warning"]
    assert [type(fact) for fact in world.do(NodeSeen(info))] == [facts.NodeJoined, facts.Warned]
    assert shown(world, "j")["warning"] == ""


def test_a_new_attempt_elsewhere_begins_without_the_warning():
    info = node("a", 2)
    world = World(info)
    world.submit("j", whole(), retries=1)
    world.run("j")
    world.do(NodeSeen(changed(info, fault=BROKEN)))
    world.exit("j", 1)
    assert world.gpus("j") == ["GPU-a-1"]
    assert shown(world, "j")["warning"] == ""


def test_a_tenant_whose_gpu_vanished_is_told():
    info = node("a", 2)
    world = World(info)
    world.submit("both", whole(2))
    world.run("both")
    world.do(NodeSeen(replace(info, gpus=info.gpus[:1])))
    assert world.job("both").state == "running"
    assert shown(world, "both")["warning"] == "GPU-a-1 is no longer there on a"
    world.do(NodeSeen(info))
    assert shown(world, "both")["warning"] == ""


def test_nothing_new_starts_on_a_node_that_drains_and_what_runs_goes_on():
    world = World(node("a", 1), node("b", 1))
    world.submit("old", share(0.5))
    [place] = world.lease("old").places
    world.run("old")
    world.do(Cordon(place.node, on=True))
    assert world.job("old").state == "running"
    world.submit("new", share(0.1), array=2)
    assert {world.lease(f"new.{n}").places[0].node for n in range(2)} == {"b"}
    world.submit("pair", whole(2))
    assert world.job("pair").state == "waiting"
    world.submit("third", whole(1))
    assert f"nothing new starts on {place.node}" not in world.why("third").why, "it has no whole GPU anyway"
    world.finish("old")
    assert world.job("third").state == "waiting"
    assert f"nothing new starts on {place.node}, cordoned" in world.why("third").why
    world.do(Cordon(place.node, on=False))
    assert world.states()["pair"] == "waiting"


def test_where_all_nodes_drain_the_reason_is_that():
    world = World(node("a", 1))
    world.do(Cordon("a", on=True))
    assert world.do(Cordon("a", on=True)) == []
    assert world.submit("j", whole()).state == "waiting"
    assert world.why("j").why == "nothing new starts on a: cordoned until `raysched node uncordon a`"
    world.do(NodeGone("a"))
    world.do(NodeSeen(node("a", 1)))
    assert world.job("j").state == "waiting", "a node that comes back still drains"
    world.do(Cordon("a", on=False))
    assert world.job("j").state == "starting"
    with pytest.raises(NotFound, match="no node b"):
        world.do(Cordon("b", on=True))


def twin() -> World:
    """Two nodes that report the same two GPUs, the first one running a job on one of them."""
    world = World(node("a", 2))
    world.do(NodeSeen(replace(node("b", 0), gpus=node("a", 2).gpus)))
    world.submit("j", whole())
    world.run("j")
    return world


def test_a_gpu_that_a_lost_node_also_reported_is_not_granted_twice():
    world = twin()
    world.do(NodeGone("a"))
    world.do(NodeSeen(replace(node("b", 0), gpus=node("a", 2).gpus)))
    assert list(world.state.nodes["b"].gpus) == ["GPU-a-1"], "the other one has a tenant until that is lost"
    assert list(world.state.nodes["a"].gpus) == ["GPU-a-0"]
    world.submit("next", whole())
    assert world.gpus("next") == ["GPU-a-1"]
    lease = world.lease("j").id
    world.now += NODE_PATIENCE
    world.do(Tick())
    world.do(Gone(lease))
    world.do(NodeSeen(replace(node("b", 0), gpus=node("a", 2).gpus)))
    assert set(world.state.nodes["b"].gpus) == {"GPU-a-0", "GPU-a-1"}


def test_a_node_that_comes_back_does_not_take_back_the_gpus_that_moved():
    world = twin()
    world.do(NodeGone("a"))
    world.do(NodeSeen(replace(node("b", 0), gpus=node("a", 2).gpus)))
    world.do(NodeSeen(node("a", 2)))
    assert list(world.state.nodes["a"].gpus) == ["GPU-a-0"]
    assert list(world.state.nodes["b"].gpus) == ["GPU-a-1"]


def test_nothing_is_cut_from_a_gpu_that_is_no_longer_there():
    """It stays known while a tenant is on it; the rest of it is nobody's."""
    both = mig_node("a", 2)
    world = World(both)
    world.submit("stays", mig("3g.40gb"))
    world.submit("fills", mig("7g.80gb"))
    [gone] = world.gpus("stays")
    world.do(NodeSeen(replace(both, gpus=tuple(gpu for gpu in both.gpus if gpu.uuid != gone))))
    world.submit("more", mig("3g.40gb"))
    assert world.job("more").state == "waiting"


def test_a_faulty_gpu_warns_a_mig_tenant_and_leaves_its_instance():
    info = mig_node("a")
    world = World(info)
    world.submit("j", mig("1g.10gb"))
    world.run("j")
    layout = world.state.nodes["a"].gpus["GPU-a-0"].info.layout
    world.do(NodeSeen(changed(info, fault=BROKEN, layout=layout)))
    assert world.job("j").state == "running"
    assert "faulty" in shown(world, "j")["warning"]
