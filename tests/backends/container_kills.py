"""Containers of which one process is killed at a random moment: none begins twice, none outlives its run."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from podman import IMAGE, Podman

from raysched.backends import runner
from raysched.backends.leftovers import leftovers
from raysched.backends.runs import Runs
from raysched.core.work import Run, Seen
from raysched.testing.conformance import new_launch

LATEST_S = 0.8
"""The longest time from a start to the kill: a container takes half of it to begin here."""
PATIENCE_S = 120.0
VICTIMS = ("runner", "podman", "conmon", "container")
COMMAND = "echo begun >> begun; setsid sleep 600 & sleep 600"


def kills(podman: Podman, folder: Path, seed: str, count: int) -> Counter[str]:
    """How many containers lost which process, and how their runs ended. Raises AssertionError."""
    chance = random.Random(seed)
    runs = Runs(folder, {**os.environ, **podman.env})
    told: Counter[str] = Counter()
    for number in range(count):
        launch = replace(new_launch(COMMAND), image=IMAGE)
        victim, moment = VICTIMS[number % len(VICTIMS)], chance.uniform(0, LATEST_S)
        what = f"seed {seed}, number {number}: {victim} killed after {moment:.3f} s"
        runs.start(launch, None)
        time.sleep(moment)  # a random moment: nothing is waited for
        told[victim if _kill(folder, launch.run, victim) else f"no {victim} yet"] += 1
        runs = Runs(folder, {**os.environ, **podman.env})
        runs.start(launch, None)
        runs.stop(launch.run, 0.1)
        told[_ended(runs, launch.run, what).state] += 1
        runs.start(launch, None)
        begun = folder / str(launch.run) / "work" / "begun"
        assert not begun.exists() or begun.read_text() == "begun\n", f"{what}: it began more than once"
        assert not leftovers(launch.run), f"{what}: processes are left"
        assert not podman.containers(), f"{what}: a container is left"
    return told


def _kill(folder: Path, run: Run, victim: str) -> bool:
    """Whether there was such a process to kill."""
    pids = _processes(folder, run, victim)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def _processes(folder: Path, run: Run, victim: str) -> list[int]:
    mine = runner.read_json(str(folder / str(run)), "run.json")["pid"]
    if victim == "runner":
        return [mine]
    below = {pid: _name(pid) for pid in runner.descendants({mine})}
    if victim == "container":
        return [pid for pid, name in below.items() if name in ("catatonit", "sh", "sleep")]
    return [pid for pid, name in below.items() if name == victim]


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _ended(runs: Runs, run: Run, what: str) -> Seen:
    limit = time.monotonic() + PATIENCE_S
    while True:
        seen = next(seen for seen in runs.observe() if seen.run == run)
        if seen.state != "running":
            return seen
        assert time.monotonic() < limit, f"{what}: the run does not end: {seen}"
        time.sleep(0.02)
