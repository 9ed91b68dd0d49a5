"""Nodes of different clusters that have one name: a site's gives way, and nobody loses anything by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_site import SITE, at
from world import World, node, whole

from raysched.core import facts
from raysched.core.commands import Gone, NodeGone, NodeSeen, Placed, Report
from raysched.core.evolve import evolve
from raysched.core.namesakes import gone, own_name
from raysched.core.work import Run, Seen

GPU = whole(backends=("slurm",))
RAY = node("n1", 2)


def running() -> World:
    """A job of a site runs on its node n1, and Ray has a node of that name now."""
    world = World(*SITE)
    world.submit("job", GPU)
    world.report("job", "running")
    world.do(Placed("job.1", at("n1", 0)))
    world.do(NodeSeen(RAY))
    return world


def test_who_runs_at_a_site_goes_on_when_ray_has_a_node_of_the_same_name() -> None:
    """The site's node is renamed, and the lease with it."""
    world = running()
    assert {"n1", "n1@slurm"} <= set(world.state.nodes)
    assert world.state.nodes["n1"].info == RAY
    assert world.job("job").state == "running"
    assert [place.node for place in world.lease("job").places] == ["n1@slurm"]
    assert world.job("job").places == world.lease("job").places
    world.submit("other", whole(2, backends=("ray",)))
    assert [place.node for place in world.lease("other").places] == ["n1"]
    world.do(Report(Seen(Run("job", 1, 0), "exited", code=0)))
    world.do(Gone("job.1"))
    assert not world.state.nodes["n1@slurm"].gpus["SLURM-n1-0"].tenants


def test_a_site_speaks_of_its_own_nodes_only() -> None:
    """What it says of a node by the name that this had is not said of Ray's."""
    world = running()
    assert world.do(NodeGone("n1", "slurm")) == []
    assert world.do(NodeSeen(SITE[0])) == []
    assert world.do(NodeSeen(replace(SITE[0], name="n1@slurm"))) == []
    world.do(NodeGone("n1@slurm", "k8s"))
    assert world.state.nodes["n1@slurm"].lost is None
    world.do(NodeGone("n1@slurm", "slurm"))
    assert world.state.nodes["n1@slurm"].lost is not None
    world.do(NodeGone("n1"))
    assert world.state.nodes["n1"].lost is not None


def test_one_that_was_renamed_before_makes_room() -> None:
    """Once nobody holds anything on it."""
    world = running()
    world.do(NodeGone("n1@slurm", "slurm"))
    evolve(world.state, facts.NodeLeft(world.now, "n1"))
    world.do(NodeSeen(SITE[0]))
    assert world.do(NodeSeen(RAY)) == []
    world.do(Report(Seen(Run("job", 1, 0), "exited", code=0)))
    world.do(Gone("job.1"))
    world.do(NodeSeen(RAY))
    assert world.state.nodes["n1"].info == RAY
    assert world.state.nodes["n1@slurm"].lost is None


def test_a_gpu_that_both_have_is_one() -> None:
    """It stays where it is."""
    world = World(SITE[0])
    world.do(NodeSeen(replace(RAY, gpus=(SITE[0].gpus[0], RAY.gpus[0]))))
    assert list(world.state.nodes["n1"].gpus) == ["GPU-n1-0"]
    assert list(world.state.nodes["n1@slurm"].gpus) == ["SLURM-n1-0", "SLURM-n1-1"]


@pytest.mark.parametrize(
    ("taken", "called"),
    [
        ({}, "n1"),
        ({"n2": ("ray",)}, "n1"),
        ({"n1": ("slurm",)}, "n1"),
        ({"n1": ("ray", "vm")}, "n1@slurm"),
        ({"n1": ("k8s",)}, "n1@slurm"),
    ],
)
def test_what_a_sites_node_is_called(taken: dict[str, tuple[str, ...]], called: str) -> None:
    assert own_name("n1", "slurm", taken) == called


def test_a_site_that_lost_a_node_while_nobody_looked_says_so() -> None:
    """It speaks of its own, by the names that they have in the ledger."""
    taken = {"n1": ("ray", "vm"), "n1@slurm": ("slurm",), "n2": ("slurm",), "n3": ("slurm",), "n4": ("k8s",)}
    assert gone("slurm", taken, {"n1@slurm", "n2"}) == ["n3"]
