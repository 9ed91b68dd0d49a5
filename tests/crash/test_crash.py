"""Whatever crashes, and whenever: nothing that was acknowledged is lost, nothing is granted twice, no run
starts twice. `make torture` does the same 10,000 times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from faulty_disk import FaultyDisk

ROOT = Path(__file__).parents[2]
CRASHES = int(os.environ.get("CRASHES", "80"))
POINTS = 12
"""Lines at which each of those who start or stop a run is killed."""
SEED = os.environ.get("CRASH_SEED", "1")


def test_no_crash_loses_what_was_acknowledged_or_does_anything_twice(tmp_path: Path) -> None:
    """The process of ledger and backends is killed at its steps, at random microseconds, amid writes of the
    journal, by losses of power and after the disk failed; then it goes on from what is there."""
    disk = FaultyDisk(tmp_path / "control", "no file of its own")
    told = run("tests.crash.stories", SEED, str(CRASHES), **disk.environment)
    assert told["crashes"] >= CRASHES
    assert {"step", "moment", "write", "power", "broken disk"} <= told.keys(), "one kind of end never came"
    assert min(told["submissions"], told["leases"], told["starts"], told["packed"]) > 0


def test_a_command_runs_at_most_once_wherever_its_start_is_cut_short() -> None:
    """The starter, the runner and one who stops the run are killed between two lines of their code."""
    told = run("tests.crash.starts", SEED, str(POINTS))
    assert told["start"]["exited"] == told["stop"]["exited"] == POINTS
    assert sum(told["start_with_runner"].values()) == POINTS


def run(module: str, *args: str, **env: str) -> dict[str, Any]:
    """What a module of this folder told. Fails with what it found."""
    env = os.environ | env | {"PYTHONPATH": str(ROOT / "tests"), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", module, *args]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)
