"""What is left of a run whose runner was killed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from signal import SIGKILL

from raysched.backends import runner
from raysched.backends.containers import CONTAINER, container_name
from raysched.core.work import Run

KILL_LIMIT = 2.0
"""Seconds that one call waits for killed processes to be gone; the next call goes on."""

MARKER = "RAYSCHED_RUN="
"""How the variable begins that names the run of a process."""

LOOK_AGAIN = 0.02
"""Seconds between two looks."""


def end_leftovers(run: Run) -> bool:
    """Kill every process of the run; true once none is left.

    Found by `RAYSCHED_RUN` in the environment that they were started with, and by their parents. There is
    no grace: nobody is there to wait for it, and the result is lost anyway.
    """
    limit = time.monotonic() + KILL_LIMIT
    while left := leftovers(run):
        for pid in left:
            runner.kill(pid, SIGKILL)
        if time.monotonic() > limit:
            return False
        time.sleep(LOOK_AGAIN)
    return True


def leftovers(run: Run) -> set[int]:
    """The processes of a run, dead ones that nobody reaped left out. Of a container also those that look
    after it, and would go on though it never came to be."""
    marker, name = f"{MARKER}{run}".encode(), container_name(run).encode()
    marked = {pid for pid in runner.processes() if marker in started_with(pid) or name in _words(pid)}
    if not marked:
        return marked
    return {pid for pid in marked | runner.descendants(marked) if runner.ticks(pid) is not None}


def runs_left() -> set[str]:
    """The ids of all runs of which something is there, whoever started them."""
    found: set[bytes] = set()
    for pid in runner.processes():
        found.update(_after(MARKER, started_with(pid)), _after(CONTAINER, _words(pid)))
    return {os.fsdecode(name) for name in found}


def _after(start: str, words: list[bytes]) -> Iterator[bytes]:
    """What is behind `start` in those words that begin with it."""
    return (word[len(start) :] for word in words if word.startswith(start.encode()))


def started_with(pid: int) -> list[bytes]:
    """The environment that a process was started with, empty where it is gone or not ours to read. Raises
    OSError where nothing can be read now."""
    return _strings(pid, "environ")


def _words(pid: int) -> list[bytes]:
    """The command line of a process."""
    return _strings(pid, "cmdline")


def _strings(pid: int, name: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
