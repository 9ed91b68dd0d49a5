"""Jobs on several nodes: their ranks, their output, and MIG, where each node's agent cuts its own GPUs. Real
raylets, all on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from programs import MEET
from running import System, raylets, wait_until

from raysched.core.mig import Cut
from raysched.testing import SimulatedGPUs

pytestmark = pytest.mark.ray

THREE, SEVEN = 9, 0
SHOW = "echo $RAYSCHED_NODE_RANK $CUDA_VISIBLE_DEVICES"
TWO = {"gpus": 2, "nodes": 2}


@pytest.fixture(scope="module")
def two(_ray: None) -> Iterator[System]:
    """A system of two nodes, the second one called node-b, with a GPU each."""
    system = System("1xA100-80GB")
    added: set[int] = set()
    try:
        ray = system.up()["ray"]
        before = raylets(system)
        labels = "raysched.io/node=node-b,raysched.io/simulate=1xH100-80GB"
        system.ray("start", "--address", ray["address"], "--num-gpus=1", "--num-cpus=2", "--labels", labels)
        added = raylets(system) - before
        wait_until(lambda: len(nodes(system)) == 2, "both nodes have joined")
        yield system
    finally:
        for pid in added:  # `down` ends what `up` started, and this is not of it
            with suppress(ProcessLookupError):
                system.kill_process(pid)
        system.close()


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


def gang(system: System, entrypoint: Any, **fields: Any) -> str:
    return system.submit("gang", entrypoint, backend="ray", resources=TWO, **fields)


def lines(system: System, id: str, *options: str) -> list[str]:
    return system.cli("logs", id, *options).stdout.splitlines()


def test_the_ranks_of_a_gang_meet(two: System) -> None:
    id = gang(two, [sys.executable, "-c", MEET])
    ranks = wait_for(two, id, "succeeded")["ranks"]
    assert [(rank["state"], rank["exit_code"]) for rank in ranks] == [("succeeded", 0)] * 2
    assert len({rank["node"] for rank in ranks}) == 2
    said = lines(two, id)
    assert [line.split(" at ")[0] for line in said] == ["rank 0 | met [0, 1]", "rank 1 | met [0, 1]"]
    assert len({line.split(" at ")[1] for line in said}) == 1
    assert lines(two, id, "--rank", "1") == [said[1].removeprefix("rank 1 | ")]
    told = two.json("logs", id)["jobs"]
    assert [(one["rank"], one["output"]) for one in told] == [
        (rank, f"{line.removeprefix(f'rank {rank} | ')}\n") for rank, line in enumerate(said)
    ]


def test_the_output_of_all_ranks_is_followed_at_once(two: System) -> None:
    """Neither rank ends before its line was seen, so the lines come while both run."""
    go = two.folder / "go"
    watch = f'echo "at work $RANK"; while [ ! -e {go} ]; do sleep 0.1; done; printf "done $RANK"'
    id = gang(two, watch)
    following = two.begin("logs", "--follow", id)
    assert following.stdout is not None
    first = sorted(following.stdout.readline() for _ in range(2))
    assert first == ["rank 0 | at work 0\n", "rank 1 | at work 1\n"]
    go.touch()
    rest, _ = following.communicate(timeout=120)
    assert sorted(rest.splitlines()) == ["rank 0 | done 0", "rank 1 | done 1"]
    assert following.returncode == 0


def test_a_rank_that_fails_ends_the_others_and_the_gang_starts_again(two: System) -> None:
    """Each attempt meets at another port."""
    told = two.folder / "told"
    once = (
        "echo $MASTER_PORT; test $RAYSCHED_ATTEMPT = 2 && exit; "
        f"test $RANK = 0 && touch {told} && sleep 600; while [ ! -e {told} ]; do sleep 0.05; done; exit 7"
    )
    id = gang(two, once, retries=1)
    job = wait_for(two, id, "succeeded")
    assert job["attempt"] == 2
    ports = [set(lines(two, id, "--attempt", attempt, "--rank", "0")) for attempt in ("1", "2")]
    assert len(set.union(*ports)) == 2
    id = gang(two, once)
    wait_until(lambda: two.client().job(id)[0]["state"] == "failed", "it failed")
    [failed] = two.client().job(id)
    second = failed["ranks"][1]["node"]
    assert (failed["exit_code"], failed["reason"]) == (7, f"rank 1 on {second}: exit code 7")
    assert [rank["exit_code"] for rank in failed["ranks"]] == [143, 7]
    assert f"failed on {second}, exit code 7" in two.cli("status", id).stdout


def test_a_cancelled_gang_ends_on_all_nodes(two: System) -> None:
    id = gang(two, "echo here; exec sleep 600")
    wait_until(lambda: len(lines(two, id)) == 2, "both ranks run")
    two.cli("cancel", id)
    wait_until(lambda: two.client().job(id)[0]["state"] == "cancelled", "it is cancelled")
    assert not two.processes("sleep 600")
