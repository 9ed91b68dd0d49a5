"""Who leaves a node that is drained, and who stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raysched.core.commands import Cancel, Cordon, Evict, Gone, JobRequest, Once, Submit
from raysched.core.evictions import left_view, staying
from raysched.core.request import WHOLE, Request
from raysched.errors import NotFound
from tests.core.world import World, node

HALF = Request(sharing="fraction", share=WHOLE // 2)


def submit(world: World, id: str, **spec: object) -> None:
    asked = JobRequest(id, id, "command", HALF, {"entrypoint": "true", **spec})
    world.do(Submit(f"key-{id}", "ana", (asked,)))
    world.run(id)


def gone(world: World, lease: str) -> None:
    world.do(Gone(lease, (), "ray"))


def test_what_may_be_stopped_waits_and_starts_elsewhere_and_the_rest_stays() -> None:
    world = World(node("a", 1))
    submit(world, "free")
    submit(world, "fixed", preemptible=False)
    world.do(Cordon("a", True))
    assert {one["job"]: bool(one["why"]) for one in left_view(world.state, "a")} == {
        "free": False,
        "fixed": True,
    }
    lease = world.lease("free").id
    world.do(Evict("a", "ana"))
    assert (world.job("free").state, world.job("free").reason) == ("waiting", "a is drained by ana")
    assert world.job("free").failures == 0
    assert world.job("fixed").state == "running"
    assert [one["job"] for one in left_view(world.state, "a")] == ["free", "fixed"], "it has not ended yet"
    gone(world, lease)
    assert [one["job"] for one in left_view(world.state, "a")] == ["fixed"]
    assert staying(world.state, "a") == {"fixed": "preemptible: false; `raysched cancel fixed` ends it"}
    other = World(node("a", 1), node("b", 1))
    submit(other, "free")
    [place] = other.lease("free").places
    other.do(Cordon(place.node, True))
    other.do(Evict(place.node, "ana"))
    assert other.lease("free").places[0].node == ("b" if place.node == "a" else "a")


def test_who_stays_at_a_site_is_known_before_the_site_says_where_it_is() -> None:
    site = replace(node("a", 1), ray_id=None, site=True, backends=("k8s",), containers="k8s")
    world = World(site, replace(site, name="b", gpus=()))
    request = Request(gpus=0, backends=("k8s",))
    asked = JobRequest("fixed", "fixed", "command", request, {"entrypoint": "true", "preemptible": False})
    world.do(Submit("key", "ana", (asked,)))
    world.report("fixed", "running")
    assert world.lease("fixed").places == ()
    assert list(staying(world.state, "a")) == list(staying(world.state, "b")) == ["fixed"]


def test_what_ends_already_is_left_alone() -> None:
    world = World(node("a", 1))
    submit(world, "j", preemptible=False)
    world.do(Cancel("j", "ana"))
    assert world.do(Evict("a", "ana")) == []
    assert [one["why"] for one in left_view(world.state, "a")] == [""]


def test_a_program_that_holds_a_lease_is_not_put_out() -> None:
    world = World(node("a", 1))
    world.submit("held", HALF, kind="lease", owner="program")
    world.hold("held")
    assert world.do(Evict("a", "ana")) == []
    assert [one["why"] for one in left_view(world.state, "a")] == ["a program of ana holds it"]


def test_a_repeated_drain_puts_nobody_out_who_has_come_since() -> None:
    world = World(node("a", 1))
    drain = Once("k", "drain a", (), (Evict("a", "ana"),))
    world.do(drain)
    submit(world, "later")
    world.do(drain)
    assert world.job("later").state == "running"
    with pytest.raises(NotFound, match="no node b"):
        world.do(Evict("b", "ana"))
    with pytest.raises(NotFound, match="no node b"):
        staying(world.state, "b")
