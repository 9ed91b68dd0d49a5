"""The life of a job: reports, retries, cancels, time-outs, lost nodes, owners."""

from __future__ import annotations

import pytest

from raysched.core import decide
from raysched.core.commands import (
    Cancel,
    Denied,
    Gone,
    Held,
    JobRequest,
    NodeGone,
    NodeSeen,
    OwnerLost,
    Release,
    Report,
    Submit,
    Tick,
)
from raysched.core.jobs import NEXT
from raysched.core.lease import Group
from raysched.core.reports import LONGEST_REST, REST
from raysched.core.wanted import known_runs, owned, wanted
from raysched.core.work import Run, Seen
from raysched.errors import NotFound
from tests.core.world import World, node, share, whole


@pytest.fixture
def world() -> World:
    return World(node("a", 1))


def launches(world: World, backend: str = "vm") -> list[Run]:
    return [launch.run for launch in wanted(world.state, backend).launches]


def stops(world: World, backend: str = "vm") -> list[Run]:
    return [stop.run for stop in wanted(world.state, backend).stops]


def test_a_job_is_launched_only_once_its_lease_is_held(world):
    world.submit("j", whole())
    assert not launches(world)
    assert [hold.lease for hold in wanted(world.state, "ray").holds] == ["j.1"]
    world.hold("j")
    assert launches(world) == [Run("j", 1, 0)]
    assert not launches(world, "ray")


def test_a_node_that_ray_does_not_manage_needs_no_hold():
    world = World(node("a", 1, ray_id=None, backends=("vm",)))
    world.submit("j", whole())
    assert launches(world) == [Run("j", 1, 0)]
    world.report("j", "running")
    world.exit("j")
    assert not world.state.leases


def test_a_job_succeeds_and_its_lease_is_released_when_ray_says_so(world):
    world.submit("j", whole())
    world.run("j")
    assert world.job("j").state == "running"
    world.exit("j")
    assert world.job("j").state == "succeeded"
    assert [hold.lease for hold in wanted(world.state, "ray").releases] == ["j.1"]
    world.do(Gone("j.1"))
    assert not world.state.leases


def test_a_failed_job_tells_its_exit_code(world):
    world.submit("j", whole())
    world.run("j")
    world.exit("j", 3)
    job = world.job("j")
    assert (job.state, job.code, job.reason) == ("failed", 3, "exit code 3")


def test_a_retry_is_a_new_attempt_and_the_old_one_is_fenced(world):
    world.submit("j", whole(), retries=1)
    world.finish("j", 1)
    assert (world.job("j").state, world.job("j").attempt) == ("starting", 2)
    assert not world.report("j", "exited", code=0, attempt=1)
    world.run("j")
    world.exit("j", 1)
    assert world.job("j").state == "failed"


def test_a_repeated_report_changes_nothing(world):
    world.submit("j", whole())
    world.run("j")
    assert not world.report("j", "running")
    world.exit("j")
    assert not world.exit("j")


def test_a_job_that_is_lost_without_an_exit_code_says_so(world):
    world.submit("j", whole())
    world.run("j")
    world.report("j", "lost")
    assert world.job("j").state == "failed"
    assert "lost" in world.job("j").reason


def test_an_engine_that_says_no_for_now_costs_no_retry(world):
    world.submit("j", whole())
    world.do(Denied("j.1", "GPU 0 is held by other work"))
    job = world.job("j")
    assert (job.state, job.failures) == ("waiting", 0)
    assert "held by other work" in world.why("j").why
    world.do(Gone("j.1"))
    world.do(Tick())
    assert job.state == "waiting", "it rests before it is tried again"
    world.now += REST
    world.do(Tick())
    assert (job.state, job.attempt) == ("starting", 2)


def test_a_job_whose_image_can_not_be_had_waits_each_time_longer():
    """Also one that is not preemptible: its command never began."""
    world = World(node("a", 1, containers="podman"))
    spec = {"entrypoint": "true", "preemptible": False}
    world.do(Submit("key", "ana", (JobRequest("j", "j", "command", whole(), spec),)))
    for attempt in range(1, 10):
        world.hold("j")
        down = Seen(Run("j", attempt, 0), "taken", code=125, reason="the registry is down", begun=False)
        world.report("j", "running")
        world.do(Report(down))
        world.do(Gone(f"j.{attempt}"))
        assert (world.job("j").state, world.job("j").failures) == ("waiting", 0)
        rest = min(REST * 2 ** (attempt - 1), LONGEST_REST)
        world.now += rest - 1
        world.do(Tick())
        assert world.job("j").state == "waiting"
        world.now += 1
        world.do(Tick())
        assert world.job("j").state == "starting"


