"""What the API shows: the shapes of docs/api.md, and that all views tell the same story."""

from __future__ import annotations

import copy

import pytest

from raysched.core import gpu_views, views
from raysched.core.commands import JobRequest, Submit
from raysched.errors import Conflict, NotFound
from tests.core.world import World, memory, node, share, whole


@pytest.fixture
def world() -> World:
    return World(node("a", 2))


def plan(world: World, *jobs: JobRequest) -> list[dict]:
    return views.plan_view(copy.deepcopy(world.state), "ana", jobs, world.now)["jobs"]


def asked(id: str, request, **fields) -> JobRequest:
    return JobRequest(id, id, "command", request, {"entrypoint": "true", "env": {"MINE": "1"}}, **fields)


def test_gpus_tell_who_holds_what(world):
    world.submit("hpo", share(0.25), array=2)
    world.now += 60_000
    [shown] = gpu_views.gpus_view(world.state, gpu_views.Usage(), world.now)["nodes"]
    first, second = shown["gpus"]
    assert (first["mode"], first["share_used"], first["memory_held_mib"]) == ("shared", 5000, 40960)
    assert second["mode"] == "free"
    assert [tenant["display"] for tenant in first["tenants"]] == ["hpo[0]", "hpo[1]"]
    assert first["tenants"][0]["for_s"] == 60
    assert first["memory_used_mib"] is None, "nothing was measured, so nothing is shown"


def test_what_was_measured_is_shown_beside_what_is_held(world):
    world.submit("j", share(0.25))
    usage = gpu_views.Usage(
        {"GPU-a-0": gpu_views.Reading(18_000, 6000, 5000, 250, 60)},
        {("GPU-a-0", "j.1"): gpu_views.Reading(17_500, 5500, 4500)},
        {
            "GPU-a-0": (
                gpu_views.Stranger(1, "mine", "ana", 17_500, "j.1"),
                gpu_views.Stranger(2, "python3", "bo", 500),
            )
        },
    )
    gpu = gpu_views.gpus_view(world.state, usage, world.now)["nodes"][0]["gpus"][0]
    assert gpu["memory_used_mib"] == 18_000
    assert (gpu["busy"], gpu["busy_mean"], gpu["power_w"], gpu["temperature_c"]) == (6000, 5000, 250, 60)
    tenant = gpu["tenants"][0]
    assert (tenant["memory_used_mib"], tenant["busy"], tenant["busy_mean"]) == (17_500, 5500, 4500)
    assert tenant["over"] is None
    assert [stranger["pid"] for stranger in gpu["strangers"]] == [2], "the tenant's own are none"


def test_the_queue_says_why_in_one_line(world):
    world.submit("one", share(0.5))
    world.submit("pair", whole(2))
    [waiting] = views.queue_view(world.state, world.now)["waiting"]
    assert (waiting["position"], waiting["display"], waiting["asks"]) == (1, "pair", "2 GPUs")
    assert waiting["why"] == "1 of 2 whole GPUs free; GPU-a-0 is shared until one ends"


def test_explain_and_queue_say_the_same(world):
    world.submit("one", share(0.5))
    job = world.submit("pair", whole(2))
    explained = views.explain_view(world.state, job, world.now)
    assert explained["why"] == views.queue_view(world.state, world.now)["waiting"][0]["why"]
    assert explained["change"] == "gpus: 1 would start now"
    assert "GPU-a-1" in explained["nearest"]


def test_plan_is_what_submit_then_does_and_changes_nothing(world):
    before = copy.deepcopy(world.state)
    jobs = [asked("a", share(0.5, gpus=2)), asked("b", memory(50_000)), asked("c", whole())]
    planned = plan(world, *jobs)
    assert world.state == before
    assert [each["outcome"] for each in planned] == ["starts", "waits", "waits"]
    for job in jobs:
        world.submit(job.id, job.request)
    assert [world.job(job.id).state for job in jobs] == ["starting", "waiting", "waiting"]
    assert [gpu["uuid"] for gpu in planned[0]["places"][0]["gpus"]] == world.gpus("a")
    assert planned[1]["why"] == world.why("b").why


