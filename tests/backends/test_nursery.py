"""Runners that a process stands ready to become."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from running import wait_until

from raysched.backends import runner
from raysched.backends.base import EngineRefused
from raysched.backends.nursery import Nursery, of_this_python
from raysched.backends.runs import Runs
from raysched.core.work import Launch, Seen
from raysched.testing.conformance import new_launch


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    nursery = of_this_python()
    yield nursery
    nursery.close()


@pytest.fixture
def runs(tmp_path: Path, nursery: Nursery) -> Iterator[Runs]:
    runs = Runs(tmp_path / "runs", os.environ, nursery)
    yield runs
    for seen in runs.observe():
        runs.stop(seen.run, 0)
    wait_until(lambda: all(seen.state != "running" for seen in runs.observe()), "all have ended")


def ended(runs: Runs, launch: Launch) -> Seen:
    """The run once it has ended."""
    wait_until(lambda: (seen := runs.look(launch.run)) and seen.state != "running", "it has ended")
    seen = runs.look(launch.run)
    assert seen is not None
    return seen


def marked(tmp_path: Path, then: str = "") -> Launch:
    """A run that leaves a line in `starts`."""
    return new_launch(f"echo $RAYSCHED_RUN >> {shlex.quote(str(tmp_path / 'starts'))}; {then}")


def began(tmp_path: Path) -> list[str]:
    """The marked runs whose commands have begun, once for each time."""
    starts = tmp_path / "starts"
    return starts.read_text().split() if starts.exists() else []


def standing_ready() -> list[int]:
    """The processes of this one's nursery: the one that was started, and those that stand ready to be a
    runner and its command."""
    nurses = {pid for pid in runner.processes() if (stat := runner.process(pid)) and stat[1] == os.getpid()}
    lines = {pid: command_line(pid) for pid in runner.processes()}
    own = {lines[pid] for pid in nurses if "nurse.py" in lines[pid]}
    return [pid for pid, line in lines.items() if line in own]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_runner_that_stood_ready_is_told_by_its_run_and_belongs_to_nobody(runs: Runs) -> None:
    for _ in range(2):  # the first is also the start of the nursery
        launch = new_launch("exec sleep 600")
        runs.start(launch, None)
        pid = runner.read_json(str(runs.root / str(launch.run)), "run.json")["pid"]
        assert command_line(pid) == f"runner.py {launch.run}"
        assert os.getsid(pid) not in (pid, os.getsid(0))
        assert runner.process(pid)[1] != os.getpid()  # type: ignore[index]


def test_many_runs_start_once_each_while_those_who_stand_ready_are_killed(runs: Runs, tmp_path: Path) -> None:
    launches = [marked(tmp_path) for _ in range(12)]
    for number, launch in enumerate(launches):
        if number % 3 == 2:
            # One that has just begun looks as if it stood ready until it has become its command.
            wait_until(
                lambda number=number: len(began(tmp_path)) == number, "those before are what they are to be"
            )
            for pid in standing_ready():
                os.kill(pid, signal.SIGKILL)
        runs.start(launch, None)
        assert runs.look(launch.run) is not None
    assert {ended(runs, launch).code for launch in launches} == {0}
    assert sorted(began(tmp_path)) == sorted(str(each.run) for each in launches)


def test_a_run_starts_though_who_stood_ready_to_be_its_command_was_killed(runs: Runs, tmp_path: Path) -> None:
    launches = [marked(tmp_path), marked(tmp_path)]
    runs.start(launches[0], None)
    wait_until(lambda: len(standing_ready()) == 3, "others stand ready")
    (command,) = [pid for pid in standing_ready() if os.getsid(pid) == pid]
    os.kill(command, signal.SIGKILL)
    wait_until(lambda: runner.ticks(command) is None, "it is dead")
    runs.start(launches[1], None)
    assert {ended(runs, launch).code for launch in launches} == {0}
    assert began(tmp_path) == [str(each.run) for each in launches]


def test_what_began_elsewhere_is_not_started_again(runs: Runs, tmp_path: Path) -> None:
    launch = marked(tmp_path, "exec sleep 600")
    Runs(runs.root, os.environ).start(launch, None)
    runs.start(launch, None)
    folder = str(runs.root / str(launch.run))
    other = Nursery(runs._nursery._command, runs._nursery._env)  # type: ignore[union-attr]
    assert other.start(folder) == (0, b"")  # as by somebody who did not look first
    other.close()
    runs.stop(launch.run, 0)
    ended(runs, launch)
    assert began(tmp_path) == [str(launch.run)]


def test_why_a_run_can_not_be_started_is_told(runs: Runs) -> None:
    launch = new_launch("true")
    folder = runs.root / str(launch.run)
    folder.mkdir()
    (folder / "launch.json").write_text("{}")
    with pytest.raises(EngineRefused, match=r"can't start the run in .*: 'entrypoint'"):
        runs.start(launch, None)


def test_nothing_stands_ready_once_the_nursery_is_closed_and_runs_go_on(runs: Runs, nursery: Nursery) -> None:
    launch = new_launch("exec sleep 600")
    runs.start(launch, None)
    wait_until(lambda: len(standing_ready()) == 3, "others stand ready")
    ready = standing_ready()
    nursery.close()
    wait_until(lambda: not any(runner.ticks(pid) for pid in ready), "they are gone")
    seen = runs.look(launch.run)
    assert seen is not None
    assert seen.state == "running"


def test_a_start_that_hangs_keeps_no_other_from_starting(runs: Runs, nursery: Nursery) -> None:
    hanging = new_launch("true")
    folder = runs.root / str(hanging.run)
    folder.mkdir()
    os.mkfifo(folder / "launch.json")  # whoever reads it waits until somebody writes
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(nursery.start, str(folder))
        wait_until(lambda: f"runner.py {hanging.run}" in map(command_line, runner.processes()), "it hangs")
        launch = new_launch("exec sleep 600")
        runs.start(launch, None)
        seen = runs.look(launch.run)
        assert not answer.done()
        (folder / "launch.json").write_text("{}")
        assert answer.result()[0] == 1  # type: ignore[index]
    assert seen is not None
    assert seen.state == "running"
