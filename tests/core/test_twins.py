"""A machine that Ray and SSH both reach: one node, one count of its GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from world import World, mig_node, node

from raysched.core import decide
from raysched.core.commands import (
    AddHost,
    Cancel,
    Cordon,
    Gone,
    Held,
    HostOut,
    HostSeen,
    NodeGone,
    NodeSeen,
    Outside,
    RemoveHost,
    Tick,
)
from raysched.core.gpu_views import Usage, gpus_view
from raysched.core.host import Host
from raysched.core.host_views import host_view
from raysched.core.node import NodeInfo
from raysched.core.request import WHOLE, Request
from raysched.core.wanted import host_partitions, partitions, wanted
from raysched.errors import Refused

VM = Request(share=WHOLE, backends=("vm",))
RAY = Request(share=WHOLE, backends=("ray",))
HALF = Request(share=5000, sharing="fraction", backends=("vm",))
NODE = node("r", 2, backends=("ray",))


def over_ssh(name: str = "a", of: NodeInfo = NODE) -> NodeInfo:
    """The machine as its host describes it."""
    return replace(of, name=name, ray_id=None, backends=("vm",))


def both(name: str = "a") -> World:
    world = World(NODE)
    world.do(AddHost(Host(name, f"{name}.example")))
    world.do(HostSeen(over_ssh(name)))
    return world


def backends(world: World, name: str = "r") -> tuple[str, ...]:
    return world.state.nodes[name].backends


@pytest.mark.parametrize("name", ["a", "r"])
def test_one_node_that_both_ways_lead_to(name: str) -> None:
    world = both(name)
    assert list(world.state.nodes) == ["r"]
    assert backends(world) == ("ray", "vm")
    shown = host_view(world.state, name)
    assert (shown["state"], shown["node"], len(shown["gpus"])) == ("ready", "r", 2)
    world.submit("over-ssh", VM)
    world.submit("in-ray", RAY)
    assert [world.lease(job).places[0].node for job in ("over-ssh", "in-ray")] == ["r", "r"]
    assert (
        len({slice.gpu for job in ("over-ssh", "in-ray") for slice in world.job(job).places[0].slices}) == 2
    )
    world.submit("third", VM)
    assert world.job("third").state == "waiting"
    assert world.do(HostSeen(over_ssh(name))) == world.do(NodeSeen(NODE)) == []
    assert [len(each["gpus"]) for each in gpus_view(world.state, Usage(), world.now)["nodes"]] == [2]


def test_ray_holds_what_the_vm_backend_starts_there_by_the_host() -> None:
    world = both()
    world.submit("j", VM)
    assert wanted(world.state, "vm").launches == ()
    (hold,) = wanted(world.state, "ray").holds
    assert hold.places[0].node == "r"
    world.hold("j")
    (launch,) = wanted(world.state, "vm").launches
    assert (launch.place.node, launch.host) == ("r", "a")
    assert wanted(world.state, "ray").launches == ()
    world.do(Cancel("j", "ana"))
    (stop,) = wanted(world.state, "vm").stops
    assert stop.node == "a"


def test_capacity_is_free_once_the_host_and_then_ray_have_let_go() -> None:
    world = both()
    world.submit("j", VM)
    world.hold("j")
    world.exit("j")
    (release,) = wanted(world.state, "vm").releases
    assert release.hosts == ("a",)
    assert wanted(world.state, "ray").releases == ()
    world.do(Gone("j.1", ("r",), "vm"))
    assert wanted(world.state, "vm").releases == ()
    (release,) = wanted(world.state, "ray").releases
    assert [place.node for place in release.places] == ["r"]
    assert world.state.nodes["r"].gpus["GPU-r-0"].tenants
    world.do(Gone("j.1", ("r",), "vm"))  # heard twice
    assert world.state.leases
    world.do(Gone("j.1", ("r",), "ray"))
    assert not world.state.leases


def test_what_ray_starts_there_needs_no_host() -> None:
    world = both()
    world.submit("j", RAY)
    world.hold("j")
    world.exit("j")
    assert wanted(world.state, "vm").releases == ()
    assert len(wanted(world.state, "ray").releases) == 1


def test_a_host_out_of_reach_takes_its_way_and_leaves_the_node() -> None:
    world = both()
    world.submit("j", HALF)
    world.hold("j")
    world.report("j", "running")
    world.do(HostOut("a", "it does not answer"))
    assert backends(world) == ("ray",)
    assert world.state.nodes["r"].lost is None
    with pytest.raises(Refused, match="a is out: it does not answer"):
        world.submit("k", VM)
    world.submit("in-ray", RAY)
    assert world.job("in-ray").state == "starting"
    world.now += decide.NODE_PATIENCE - 1
    world.do(Tick())
    assert world.job("j").state == "running"
    world.do(HostSeen(over_ssh()))
    world.do(HostOut("a", "again"))
    world.now += decide.NODE_PATIENCE
    world.do(Tick())
    assert (world.job("j").state, world.job("j").reason) == ("failed", "a is out: again")
    # What ran there may run on: nobody lets go of it until the host has answered, or for a day.
    assert [wanted(world.state, name).releases for name in ("vm", "ray")] == [(), ()]
    world.do(HostSeen(over_ssh()))
    assert len(wanted(world.state, "vm").releases) == 1
    world.do(HostOut("a", "for ever"))
    world.now += decide.LOST
    world.do(Tick())
    assert len(wanted(world.state, "ray").releases) == 1


def test_a_host_that_ray_comes_to_is_its_node_once_it_is_free() -> None:
    world = World()
    world.do(AddHost(Host("a", "a")))
    world.do(HostSeen(over_ssh()))
    world.submit("j", VM)
    world.do(NodeSeen(NODE))
    assert world.state.nodes["r"].gpus == {}
    with pytest.raises(Refused):
        world.submit("k", VM)  # nothing new starts on what will be Ray's
    world.do(HostSeen(over_ssh()))
    assert backends(world, "a") == ()
    world.exit("j")
    world.do(Gone("j.1", ("a",), "vm"))
    world.do(NodeSeen(NODE))
    assert list(world.state.nodes) == ["r"]
    assert len(world.state.nodes["r"].gpus) == 2
    world.do(HostSeen(over_ssh()))
    assert backends(world) == ("ray", "vm")
    world.submit("k", VM)
    assert world.lease("k").places[0].node == "r"


def test_a_host_whose_node_of_ray_has_its_name_keeps_its_jobs() -> None:
    world = World()
    world.do(AddHost(Host("r", "r")))
    world.do(HostSeen(over_ssh("r")))
    world.submit("j", VM)
    world.report("j", "running")
    world.do(NodeSeen(NODE))
    assert backends(world) == ("ray", "vm")
    (hold,) = wanted(world.state, "ray").holds
    world.do(Held(hold.lease, ()))
    assert world.job("j").state == "running"
    (launch,) = wanted(world.state, "vm").launches
    assert launch.host == "r"


@pytest.mark.parametrize("name", ["a", "r"])
def test_a_node_that_left_ray_is_a_host_again_once_nobody_holds_anything(name: str) -> None:
    world = both(name)
    world.submit("j", HALF)
    world.hold("j")
    world.report("j", "running")
    world.do(NodeGone("r"))
    world.do(HostSeen(over_ssh(name)))
    (launch,) = wanted(world.state, "vm").launches
    assert launch.host == name
    world.exit("j")
    world.do(Gone("j.1"))
    world.do(HostSeen(over_ssh(name)))
    assert backends(world, name) == ("vm",)
    assert world.state.nodes[name].info.ray_id is None
    world.submit("k", VM)
    assert world.lease("k").places[0].node == name
    world.exit("k")
    world.do(Gone("k.1"))
    world.do(NodeSeen(NODE))
    world.do(HostSeen(over_ssh(name)))
    assert backends(world) == ("ray", "vm")


@pytest.mark.parametrize("name", ["a", "r"])
def test_what_somebody_held_in_ray_is_free_once_the_node_is_a_host_again(name: str) -> None:
    world = both(name)
    held = tuple(gpu.uuid for gpu in NODE.gpus)
    world.do(Outside("r", held))
    world.do(NodeGone("r"))
    world.do(HostSeen(over_ssh(name)))
    world.do(Outside("r", held))  # it was on its way
    world.submit("j", VM)
    assert world.job("j").state == "starting"
    assert world.job("j").places[0].node == name


def test_another_machine_of_the_same_name_is_out() -> None:
    world = World(NODE)
    world.do(AddHost(Host("r", "elsewhere")))
    world.do(HostSeen(over_ssh("r", node("other", 1))))
    assert "has other GPUs" in (world.state.hosts["r"].reason or "")
    assert backends(world) == ("ray",)


def test_a_removed_host_leaves_the_node_to_ray() -> None:
    world = both("r")
    world.submit("j", VM)
    world.hold("j")
    world.do(RemoveHost("r"))
    assert backends(world) == ("ray",)
    assert not world.state.nodes["r"].draining
    world.do(Tick())
    assert "r" in world.state.hosts
    world.exit("j")
    world.do(Gone("j.1", ("r",), "vm"))
    world.do(Gone("j.1", ("r",), "ray"))
    world.do(Tick())
    assert not world.state.hosts
    assert list(world.state.nodes) == ["r"]


@pytest.mark.parametrize("name", ["a", "r"])
def test_the_agent_of_the_node_cuts_its_gpus_and_nobody_else(name: str) -> None:
    info = mig_node("r", backends=("ray",))
    world = World(info)
    world.do(AddHost(Host(name, name)))
    world.do(HostSeen(over_ssh(name, info)))
    world.submit("j", Request(sharing="mig", mig_profile="1g.10gb"))
    world.hold("j")
    assert partitions(world.state, "r")
    assert host_partitions(world.state, name) == ()


def test_a_drained_host_drains_its_node() -> None:
    world = both()
    world.do(Cordon("a", True))
    assert world.state.nodes["r"].draining
    assert host_view(world.state, "a")["state"] == "cordoned"


def test_a_node_of_ray_has_the_labels_of_its_host() -> None:
    world = World(NODE)
    world.do(AddHost(Host("a", "a", labels=(("zone", "x"),))))
    world.do(HostSeen(over_ssh()))
    world.submit("j", replace(VM, node_selector=(("zone", "x"),)))
    assert world.lease("j").places[0].node == "r"
    with pytest.raises(Refused):
        world.submit("k", replace(VM, node_selector=(("zone", "y"),)))


@pytest.mark.parametrize("name", ["a", "r"])
def test_a_host_that_is_taken_out_after_it_left_ray_is_no_node_any_more(name: str) -> None:
    world = both(name)
    world.do(Cordon(name, True))
    world.do(NodeGone("r"))
    world.do(RemoveHost(name))
    assert (world.state.nodes, world.state.hosts) == ({}, {})
    world.do(NodeSeen(NODE))
    assert not world.state.nodes["r"].draining


def test_a_node_of_ray_that_is_there_stays_when_its_host_is_taken_out() -> None:
    world = both()
    world.do(RemoveHost("a"))
    assert list(world.state.nodes) == ["r"]
