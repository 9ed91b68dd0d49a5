"""Whatever crashes, and whenever: nothing that was acknowledged is lost, nothing is granted twice, no run
starts twice. `make torture` does the same 10,000 times."""

from __future__ import annotations

from tests.crash import outside

SEED = "1"
CRASHES = 80
POINTS = 12
"""Lines at which each of those who start or stop a run is killed."""


def test_no_crash_loses_what_was_acknowledged_or_does_anything_twice() -> None:
    """The process of ledger and backends is killed at its steps, at random microseconds, amid writes of the
    journal, by losses of power and after the disk failed; then it goes on from what is there."""
    told = outside.stories(SEED, CRASHES)
    assert told["crashes"] >= CRASHES
    assert {"step", "moment", "write", "power", "broken disk"} <= told.keys(), "one kind of end never came"
    assert min(told["submissions"], told["leases"], told["starts"], told["packed"]) > 0


def test_a_command_runs_at_most_once_wherever_its_start_is_cut_short() -> None:
    """The starter, the runner and one who stops the run are killed between two lines of their code."""
    told = outside.starts(SEED, POINTS)
    assert told["start"]["exited"] == told["stop"]["exited"] == POINTS
    for kind in ("start_with_runner", "start_in_nursery"):
        assert sum(told[kind].values()) == POINTS
        assert {"exited", "lost"} <= told[kind].keys(), "the runner never died early, or never late"
