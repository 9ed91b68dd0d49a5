"""Nodes that a job at a site brings into Ray: counted once, left in time, gone with their job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_site import SITE
from world import World, node

from raysched.core.commands import Cancel, Gone, NodeGone, NodeSeen, Placed, Report, Tick
from raysched.core.history import Records
from raysched.core.lease import Place, Slice
from raysched.core.lent import LEAVE
from raysched.core.request import WHOLE, Request
from raysched.core.usage import Window, usage
from raysched.core.views import explain_view, status_view
from raysched.core.work import Run, Seen

HOUR = 3_600_000
ONE = Request(share=WHOLE, backends=("ray",))
LENT = replace(node("n1-b.1", 2), backends=("ray",), lease="b.1")


def lent(*more: Any) -> World:
    """The job `b` has two GPUs of the site's for an hour, and brought them into Ray."""
    world = World(*SITE, *more)
    world.submit("b", Request(gpus=2, gpu_types=("a100",), backends=("slurm",)), max_runtime=HOUR)
    slices = tuple(Slice(f"SLURM-n1-{index}", WHOLE, 81920) for index in (0, 1))
    world.do(Placed("b.1", (Place("n1", slices, 0, 0),)))
    world.do(Report(Seen(Run("b", 1, 0), "running", world.now)))
    world.do(NodeSeen(LENT))
    return world


def tick(world: World, after: int = 0) -> None:
    world.now += after
    world.do(Tick())


def test_a_gpu_that_a_site_lends_is_counted_once() -> None:
    """The site gave it, and Ray has it; it is free until Ray gives it away."""
    alone = World(*SITE)
    before = status_view(alone.state)
    world = lent()
    now = status_view(world.state)
    assert (now["nodes"], now["gpus"]["total"]) == (before["nodes"], before["gpus"]["total"])
    assert now["gpus"]["free"] == before["gpus"]["free"]
    world.submit("j", ONE)
    assert status_view(world.state)["gpus"]["exclusive"] == 1
    assert status_view(world.state)["gpus"]["free"] == before["gpus"]["free"] - 1
    assert explain_view(world.state, world.job("b"), 0)["why"] == "runs on n1, which Ray has as n1-b.1"


def test_what_work_has_of_lent_gpus_is_the_works_in_the_usage() -> None:
    """Two GPUs for an hour are two hours of a GPU, whoever has them: work has a quarter of one all the time,
    and the other one for half of it; the job that lent them has the rest."""
    world = lent()
    start = world.now
    world.submit("part", Request(share=2500, sharing="fraction", backends=("ray",)))
    world.now += HOUR // 2
    world.submit("whole", ONE)
    records = Records()
    for fact in world.told:
        records.tell(fact)
    totals = usage(records.leases.values(), "job", Window(start, start + HOUR), {})
    hours = {total.name: total.granted / WHOLE / HOUR for total in totals}
    assert hours == {"b": 1.25, "whole": 0.5, "part": 0.25}


def test_nothing_new_starts_on_a_node_that_is_about_to_leave() -> None:
    world = lent()
    tick(world, HOUR - LEAVE - 1)
    world.submit("before", ONE)
    assert world.job("before").state == "starting"
    tick(world, 1)
    world.submit("after", ONE)
    assert world.job("after").state == "waiting"
    why = explain_view(world.state, world.job("after"), world.now)["why"]
    assert why == "nothing new starts on n1-b.1: about to leave, as lent"
    assert world.job("before").state == "starting", "what is there may come to its end"


@pytest.mark.parametrize(
    ("fields", "becomes"),
    [
        ({}, "waiting"),
        ({"kind": "lease", "owner": "program"}, "failed"),
        ({"spec": {"preemptible": False}}, "stopping"),
    ],
)
def test_what_still_runs_when_a_node_leaves_is_ended(fields: dict[str, Any], becomes: str) -> None:
    """What may be stopped for others waits again, with no retry used; all of it under that reason."""
    world = lent()
    spec = fields.pop("spec", {})
    world.submit("j", ONE, **fields)
    world.job("j").spec.update(spec)
    world.run("j") if not fields else world.hold("j")
    tick(world, HOUR - LEAVE // 2)
    assert world.job("j").state == becomes
    assert world.job("j").reason == "n1-b.1 leaves: its lease b.1 is over"
    assert world.job("j").failures == 0


def test_a_job_over_two_nodes_that_leave_is_ended_once() -> None:
    world = lent(replace(node("n2-b.1", 2), backends=("ray",), lease="b.1"))
    world.submit("gang", replace(ONE, gpus=4, nodes=2))
    world.run("gang")
    tick(world, HOUR - LEAVE // 2)
    assert world.job("gang").state == "waiting"


def test_a_node_is_gone_with_the_job_that_brought_it() -> None:
    """What it held is free at once, though nobody could look: the site ended it. It may come again."""
    world = lent()
    world.submit("j", ONE)
    world.run("j")
    world.do(Cancel("b", "ana"))
    tick(world)
    assert (world.job("b").state, world.job("j").state) == ("stopping", "waiting")
    world.do(Report(Seen(Run("b", 1, 0), "exited", world.now, world.now, 143)))
    world.do(NodeGone("n1-b.1"))
    tick(world)
    tick(world)
    assert "n1-b.1" not in world.state.nodes
    assert not world.state.leases
    world.do(NodeSeen(replace(LENT, name="n1-c.1", lease="c.1")))
    assert len(world.state.nodes["n1-c.1"].gpus) == 2


def test_a_node_whose_job_nobody_knows_is_used_for_nothing() -> None:
    world = World(replace(LENT, lease="unknown.1"))
    tick(world)
    world.submit("j", ONE)
    assert world.job("j").state == "waiting"


def test_a_lent_node_that_is_lost_while_its_job_runs_may_come_back() -> None:
    """As any other: its work is not given up at once."""
    world = lent()
    world.submit("j", ONE)
    world.run("j")
    world.do(NodeGone("n1-b.1"))
    tick(world, 1000)
    assert world.job("j").state == "running"
    world.do(NodeSeen(LENT))
    tick(world, 1000)
    world.exit("j", 0)
    world.do(Gone("j.1"))
    assert world.job("j").state == "succeeded"
