"""Machines behind SSH: the inventory, and leases on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from world import World, node

from raysched.core.commands import (
    AddHost,
    Cancel,
    Gone,
    HostOut,
    HostSeen,
    Inventory,
    NodeSeen,
    RemoveHost,
    Tick,
)
from raysched.core.host import Host
from raysched.core.node import NodeInfo
from raysched.core.request import WHOLE, Request
from raysched.core.wanted import wanted
from raysched.errors import Conflict, NotFound, Refused

ONE = Request(share=WHOLE)


def host(name: str, gpus: int = 1) -> NodeInfo:
    return node(name, gpus, ray_id=None, backends=("vm",))


def with_host(*names: str) -> World:
    world = World()
    for name in names:
        world.do(AddHost(Host(name, f"{name}.example")))
        world.do(HostSeen(host(name)))
    return world


def test_a_lease_on_a_host_is_bound_at_once_and_free_once_nothing_is_left() -> None:
    world = with_host("a")
    world.submit("j", ONE)
    (launch,) = wanted(world.state, "vm").launches
    assert launch.place.node == "a"
    world.do(Cancel("j", "ana"))
    (stop,) = wanted(world.state, "vm").stops
    assert stop.node == "a"
    world.exit("j", 143)
    (release,) = wanted(world.state, "vm").releases
    assert [place.node for place in release.places] == ["a"]
    assert wanted(world.state, "ray").releases == ()
    world.submit("k", ONE)
    assert world.job("k").state == "waiting"
    world.do(Gone("j.1", ("a",)))
    assert world.job("k").state == "starting"


def test_a_lease_over_a_node_of_ray_and_a_host_is_kept_by_both() -> None:
    world = with_host("a")
    world.do(NodeSeen(node("r", 1)))
    world.submit("j", Request(gpus=2, share=WHOLE))
    (hold,) = wanted(world.state, "ray").holds
    assert [place.node for place in hold.places] == ["r"]
    world.do(Cancel("j", "ana"))
    parts = {name: wanted(world.state, name).releases for name in ("ray", "vm")}
    assert {name: [p.node for hold in holds for p in hold.places] for name, holds in parts.items()} == {
        "ray": ["r"],
        "vm": ["a"],
    }
    world.do(Gone("j.1", ("a",)))
    assert [place.node for place in world.state.leases["j.1"].places] == ["r"]
    world.do(Gone("j.1", ("r",)))
    assert not world.state.leases


def test_a_host_out_of_reach_gets_nothing_new_and_the_reason_is_told() -> None:
    """Case vm-01."""
    world = with_host("a", "b")
    world.do(HostOut("a", "the host key of a changed"))
    assert world.state.nodes["a"].lost is not None
    world.submit("j", ONE)
    assert world.job("j").places[0].node == "b"
    with pytest.raises(Refused, match="a is out: the host key of a changed"):
        world.submit("k", Request(gpus=5, share=WHOLE))
    world.do(HostSeen(host("a")))
    assert world.state.hosts["a"].reason == ""
    assert world.state.nodes["a"].lost is None


def test_a_gpu_that_a_node_of_ray_has_is_one_gpu() -> None:
    world = World(node("r", 1))
    world.do(AddHost(Host("a", "a")))
    world.do(HostSeen(replace(host("a"), gpus=world.state.nodes["r"].info.gpus)))
    assert "a" not in world.state.nodes
    assert "those of r" in (world.state.hosts["a"].reason or "")


def test_a_removed_host_is_gone_once_nobody_holds_anything_there() -> None:
    world = with_host("a")
    world.submit("j", ONE)
    world.do(RemoveHost("a"))
    assert world.state.nodes["a"].draining
    world.exit("j")
    world.do(Tick())
    assert "a" in world.state.hosts
    world.do(Gone("j.1"))
    world.do(Tick())
    assert not world.state.hosts
    assert not world.state.nodes
    world.do(HostSeen(host("a")))  # its watch told it a moment too late
    assert not world.state.nodes
    with pytest.raises(NotFound):
        world.do(RemoveHost("a"))


def test_a_machine_with_the_address_of_one_that_is_leaving_is_used() -> None:
    world = with_host("a")
    world.submit("j", ONE)
    world.do(RemoveHost("a"))
    world.do(AddHost(Host("b", "a.example")))
    assert set(world.state.hosts) == {"a", "b"}


def test_the_configuration_names_its_hosts_and_takes_them_back() -> None:
    world = World(node("r", 1))
    world.do(Inventory((Host("a", "a"), Host("b", "b"), Host("r", "r"))))
    assert list(world.state.hosts) == ["a", "b"]
    with pytest.raises(Conflict, match="configuration"):
        world.do(RemoveHost("a"))
    with pytest.raises(Conflict, match="configuration"):
        world.do(AddHost(Host("a", "elsewhere")))
    with pytest.raises(Conflict, match="name of a node"):
        world.do(AddHost(Host("r", "r")))
    world.do(AddHost(Host("c", "c")))
    with pytest.raises(Conflict, match="c has this address already"):
        world.do(AddHost(Host("d", "c")))
    world.do(Inventory((Host("b", "b2"),)))
    assert {name: known.host.address for name, known in world.state.hosts.items()} == {
        "b": "b2",
        "c": "c",
    }


def test_a_host_that_is_used_is_not_changed_under_its_jobs() -> None:
    world = with_host("a")
    world.submit("j", ONE)
    with pytest.raises(Conflict, match="in use"):
        world.do(AddHost(Host("a", "elsewhere")))
    world.do(AddHost(Host("a", "a.example")))


def test_a_host_at_another_address_gets_nothing_until_it_was_reached_there() -> None:
    world = with_host("a")
    world.do(AddHost(Host("a", "elsewhere")))
    world.submit("j", ONE)
    assert world.job("j").state == "waiting"
    world.do(HostSeen(host("a")))
    assert world.job("j").state == "starting"


def test_a_node_of_ray_takes_the_place_of_a_host_of_its_name_once_that_is_free() -> None:
    """Else each would be described as the other, again and again, and one GPU be granted as both have it."""
    world = with_host("a")
    world.submit("j", ONE)
    joins = NodeSeen(node("a", 1))
    world.do(joins)
    world.do(HostSeen(host("a")))
    assert world.state.nodes["a"].info.ray_id is None
    world.submit("k", ONE)
    assert world.job("k").state == "waiting"
    world.exit("j")
    world.do(Gone("j.1"))
    world.do(Tick())
    world.do(joins)
    world.do(HostSeen(host("a")))
    assert (list(world.state.hosts), world.state.nodes["a"].info.ray_id) == ([], "ray-a")
    assert world.job("k").places[0].node == "a"


def test_a_node_of_a_site_is_no_host_of_its_name() -> None:
    """Its mirror tells it under another name, once it has heard of the host."""
    world = with_host("a")
    world.do(NodeSeen(replace(host("a"), backends=("slurm",), site=True)))
    assert list(world.state.hosts) == ["a"]
    assert not world.state.nodes["a"].info.site


def test_a_job_lands_on_a_host_with_the_labels_that_it_names() -> None:
    world = with_host("a", "b")
    labels = (("disk", "fast"), ("zone", "x"))
    world.do(HostSeen(replace(host("b"), labels=labels)))
    job = world.submit("j", Request(share=WHOLE, node_selector=(("zone", "x"),)))
    assert job.places[0].node == "b"
    world.submit("second", Request(share=WHOLE, node_selector=labels))
    assert world.job("second").state == "waiting"
    with pytest.raises(Refused, match="no host has zone=y"):
        world.submit("k", Request(share=WHOLE, node_selector=(("zone", "y"),)))
