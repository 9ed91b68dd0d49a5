"""Tenants that use more memory than they have, and what is written down of the use of each lease."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raysched.core import facts, gpu_views, views
from raysched.core.commands import Gone, Measured, NodeSeen, SetClock, Usage
from raysched.core.events import event_view
from raysched.core.history import Records
from raysched.core.measured import Guidance, Policy, Stretch, Tenancy, TenantUse
from raysched.core.wanted import wanted
from raysched.core.watchdog import guidance
from tests.core.world import World, changed, mig, mig_node, node, share

GPU = "GPU-a-0"
QUARTER = 20480
WARN, REPORT, END = (Policy(over_memory=action, grace=60_000) for action in ("warn", "report", "end"))


@pytest.fixture
def world() -> World:
    made = World(node("a", 2))
    made.submit("j", share(0.25))
    made.run("j")
    return made


def see(world: World, *uses: tuple[str, int | None], policy: Policy = WARN, foreign: int = 0, gpu: str = GPU):
    """The agent measured what leases hold of a GPU."""
    tenants = tuple(TenantUse(lease, gpu, memory) for lease, memory in uses)
    return world.do(Usage("a", gpu, foreign, (), tenants, policy))


def kinds(written: list[Any]) -> list[str]:
    return [type(fact).__name__ for fact in written]


def shown(world: World, job: str = "j") -> dict[str, Any]:
    return views.job_view(world.state, world.job(job), world.now)


def test_a_tenant_over_its_memory_is_told_with_the_first_sample_that_says_so(world: World) -> None:
    assert see(world, ("j.1", QUARTER)) == [], "all of its share is not too much"
    written = see(world, ("j.1", QUARTER + 1))
    assert kinds(written) == ["OverShare", "Warned"]
    assert shown(world)["warning"] == "uses 20481 MiB of GPU-a-0 on a and has 20480 MiB of it"
    assert see(world, ("j.1", QUARTER + 500)) == [], "it is told once"
    assert world.job("j").state == "running"
    event = event_view(world.state, 1, written[0])
    assert event is not None
    assert (event["job"], event["event"]) == ("j", "overshare")
    assert event["message"] == "uses 20481 MiB of GPU-a-0 on a and has 20480 MiB of it"


def test_the_warning_is_taken_back_once_it_uses_less(world: World) -> None:
    see(world, ("j.1", QUARTER + 1))
    assert kinds(see(world, ("j.1", 100))) == ["BackInShare", "Warned"]
    assert shown(world)["warning"] == ""
    see(world, ("j.1", QUARTER + 1))
    assert kinds(see(world)) == ["BackInShare", "Warned"], "no process is left on the GPU"


def test_a_warning_stays_when_the_node_is_described_anew(world: World) -> None:
    see(world, ("j.1", QUARTER + 1))
    world.do(NodeSeen(changed(node("a", 2), index=1, fault="XID 79")))
    assert "uses 20481 MiB" in shown(world)["warning"]


def test_a_report_is_no_warning(world: World) -> None:
    assert kinds(see(world, ("j.1", 30_000), policy=REPORT)) == ["OverShare"]
    assert shown(world)["warning"] == ""
    (tenant,) = gpu_views.gpus_view(world.state, gpu_views.Usage(), world.now)["nodes"][0]["gpus"][0][
        "tenants"
    ]
    assert (tenant["over"]["used_mib"], tenant["over"]["held_mib"]) == (30_000, QUARTER)
    assert (tenant["over"]["action"], tenant["over"]["ends"]) == ("report", None)


def test_by_policy_a_job_over_its_memory_is_ended_after_its_grace(world: World) -> None:
    see(world, ("j.1", 30_000), policy=END)
    assert "unless it uses less it is ended at 1970-01-01T00:17:40.000Z" in shown(world)["warning"]
    world.now += 59_999
    assert see(world, ("j.1", 30_000), policy=END) == []
    world.now += 1
    assert kinds(see(world, ("j.1", 31_000), policy=END)) == ["Stopping"]
    assert wanted(world.state, "vm").stops
    assert see(world, ("j.1", 31_000), policy=END) == [], "it is ended once"
    world.exit("j", 143)
    job = world.job("j")
    assert (job.state, job.reason) == ("failed", "used 31000 MiB of GPU-a-0 on a and has 20480 MiB of it")


def test_a_job_that_gave_memory_back_within_its_grace_goes_on(world: World) -> None:
    see(world, ("j.1", 30_000), policy=END)
    world.now += 30_000
    see(world, ("j.1", 20_000), policy=END)
    world.now += 60_000
    see(world, ("j.1", 20_000), policy=END)
    see(world, ("j.1", 30_000), policy=END)
    assert world.job("j").state == "running", "a new grace has begun"


def test_nothing_is_ended_without_a_sample_that_says_so(world: World) -> None:
    """The agent may have been away for the whole grace."""
    see(world, ("j.1", 30_000), policy=END)
    world.now += 3_600_000
    assert kinds(see(world, ("j.1", 20_000), policy=END)) == ["BackInShare", "Warned"]
    assert world.job("j").state == "running"


def test_a_lease_of_a_program_that_is_over_its_memory_is_taken_away() -> None:
    world = World(node("a", 1))
    world.submit("l", share(0.25), kind="lease", owner="program")
    world.hold("l")
    see(world, ("l.1", 30_000), policy=END)
    world.now += 60_000
    assert kinds(see(world, ("l.1", 30_000), policy=END)) == ["Ended", "Releasing"]
    assert world.job("l").state == "failed"


def test_memory_that_the_driver_does_not_tell_ends_nobody(world: World) -> None:
    see(world, ("j.1", None), policy=END)
    world.now += 60_000
    see(world, ("j.1", None), policy=END)
    assert world.job("j").state == "running"


def test_what_a_lease_uses_of_a_gpu_that_is_not_its_own_is_not_free_and_too_much(world: World) -> None:
    """It may have set CUDA_VISIBLE_DEVICES itself."""
    written = see(world, ("j.1", 500), gpu="GPU-a-1")
    assert kinds(written) == ["GPUObserved", "OverShare", "Warned"]
    assert shown(world)["warning"] == "uses 500 MiB of GPU-a-1 on a and has no part of it"
    assert world.state.nodes["a"].gpus["GPU-a-1"].memory_free == 81920 - 500
    see(world, gpu="GPU-a-1")
    assert world.state.nodes["a"].gpus["GPU-a-1"].memory_free == 81920


def test_what_a_lease_of_another_ledger_uses_is_not_free(world: World) -> None:
    see(world, ("other.1", 700), foreign=300)
    assert world.state.nodes["a"].gpus[GPU].foreign == 1000


def test_a_tenant_of_an_instance_in_anothers_instance_is_too_much() -> None:
    world = World(mig_node("a"))
    world.submit("one", mig("1g.10gb"))
    world.run("one")
    world.submit("two", mig("1g.10gb"))
    world.run("two")
    mine, other = (world.lease(job).places[0].slices[0] for job in ("one", "two"))
    assert world.do(Usage("a", GPU, 0, (), (TenantUse("one.1", mine.device, mine.memory),))) == []
    written = world.do(Usage("a", GPU, 0, (), (TenantUse("one.1", other.device, 100),)))
    assert kinds(written) == ["GPUObserved", "OverShare", "Warned"]
    assert world.state.nodes["a"].gpus[GPU].strangers == (other.device,)


def test_who_was_over_its_share_and_ended_is_forgotten(world: World) -> None:
    see(world, ("j.1", 30_000))
    world.exit("j")
    assert see(world, ("j.1", 30_000)) == [], "it is being ended"
    world.do(Gone("j.1"))
    assert world.state.nodes["a"].gpus[GPU].over == ()


def test_times_move_with_the_clock(world: World) -> None:
    see(world, ("j.1", 30_000), policy=END)
    world.do(SetClock("boot", 1, 3_600_000))
    world.now += 3_600_000
    see(world, ("j.1", 30_000), policy=END)
    assert world.job("j").state == "running"
    world.now += 60_000
    see(world, ("j.1", 30_000), policy=END)
    assert world.job("j").state == "stopping"


# ---------------------------------------------------------------- what agents are told


def test_an_agent_is_told_who_may_use_the_gpus(world: World) -> None:
    world.submit("starts", share(0.5))
    assert guidance(world.state, "a", []) == Guidance(
        (Tenancy(GPU, "j.1", "j", "ana", "default", 2500, QUARTER),)
    )
    assert guidance(world.state, "unknown", []) == Guidance()


def test_only_a_lease_of_ours_that_is_over_has_orphans(world: World) -> None:
    world.submit("again", share(0.1), retries=1)
    world.finish("again", 1)
    world.run("again")
    seen = ["again.1", "again.2", "again.3", "j.1", "another-ledgers.1", "no-lease", "again.x", ""]
    assert guidance(world.state, "a", seen).orphans == {"again.1"}


# ---------------------------------------------------------------- the use of a lease


def stretch(**changes: Any) -> Stretch:
    return replace(Stretch("j.1", GPU, 5000, 4000, 900, 1200, 2000, 9000), **changes)


def test_the_use_of_a_lease_is_written_down_once(world: World) -> None:
    told = Measured("a", (stretch(),))
    assert kinds(world.do(told)) == ["Used"]
    assert world.do(told) == [], "the answer was lost, and it is told again"
    assert kinds(world.do(Measured("a", (stretch(end=9000), stretch(end=9000, gpu="GPU-a-1"))))) == [
        "Used",
        "Used",
    ]


def test_the_use_of_a_lease_that_is_over_or_unknown_is_passed_over(world: World) -> None:
    world.finish("j")
    assert world.do(Measured("a", (stretch(), stretch(lease="unknown.1")))) == []


def test_the_use_is_in_the_history(world: World) -> None:
    records = Records()
    for fact in world.told:
        records.tell(fact)
    (used,) = world.do(Measured("a", (stretch(),)))
    records.tell(used)
    records.tell(facts.ClockSet(world.now, "boot", 1, 500))
    assert records.leases["j.1"].used == [(world.now + 500, stretch())]
    assert records.leases["j.1"].parts == {GPU: (2500, QUARTER)}


def test_old_facts_need_nothing_of_this() -> None:
    world = World(node("a", 1))
    written = world.do(Usage("a", GPU, 5))
    assert written == [facts.GPUObserved(world.now, "a", GPU, 5, False, ())]
