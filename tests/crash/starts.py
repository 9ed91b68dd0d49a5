"""Starting a run, cut short between any two lines: `python -m tests.crash.starts SEED POINTS`.

The process that starts a run, the runner itself, or the one that stops a run is killed (SIGKILL) at a line;
then the same is asked for again, as the backend's next round does. The user's command runs at most once.
Prints one line of JSON. POINTS is how many lines are tried of each kind; 0: every one.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from raysched.backends import nurse, run_files, run_folder, runner, runs, working_dir
from raysched.backends.base import EngineRefused
from raysched.backends.leftovers import leftovers
from raysched.backends.run_folder import RunFolder
from raysched.backends.runs import Runs
from raysched.core.work import Launch, Seen
from raysched.testing.conformance import new_launch

TRACED = frozenset(module.__file__ for module in (nurse, run_files, run_folder, runner, runs, working_dir))
PATIENCE_S = 60
KILLED = 128 + signal.SIGKILL


class Death:
    """Kills the process that traces by it at its `last`-th line; 0: never. `lines` counts them."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.lines = 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.trace


def start(root: Path, launch: Launch, death: Death) -> None:
    """The starter dies."""
    sys.settrace(death.trace)
    Runs(root, os.environ).start(launch, None)


def start_with_runner(root: Path, launch: Launch, death: Death) -> None:
    """The runner dies, which is a process of its own; this one lives."""

    def run_it_here(folder: RunFolder) -> None:
        child = os.fork()
        if child == 0:
            sys.settrace(death.trace)
            os._exit(runner.main(str(folder.path)) or 0)
        os.waitpid(child, 0)

    RunFolder._start_runner = run_it_here  # the command line of the product's gives no way to trace it
    Runs(root, os.environ).start(launch, None)


def start_in_nursery(root: Path, launch: Launch, death: Death) -> None:
    """One that stood ready to be the runner dies."""

    def run_it_here(folder: RunFolder) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        said, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(ours, [os.fsencode(folder.path)], [there.fileno()])
        if os.fork() == 0:
            os.setsid()
            busy = os.open(os.devnull, os.O_WRONLY)
            sys.settrace(death.trace)
            nurse.be_ready(theirs, busy)
        there.close()
        theirs.close()
        said.recv(1000)

    RunFolder._start_runner = run_it_here
    Runs(root, os.environ).start(launch, None)


def stop(root: Path, launch: Launch, death: Death) -> None:
    """Somebody dies who stops a run before it was started."""
    sys.settrace(death.trace)
    Runs(root, os.environ).stop(launch.run, 0)


Kind = Callable[[Path, Launch, Death], None]


def lines_of(kind: Kind) -> int:
    """How many lines there are to die at. The runner's own are counted until its command has begun."""
    if kind in (start_with_runner, start_in_nursery):
        return RUNNER_LINES
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory(prefix="raysched-starts-") as folder:
        launch = new_launch("true")
        child = os.fork()
        if child == 0:
            death = Death(0)
            kind(Path(folder), launch, death)
            sys.settrace(None)
            os.write(writer, str(death.lines).encode())
            os._exit(0)
        os.waitpid(child, 0)
        wait_for_end(Runs(Path(folder), os.environ), launch)
    return int(os.read(reader, 20))


RUNNER_LINES = 600
"""More than the runner has until its command began. Later lines kill the runner while, or after, its command
runs, and some the command's own process before it has become the command."""


def attempt(kind: Kind, line: int) -> str:
    """Die at a line, ask again, and say how it ended. Raises AssertionError where that is wrong."""
    with tempfile.TemporaryDirectory(prefix="raysched-starts-") as folder:
        root, mark = Path(folder) / "runs", Path(folder) / "mark"
        launch = new_launch(f"echo started >> {shlex.quote(str(mark))}")
        child = os.fork()
        if child == 0:
            os.setsid()
            kind(root, launch, Death(line))
            os._exit(0)
        os.waitpid(child, 0)
        again = Runs(root, os.environ)
        if kind is stop:
            again.stop(launch.run, 0)
        again.start(launch, None)
        seen = wait_for_end(again, launch)
        times = mark.read_text().count("started") if mark.exists() else 0
        what = f"{kind.__name__} cut short at line {line}: the command ran {times} times, {seen}"
        assert not leftovers(launch.run), what
        match kind:
            case _ if kind is stop:
                assert (times, seen.code) == (0, 143), what
            case _ if kind is start:
                assert (times, seen.code) == (1, 0), what
            case _:
                assert times <= 1, what
                assert seen.state == "lost" or (times, seen.code) in ((1, 0), (0, KILLED)), what
        return seen.state if seen.code in (None, 0) or kind is stop else "killed"


def spread(chance: random.Random, lines: range, points: int) -> list[int]:
    """So many of the lines, equally far apart from a random one on: no long stretch is missed by chance."""
    first = chance.randrange(len(lines))
    return [lines[(number * len(lines) + first) // points] for number in range(points)]


def wait_for_end(runs: Runs, launch: Launch) -> Seen:
    """The run once it is over; it is asked for until it was begun."""
    limit = time.monotonic() + PATIENCE_S
    while True:
        seen = next((seen for seen in runs.observe() if seen.run == launch.run), None)
        if seen is None:
            runs.start(launch, None)
        elif seen.state != "running":
            return seen
        assert time.monotonic() < limit, f"the run does not end: {seen}"
        time.sleep(0.005)


def main(seed: str, points: int) -> int:
    """1: something went wrong."""
    told: dict[str, Any] = {"seed": seed, "crashes": 0}
    chance = random.Random(seed)
    try:
        for kind in (start, start_with_runner, start_in_nursery, stop):
            lines = range(1, lines_of(kind) + 1)
            chosen = spread(chance, lines, points) if 0 < points < len(lines) else lines
            ends = [attempt(kind, line) for line in chosen]
            told[kind.__name__] = {end: ends.count(end) for end in sorted(set(ends))}
            told["crashes"] += len(chosen)
    except (AssertionError, EngineRefused) as wrong:
        print(json.dumps({"seed": seed, "wrong": str(wrong)}))
        return 1
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