def test_plan_lets_a_higher_priority_go_first_as_the_queue_does(world):
    low, high = asked("low", whole(2)), asked("high", whole(2), priority=5)
    assert [each["outcome"] for each in plan(world, low, high)] == ["waits", "starts"]
    world.do(Submit("both", "ana", (low, high)))
    assert world.states() == {"low": "waiting", "high": "starting"}


def test_plan_says_of_each_job_what_was_there_when_it_was_placed(world):
    first, second = plan(world, asked("a", share(0.25)), asked("b", share(0.25)))
    assert "first free one" in first["why"]
    assert "beside other tenants" in second["why"]


def test_plan_shows_the_variables_of_the_lease_and_not_the_specs(world):
    [planned] = plan(world, asked("a", share(0.25)))
    assert planned["env"]["RAYSCHED_GPU_FRACTION"] == "0.25"
    assert planned["env"]["RAYSCHED_GPU_MEMORY_MIB"] == "20480"
    assert "MINE" not in planned["env"]


def test_plan_tells_what_would_be_refused(world):
    [planned] = plan(world, asked("a", whole(3)))
    assert planned["outcome"] == "refused"
    assert "2" in planned["why"]


def test_plan_says_that_a_share_is_soft(world):
    """Case sharing-02."""
    [planned] = plan(world, asked("fenced", memory(3815)))
    assert (planned["isolation"], planned["mechanism"]) == ("soft", "variables")


def test_a_job_is_found_by_id_by_array_by_name_and_by_element(world):
    world.submit("j1", share(0.25), array=3, name="hpo")
    state = world.state
    assert [job.id for job in views.find_jobs(state, "j1")] == ["j1.0", "j1.1", "j1.2"]
    assert [job.id for job in views.find_jobs(state, "hpo")] == ["j1.0", "j1.1", "j1.2"]
    assert [job.id for job in views.find_jobs(state, "hpo[1]")] == ["j1.1"]
    assert [job.id for job in views.find_jobs(state, "j1.2")] == ["j1.2"]
    with pytest.raises(NotFound):
        views.find_jobs(state, "other")


def test_a_name_that_two_running_jobs_have_must_be_told_apart(world):
    world.submit("j1", share(0.25), name="train")
    world.submit("j2", share(0.25), name="train")
    with pytest.raises(Conflict, match="j1, j2"):
        views.find_jobs(world.state, "train")
    world.finish("j2")
    assert [job.id for job in views.find_jobs(world.state, "train")] == ["j1"]


def test_of_many_jobs_with_one_name_a_few_ids_are_told(world):
    for number in range(7):
        world.submit(f"j{number}", share(0.1), name="train")
    with pytest.raises(Conflict, match=r"names 7 jobs .*: j0, j1, j2, j3, j4, \.\.\.$"):
        views.find_jobs(world.state, "train")


def test_times_are_iso_in_utc_and_durations_are_never_negative(world):
    """Case ui-03."""
    job = world.submit("j", share(0.25))
    world.run("j")
    shown = views.job_view(world.state, job, world.now - 600_000)
    assert shown["submitted"] == "1970-01-01T00:16:40.000Z"
    assert (shown["wait_s"], shown["run_s"]) == (0, 0)


def test_a_job_that_ended_still_shows_what_it_had(world):
    job = world.submit("j", share(0.25))
    world.finish("j")
    shown = views.job_view(world.state, job, world.now)
    assert shown["lease"]["state"] == "released"
    assert shown["lease"]["places"][0]["gpus"][0]["share"] == 2500


def test_a_waiting_job_says_why_wherever_it_is_shown(world):
    world.submit("one", share(0.5))
    job = world.submit("pair", whole(2))
    for jobs in ([job], world.state.jobs.values()):
        shown = views.jobs_view(world.state, jobs, world.now)["jobs"][-1]
        assert shown["reason"] == "1 of 2 whole GPUs free; GPU-a-0 is shared until one ends"


def test_the_time_until_a_job_started_is_its_wait(world):
    job = world.submit("j", share(0.25))
    world.now += 2_000
    world.hold("j")
    world.now += 3_000
    world.report("j", "running")
    shown = views.job_view(world.state, job, world.now + 4_000)
    assert (shown["wait_s"], shown["run_s"]) == (5, 4)
