"""Old working directories are deleted by age and by size; what is known of a run stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import wait_until

from raysched.backends.runs import Keep, Runs
from raysched.core.work import Run
from raysched.testing.conformance import new_launch

MIB = 1024 * 1024
FOR_EVER = 10**12


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    runs = Runs(tmp_path / "runs", os.environ)
    yield runs
    for seen in runs.observe():
        runs.stop(seen.run, 0)
    wait_until(lambda: all(seen.state != "running" for seen in runs.observe()), "all have ended")


def left(runs: Runs, of: list[Run]) -> list[bool]:
    return [(runs.root / str(run) / "work").exists() for run in of]


def test_what_runs_left_is_deleted_by_size_and_by_age(runs: Runs) -> None:
    made: list[Run] = []
    for _ in range(3):  # one after the other, so that the first is the oldest
        launch = new_launch("head -c 1048576 /dev/urandom > much; echo made")
        runs.start(launch, None)
        made.append(launch.run)
        wait_until(lambda run=launch.run: (seen := runs.look(run)) and seen.state == "exited", "it has ended")
    going = new_launch("head -c 1048576 /dev/urandom > much; exec sleep 600")
    runs.start(going, None)
    made.append(going.run)
    latest = max(seen.ended or 0 for seen in runs.observe()) / 1000

    runs.sweep(Keep(FOR_EVER, 4 * MIB, 0), latest + 1)
    assert left(runs, made) == [True] * 4
    runs.sweep(Keep(FOR_EVER, 0, 100), latest + 50)  # too much, and too young
    assert left(runs, made) == [True] * 4
    runs.sweep(Keep(FOR_EVER, 2 * MIB + MIB // 2, 0), latest + 1)
    assert left(runs, made) == [False, True, True, True]
    runs.sweep(Keep(100, 4 * MIB, 0), latest + 101)
    assert left(runs, made) == [False, False, False, True]
    assert runs.logs(made[0], 0, 100) == b"made\n"
    seen = Runs(runs.root, os.environ).look(made[0])
    assert seen is not None
    assert seen.code == 0
