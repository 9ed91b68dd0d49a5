"""Where the ranks of a job meet, and what each is told."""

from __future__ import annotations

import pytest

from raysched.core.commands import Gone, Report, Tick
from raysched.core.environment import rank_variables
from raysched.core.meeting import PORTS, meeting_port
from raysched.core.reports import REST
from raysched.core.views import job_view
from raysched.core.wanted import wanted
from raysched.core.work import Run, Seen
from tests.core.world import World, node, share, whole

PROCESS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}


def environments(world: World) -> list[dict[str, str]]:
    return [dict(launch.env) for launch in wanted(world.state, "vm").launches]


def gang(*addresses: str, gpus: int = 1, **fields) -> World:
    world = World(*(node(f"n{at}", gpus, address=address) for at, address in enumerate(addresses)))
    world.submit("gang", whole(gpus * len(addresses), nodes=len(addresses)), **fields)
    world.hold("gang")
    return world


def test_all_ranks_meet_at_the_node_of_the_first():
    first, second = environments(gang("10.0.0.1", "10.0.0.2"))
    assert first["MASTER_ADDR"] == second["MASTER_ADDR"] == "10.0.0.1"
    assert first["MASTER_PORT"] == second["MASTER_PORT"]
    assert first["RAYSCHED_NODE_ADDRESSES"] == "10.0.0.1,10.0.0.2"
    assert [env["RAYSCHED_NODE_RANK"] for env in (first, second)] == ["0", "1"]
    assert [env["PET_NODE_RANK"] for env in (first, second)] == ["0", "1"]
    assert {env["PET_NNODES"] for env in (first, second)} == {"2"}
    assert first["JAX_COORDINATOR_ADDRESS"] == f"10.0.0.1:{first['MASTER_PORT']}"


def test_an_attempt_never_meets_at_the_port_of_the_one_before():
    for job in ("a", "5d0c4be1f2", "5d0c4be1f2.17"):
        ports = [meeting_port(job, attempt) for attempt in range(1, 90)]
        assert len(set(ports)) == len(ports)
        assert set(ports) <= set(PORTS)


def test_one_process_a_node_is_told_that_it_is_the_whole_of_it():
    envs = environments(gang("a", "b", "c"))
    assert [env["RANK"] for env in envs] == ["0", "1", "2"]
    assert {(env["WORLD_SIZE"], env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"]) for env in envs} == {
        ("3", "0", "1")
    }


def test_where_a_launcher_starts_the_processes_none_is_told_its_rank():
    """With LOCAL_RANK set, Lightning and accelerate take themselves for started by a launcher, and would use
    one GPU of several."""
    assert all(PROCESS.isdisjoint(env) for env in environments(gang("a", "b", gpus=2)))


def test_a_job_on_one_node_meets_itself_on_the_loopback():
    world = World(node("a", 1, address="10.0.0.1"))
    world.submit("j", share(0.5))
    world.submit("k", share(0.5))
    world.hold("j")
    world.hold("k")
    one, other = environments(world)
    assert one["MASTER_ADDR"] == one["PET_MASTER_ADDR"] == "127.0.0.1"
    assert one["PET_MASTER_PORT"] != other["PET_MASTER_PORT"]
    assert PROCESS.isdisjoint(one)
    assert "JAX_COORDINATOR_ADDRESS" not in one


def test_what_the_spec_sets_itself_stays():
    world = World(node("a", 1))
    world.submit("j", whole())
    world.job("j").spec["env"] = {"MASTER_PORT": "4711", "NODE_RANK": "9"}
    world.hold("j")
    [env] = environments(world)
    assert (env["MASTER_PORT"], env["NODE_RANK"]) == ("4711", "9")


def test_an_ipv6_address_is_written_as_jax_reads_it():
    env = rank_variables(0, ["fd00::1", "fd00::2"], 20_000, 1)
    assert env["JAX_COORDINATOR_ADDRESS"] == "[fd00::1]:20000"
    assert env["MASTER_ADDR"] == "fd00::1"


def test_a_node_of_an_old_journal_is_reached_by_its_name():
    assert environments(gang("", ""))[1]["MASTER_ADDR"] == "n0"


@pytest.mark.parametrize(
    ("told", "states"),
    [
        ([], ["starting", "starting"]),
        ([("running", None, 0)], ["running", "starting"]),
        ([("running", None, 0), ("exited", 3, 0)], ["failed", "starting"]),
        ([("exited", 3, 0), ("lost", None, 1)], ["failed", "lost"]),
        ([("exited", 0, 0), ("exited", 0, 1)], ["succeeded", "succeeded"]),
    ],
)
def test_each_rank_is_shown(told, states):
    world = gang("a", "b")
    for state, code, rank in told:
        world.report("gang", state, code=code, rank=rank)
    ranks = job_view(world.state, world.job("gang"), world.now)["ranks"]
    assert [rank["state"] for rank in ranks] == states
    assert [rank["node"] for rank in ranks] == ["n0", "n1"]


def test_what_waits_for_its_next_attempt_has_no_ranks():
    world = gang("a", "b", retries=1)
    world.exit("gang", 1, rank=0)
    world.exit("gang", 143, rank=1)
    assert world.job("gang").state == "waiting"
    assert job_view(world.state, world.job("gang"), world.now)["ranks"] == []


def test_a_port_that_is_in_use_gives_all_ranks_another_one_and_costs_no_retry():
    """Also where the other rank has begun: it is ended, and both start again."""
    world = gang("10.0.0.1", "10.0.0.2")
    first = {env["MASTER_PORT"] for env in environments(world)}
    world.report("gang", "running", rank=1)
    in_use = Seen(Run("gang", 1, 0), "taken", code=125, reason="port 20000 is in use", begun=False)
    world.do(Report(in_use))
    assert not environments(world), "no rank is wanted any more"
    world.do(Gone("gang.1"))
    assert (world.job("gang").state, world.job("gang").failures) == ("waiting", 0)
    assert "port 20000 is in use" in world.why("gang").why
    world.now += REST
    world.do(Tick())
    world.hold("gang")
    again = [env["MASTER_PORT"] for env in environments(world)]
    assert len(again) == 2
    assert len({*again, *first}) == 2