def test_an_engine_that_says_no_for_good_fails_the_job(world):
    world.submit("j", whole())
    world.do(Denied("j.1", "no such package", final=True))
    assert (world.job("j").state, world.job("j").reason) == ("failed", "no such package")


def test_cancel_of_a_waiting_job_ends_it_at_once(world):
    world.submit("one", whole())
    world.submit("two", whole())
    world.do(Cancel("two", "ana"))
    assert world.job("two").state == "cancelled"
    assert not world.do(Cancel("two", "ana"))


def test_cancel_before_the_hold_starts_nothing(world):
    world.submit("j", whole())
    world.do(Cancel("j", "ana"))
    assert world.job("j").state == "cancelled"
    assert not world.do(Held("j.1", ()))
    assert not launches(world)


def test_cancel_of_a_running_job_stops_it_first(world):
    world.submit("j", whole(), grace=2000)
    world.run("j")
    world.do(Cancel("j", "ana"))
    assert world.job("j").state == "stopping"
    assert stops(world) == [Run("j", 1, 0)]
    assert wanted(world.state, "vm").stops[0].grace == 2
    world.exit("j", 143)
    assert (world.job("j").state, world.job("j").code) == ("cancelled", 143)


def test_a_job_over_its_max_runtime_fails_and_is_not_retried(world):
    world.submit("j", whole(), max_runtime=60_000, retries=3)
    world.run("j")
    world.now += 60_000
    world.do(Tick())
    assert world.job("j").state == "stopping"
    world.exit("j", 143)
    assert world.job("j").state == "failed"
    assert "max_runtime" in world.job("j").reason


@pytest.mark.parametrize("off", [-60_000, 60_000])
def test_a_clock_of_a_node_that_is_off_neither_ends_a_job_early_nor_lets_it_run_on(world, off):
    world.submit("j", whole(), max_runtime=5_000)
    world.hold("j")
    world.do(Report(Seen(Run("j", 1, 0), "running", started=world.now + off)))
    world.now += 4_999
    world.do(Tick())
    assert world.job("j").state == "running"
    world.now += 1
    world.do(Tick())
    assert world.job("j").state == "stopping"


def test_one_rank_that_fails_ends_the_others():
    world = World(node("a", 1), node("b", 1))
    world.submit("gang", whole(2))
    world.run("gang")
    world.exit("gang", 7, rank=1)
    assert stops(world) == [Run("gang", 1, 0)]
    world.exit("gang", 143, rank=0)
    assert world.job("gang").state == "failed"


def test_the_rank_that_failed_first_tells_why_the_gang_did():
    """The others were ended for it, and their codes say nothing."""
    world = World(node("a", 1), node("b", 1))
    world.submit("gang", whole(2), retries=1)
    for _ in range(2):
        world.run("gang")
        world.exit("gang", 7, rank=1)
        world.exit("gang", 143, rank=0)
        assert "rank 1 on b: exit code 7" in world.job("gang").reason
        world.do(Gone(f"gang.{world.job('gang').attempt}"))
    assert (world.job("gang").state, world.job("gang").code) == ("failed", 7)


def test_a_gang_starts_again_as_a_whole():
    world = World(node("a", 1), node("b", 1))
    world.submit("gang", whole(2), retries=1)
    world.run("gang")
    world.exit("gang", 0, rank=0)
    world.report("gang", "lost", rank=1)
    assert world.job("gang").state == "waiting"
    world.do(Gone("gang.1"))
    world.hold("gang")
    assert launches(world) == [Run("gang", 2, 0), Run("gang", 2, 1)]
    world.report("gang", "exited", code=0, rank=1, attempt=1)
    assert not world.job("gang").exits


def test_a_lost_node_ends_the_gang_on_all_others():
    world = World(node("a", 1), node("b", 1))
    world.submit("gang", whole(2), retries=1)
    world.run("gang")
    world.do(NodeGone("b"))
    world.now += decide.NODE_PATIENCE
    world.do(Tick())
    assert (world.job("gang").state, world.job("gang").reason) == (
        "waiting",
        "attempt 1 failed: node b is gone",
    )
    assert not launches(world)
    [release] = wanted(world.state, "ray").releases
    assert [place.node for place in release.places] == ["a"]


