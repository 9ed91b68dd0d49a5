"""MIG over several nodes: each node's agent cuts its own GPUs. Real raylets, all on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from running import System, wait_until

from raysched.core.mig import Cut
from raysched.testing import SimulatedGPUs

pytestmark = pytest.mark.ray

THREE, SEVEN = 9, 0
SHOW = "echo $RAYSCHED_NODE_RANK $CUDA_VISIBLE_DEVICES"


@pytest.fixture(scope="module")
def two(_ray: None) -> Iterator[System]:
    """A system of two nodes, the second one called node-b, with a GPU each."""
    system = System("1xA100-80GB")
    added: set[int] = set()
    try:
        ray = system.up()["ray"]
        before = of_nodes(system)
        labels = "raysched.io/node=node-b,raysched.io/simulate=1xH100-80GB"
        system.ray("start", "--address", ray["address"], "--num-gpus=1", "--num-cpus=2", "--labels", labels)
        added = of_nodes(system) - before
        wait_until(lambda: len(nodes(system)) == 2, "both nodes have joined")
        yield system
    finally:
        for pid in added:  # `down` ends what `up` started, and this is not of it
            with suppress(ProcessLookupError):
                system.kill_process(pid)
        system.close()


def of_nodes(system: System) -> set[int]:
    """The processes that `ray start` starts on a node; all others there end with these."""
    return {pid for name in ("raylet/raylet", "log_monitor") for pid in system.processes(name)}


def nodes(system: System) -> dict[str, dict[str, Any]]:
    return {node["name"]: node for node in system.client().gpus()["nodes"] if node["gpus"]}


def wait_for(system: System, id: str, state: str) -> dict[str, Any]:
    job = system.client().job
    wait_until(lambda: job(id)[0]["state"] in (state, "failed"), f"{id} is {state}")
    assert job(id)[0]["state"] == state, job(id)[0]
    return job(id)[0]


def wills(system: System) -> dict[str, tuple[SimulatedGPUs, str]]:
    """The simulated GPU of each node, and its UUID."""
    found = nodes(system)
    return {name: (SimulatedGPUs(system.home, name), found[name]["gpus"][0]["uuid"]) for name in found}


def test_a_gang_has_an_instance_on_each_node(two: System) -> None:
    id = two.submit("gang", SHOW, backend="ray", resources={"gpus": 2, "nodes": 2, "mig_profile": "3g.40gb"})
    places = wait_for(two, id, "succeeded")["lease"]["places"]
    assert len({place["node"] for place in places}) == 2
    cuts = [will.layout(uuid).instances for will, uuid in wills(two).values()]
    assert [[each.cut.profile for each in instances] for instances in cuts] == [[THREE], [THREE]]


def test_a_gang_of_which_one_node_can_not_be_cut_is_given_back_whole(two: System) -> None:
    will, uuid = wills(two)["node-b"]
    will.refuse(uuid, Cut(SEVEN, 0), "the driver has no room for it there")
    gang = {"gpus": 2, "nodes": 2, "mig_profile": "7g.80gb"}
    id = two.submit("gang", SHOW, backend="ray", resources=gang)
    wait_until(lambda: "no room for it there" in two.json("explain", id)["why"], "it waits, and says why")
    wait_until(
        lambda: not any(gpu["tenants"] for node in nodes(two).values() for gpu in node["gpus"]),
        "nothing of it is held",
    )
    two.cli("cancel", id)
    wait_for(two, two.submit("one", SHOW, resources={"mig_profile": "7g.80gb"}), "succeeded")
