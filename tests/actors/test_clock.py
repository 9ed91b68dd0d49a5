"""The ledger's clock on a machine whose wall clock is set, and which sleeps and starts again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from raysched.actors.clock import DRIFT, JUMP, Clock, boot_id, uptime, wall_clock
from raysched.actors.desk import Desk
from raysched.core.commands import Held, JobRequest, NodeGone, NodeSeen, Report, SetClock, Submit, Tick
from raysched.core.facts import Fact
from raysched.core.request import Request
from raysched.core.state import Reading
from raysched.core.work import Run, Seen
from raysched.errors import StorageError
from raysched.store.book import Book
from raysched.store.journal import Journal
from tests.core.world import World, node

HOUR = 3_600_000


class Machine:
    """A machine whose clocks a test moves."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000_000
        self.up = 50_000
        self.boot = "boot-1"

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.up, lambda: self.boot)

    def run(self, ms: int) -> None:
        self.wall += ms
        self.up += ms


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_time_goes_by_as_on_the_machine(machine: Machine) -> None:
    clock = machine.clock()
    machine.run(1234)
    assert clock.now() == machine.wall
    assert clock.look() == 0


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 30 * 24 * HOUR])
def test_a_jump_of_the_wall_clock_is_told_and_passes_no_time(machine: Machine, jump: int) -> None:
    clock = machine.clock()
    before = clock.now()
    machine.wall += jump
    machine.run(10)
    assert clock.now() == before + 10
    assert clock.look() == jump
    clock.shift(jump)
    assert clock.now() == machine.wall
    assert clock.look() == 0


def test_a_sleeping_machine_passes_no_time(machine: Machine) -> None:
    """Its uptime stands still (CLOCK_MONOTONIC), its wall clock goes on."""
    clock = machine.clock()
    before = clock.now()
    machine.wall += 8 * HOUR
    assert clock.now() == before
    assert clock.look() == 8 * HOUR


@pytest.mark.parametrize("drift", [JUMP - 1, 1 - JUMP])
def test_drift_is_followed_and_time_never_runs_backwards(machine: Machine, drift: int) -> None:
    clock = machine.clock()
    machine.wall += drift
    seen = [clock.now()]
    for _ in range(JUMP // DRIFT + 1):
        machine.run(1000)
        assert clock.look() == 0
        seen.append(clock.now())
    assert seen == sorted(seen)
    assert clock.now() == machine.wall


def test_a_ledger_that_was_down_counts_the_time_and_not_the_jump(machine: Machine) -> None:
    first = machine.clock()
    reading = Reading(first.now(), first.boot, first.uptime())
    machine.run(HOUR)
    machine.wall += 5 * HOUR
    second = machine.clock()
    second.resume(reading, reading.at)
    assert second.now() == reading.at + HOUR
    assert second.look() == 5 * HOUR


def test_after_a_new_start_of_the_machine_the_wall_clock_counts_but_never_backwards(machine: Machine) -> None:
    reading = Reading(machine.wall, "boot-0", 10)
    clock = machine.clock()
    clock.resume(reading, reading.at)
    assert clock.now() == machine.wall
    machine.wall -= HOUR
    clock = machine.clock()
    clock.resume(reading, reading.at)
    assert clock.now() == reading.at
    machine.run(100)
    assert clock.now() == reading.at + 100
    assert clock.look() == -HOUR


def test_this_machine_has_clocks() -> None:
    assert boot_id()
    assert uptime() <= uptime()
    assert wall_clock() > 1_700_000_000_000


@pytest.mark.parametrize("jump", [24 * HOUR, -24 * HOUR])
def test_a_jump_neither_ends_a_job_early_nor_lets_it_run_for_ever(jump: int) -> None:
    world = World(node("a", 1))
    world.submit("j", Request(), max_runtime=HOUR)
    world.run("j")
    world.now += HOUR - 1
    world.do(SetClock("boot-1", 1, jump))
    world.now += jump
    world.do(Tick())
    assert world.job("j").state == "running"
    world.now += 1
    world.do(Tick())
    assert world.job("j").state == "stopping"
    assert world.state.clock == Reading(world.now - 1, "boot-1", 1)


@pytest.mark.parametrize("jump", [24 * HOUR, -24 * HOUR])
def test_a_jump_does_not_lose_a_node(jump: int) -> None:
    world = World(node("a", 1))
    world.submit("j", Request())
    world.run("j")
    world.do(NodeGone("a"))
    world.do(SetClock("boot-1", 1, jump))
    world.now += jump + 1000
    world.do(Tick())
    assert world.job("j").state == "running"
    world.now += 60_000
    world.do(Tick())
    assert world.job("j").reason == "node a is gone"


def test_a_ledger_that_starts_again_after_a_jump_ends_nothing_early(machine: Machine, tmp_path: Path) -> None:
    """Down for half an hour, in which somebody also set the wall clock ten hours ahead."""

    url = f"sqlite:///{tmp_path}/journal.sqlite"
    journal = Journal(url)
    first = Desk(Book(journal, 1), machine.clock())
    asked = JobRequest("j", "j", "command", Request(), {"entrypoint": "true"}, max_runtime=HOUR)
    lease, run = "j.1", Run("j", 1, 0)
    told = NodeSeen(node("a", 1)), Submit("k", "ana", (asked,)), Held(lease, ()), Report(Seen(run, "running"))
    for command in told:
        assert first.book.decide([command], first.clock.now()) == [None]
    journal.close()

    machine.run(HOUR // 2)
    machine.wall += 10 * HOUR
    journal = Journal(url)
    second = Desk(Book(journal, 1), machine.clock())
    job = second.state.jobs["j"]
    assert second.clock.now() == machine.wall
    assert second.clock.now() - (job.started or 0) == HOUR // 2
    second.book.decide([Tick()], second.clock.now())
    assert job.state == "running"
    machine.run(HOUR // 2)
    second.book.decide([Tick()], second.clock.now())
    assert second.state.jobs["j"].state == "stopping"
    journal.close()


def test_a_jump_moves_no_time_twice_though_its_write_failed_after_it_was_done(
    machine: Machine, tmp_path: Path
) -> None:
    journal = FailsLate(f"sqlite:///{tmp_path}/journal.sqlite")
    desk = Desk(Book(journal, 1), machine.clock())
    asked = JobRequest("j", "j", "command", Request(), {"entrypoint": "true"})
    for command in (NodeSeen(node("a", 1)), Submit("k", "ana", (asked,))):
        assert desk.book.decide([command], desk.clock.now()) == [None]
    machine.wall += HOUR
    journal.failing = True
    desk.look_at_clock()
    journal.failing = False
    desk.look_at_clock()
    assert desk.clock.now() == machine.wall
    assert desk.state.jobs["j"].submitted == machine.wall
    journal.close()


class FailsLate(Journal):
    """Its disk reports an error once everything is written."""

    failing = False

    def append(self, facts: Sequence[Fact]) -> int:
        last = super().append(facts)
        if self.failing:
            raise StorageError("the disk reports an error")
        return last