def test_a_node_that_comes_back_in_time_loses_nothing(world):
    world.submit("j", whole())
    world.run("j")
    world.do(NodeGone("a"))
    world.now += decide.NODE_PATIENCE - 1
    world.do(Tick())
    assert world.job("j").state == "running"
    world.do(NodeSeen(node("a", 1, ray_id="ray-new")))
    world.now += decide.NODE_PATIENCE
    world.do(Tick())
    assert world.job("j").state == "running"


def test_a_node_that_stays_away_loses_its_jobs(world):
    world.submit("j", whole(), retries=1)
    world.run("j")
    world.do(NodeGone("a"))
    world.now += decide.NODE_PATIENCE
    world.do(Tick())
    assert world.job("j").state == "waiting"
    assert "gone" in world.job("j").reason
    world.do(NodeSeen(node("b", 1)))
    assert (world.job("j").state, world.job("j").attempt) == ("starting", 2)


def test_what_ran_on_a_lost_node_holds_its_share_until_somebody_has_looked(world):
    """A node that was only cut off comes back with all that ran there."""
    world.do(NodeSeen(node("b", 1)))
    world.submit("gang", whole(2, nodes=2))
    world.run("gang")
    world.do(NodeGone("a"))
    world.now += decide.NODE_PATIENCE
    world.do(Tick())
    assert world.job("gang").state == "failed"
    [release] = wanted(world.state, "ray").releases
    assert [place.node for place in release.places] == ["b"]
    world.do(Gone("gang.1", ("b",)))
    assert [place.node for place in world.state.leases["gang.1"].places] == ["a"]
    assert not wanted(world.state, "ray").releases

    world.submit("next", whole(2, nodes=2))
    world.do(NodeSeen(node("a", 1, ray_id="ray-new")))
    assert world.job("next").state == "waiting"
    [release] = wanted(world.state, "ray").releases
    assert [place.node for place in release.places] == ["a"]
    world.do(Gone("gang.1", ("a",)))
    assert "gang.1" not in world.state.leases
    assert world.job("next").state == "starting"


def test_a_node_that_never_comes_back_keeps_nothing_for_ever(world):
    world.submit("j", whole())
    world.run("j")
    world.do(NodeGone("a"))
    world.now += decide.NODE_PATIENCE
    world.do(Tick())
    assert world.state.leases
    world.now += decide.LOST
    world.do(Tick())
    assert not world.state.leases


def test_a_gang_of_which_one_part_is_refused_for_good_fails_as_a_whole(world):
    world.do(NodeSeen(node("b", 1)))
    world.submit("gang", whole(2, nodes=2))
    world.hold("gang")
    world.report("gang", "running", rank=0)
    world.do(Denied("gang.1", "the disk is full"))
    assert world.job("gang").state == "running"
    world.do(Denied("gang.1", "no such package", final=True))
    assert stops(world) == [Run("gang", 1, 0), Run("gang", 1, 1)]
    for rank in range(2):
        world.exit("gang", 143, rank)
    assert (world.job("gang").state, world.job("gang").reason) == ("failed", "no such package")


def test_a_program_keeps_the_lease_that_it_works_with_though_ray_refuses_to_hold_it_again(world):
    """After a restart of the backend, or of Ray on the node: whether it is gone is told by the node."""
    world.submit("pool", share(0.5), kind="lease", owner="calls of ana")
    world.hold("pool")
    world.do(Denied("pool.1", "a is not in Ray"))
    assert [each.state for each in owned(world.state, "calls of ana")] == ["bound"]


def test_a_program_is_told_that_the_group_of_its_lease_is_gone_and_a_command_never_used_it(world):
    """What a program put into the old group waits in Ray for ever, whatever the lease is held with now."""
    world.submit("pool", share(0.5), kind="lease", owner="calls of ana")
    world.submit("job", share(0.5))
    for id in ("pool", "job"):
        world.do(Held(f"{id}.1", (Group("old", 0),)))
        world.do(Held(f"{id}.1", (Group("old", 0),)))
    assert world.states() == {"pool": "running", "job": "starting"}
    for id in ("pool", "job"):
        world.do(Held(f"{id}.1", (Group("new", 0),)))
    assert world.states() == {"pool": "failed", "job": "starting"}
    assert world.job("pool").reason == "its placement group in Ray was removed"
    assert world.lease("job").groups == (Group("new", 0),)


def test_a_lease_job_runs_from_hold_to_release(world):
    world.submit("pool", share(0.5), kind="lease", owner="calls of ana")
    assert [each.state for each in owned(world.state, "calls of ana")] == ["waiting"]
    world.hold("pool")
    [bound] = owned(world.state, "calls of ana")
    assert (bound.state, dict(bound.env)["RAYSCHED_GPU_FRACTION"]) == ("bound", "0.5")
    assert world.job("pool").state == "running"
    assert not launches(world, "ray")
    world.do(Release("pool"))
    assert [each.state for each in owned(world.state, "calls of ana")] == ["ended"]
    assert world.job("pool").state == "succeeded"


def test_an_owner_that_dies_gives_everything_back(world):
    for id in "ab":
        world.submit(id, share(0.6), kind="lease", owner="driver")
    world.hold("a")
    world.do(OwnerLost("driver"))
    assert world.states() == {"a": "succeeded", "b": "cancelled"}
    world.do(Gone("a.1"))
    assert not world.state.leases
    assert not world.do(OwnerLost("driver"))


def test_the_same_submission_twice_is_one_job(world):
    """Case ray-02. A client that asks again comes with new ids; only the key tells that it is the same."""
    job = world.submit("j", whole())
    asked = JobRequest("other", "j", "command", whole(), {"entrypoint": "true"})
    assert not world.do(Submit("key-j", "ana", (asked,)))
    assert list(world.state.jobs) == [job.id]
    assert world.state.keys["key-j"] == (job.id,)


def test_an_array_tells_its_elements_apart(world):
    world.submit("hpo", share(0.25), array=5)
    assert list(world.states()) == [f"hpo[{index}]" for index in range(5)]
    world.hold("hpo.3")
    [launch] = wanted(world.state, "vm").launches
    assert dict(launch.env)["RAYSCHED_ARRAY_INDEX"] == "3"


def test_priority_goes_first(world):
    world.submit("running", whole())
    world.submit("low", whole())
    world.submit("high", whole(), priority=10)
    world.finish("running")
    assert world.states()["high"] == "starting"


def test_a_job_that_waits_for_whole_gpus_is_not_starved_by_small_ones():
    world = World(node("a", 2))
    world.submit("s0", share(0.5))
    world.submit("pair", whole(2))
    world.submit("s1", share(0.5))
    assert world.states() == {"s0": "starting", "pair": "waiting", "s1": "waiting"}
    assert "kept for pair" in world.why("s1").why
    assert "1 of 2 whole GPUs free" in world.why("pair").why
    world.finish("s0")
    assert world.states() == {"s0": "succeeded", "pair": "starting", "s1": "waiting"}


def test_small_jobs_pass_where_they_are_in_nobodys_way():
    world = World(node("a", 1), node("b", 1, model="A30", memory=24576))
    world.submit("s0", share(0.5, gpu_types=("A100",)))
    world.submit("big", whole(1, gpu_types=("A100",)))
    world.submit("s1", share(0.5))
    assert world.gpus("s1") == ["GPU-b-0"]


def test_jobs_that_are_over_are_forgotten_in_the_end(world, monkeypatch):
    monkeypatch.setattr(decide, "JOBS_KEPT", 2)
    for id in "abcd":
        world.submit(id, whole())
        world.finish(id)
    world.do(Tick())
    assert set(world.state.jobs) == {"c", "d"}
    assert known_runs(world.state, "vm") == {Run("c", 1, 0), Run("d", 1, 0)}


def test_an_array_is_forgotten_as_a_whole_once_enough_ended_after_it(world, monkeypatch):
    monkeypatch.setattr(decide, "JOBS_KEPT", 2)
    world.submit("many", whole(), array=5)
    for element in range(4):
        world.finish(f"many.{element}")
        world.do(Tick())
    assert len(world.state.jobs) == 5, "one goes on"
    for id in "ab":
        world.submit(id, whole())
    for id in ("many.4", "a", "b"):
        assert "many.0" in world.state.jobs
        world.finish(id)
        world.do(Tick())
    assert set(world.state.jobs) == {"a", "b"}


def test_a_job_that_is_not_known_is_said_to_be_not_known(world):
    with pytest.raises(NotFound, match="nothing"):
        world.do(Cancel("nothing", "ana"))


def test_the_table_of_states_has_no_way_out_of_an_end():
    assert all(not NEXT[state] for state in ("succeeded", "failed", "cancelled"))


@pytest.mark.parametrize("off", [-86_400_000, -2_000, 0, 86_400_000])
def test_a_run_takes_as_long_as_a_clock_that_is_off_says(world, off):
    world.submit("j", whole())
    world.hold("j")
    run, began = Run("j", 1, 0), world.now
    world.do(Report(Seen(run, "running", began + off)))
    world.now += 60_000
    world.do(Report(Seen(run, "exited", began + off, began + off + 60_000, 0)))
    job = world.job("j")
    assert (job.started, job.ended) == (began, began + 60_000)
