"""The demo, whole and interrupted, on a real system of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
FOLDERS = "rsd-*"
"""The demo's folders under /tmp."""

pytestmark = pytest.mark.ray


def traces() -> set[str]:
    """Folders of demos, and processes that have such a folder in their environment or command line."""
    found = {str(path) for path in Path("/tmp").glob(FOLDERS)}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and any(
                b"/tmp/rsd-" in (entry / name).read_bytes() for name in ("environ", "cmdline")
            ):
                found.add(f"process {entry.name}")
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever happened, the demo leaves the machine as it was."""
    before = traces()
    yield
    assert traces() <= before


@pytest.fixture(name="demo")
def start_demo() -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts the demo with its output in a pipe."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, str(DEMO)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate()


def test_eight_trials_share_one_gpu(demo: Callable[[], subprocess.Popen[str]]) -> None:
    """Four at a time, with real results, and a table at the end."""
    process = demo()
    output, _ = process.communicate()
    assert process.returncode == 0, output
    rows = re.findall(r"^hpo\[(\d)\] .* (0\.\d+) +25 % .* (GPU-\w+)$", output, re.MULTILINE)
    assert [row[0] for row in rows] == list("01234567")
    assert all(float(row[1]) > 0.8 for row in rows)
    assert "One trial a GPU:" in output
    assert "\x1b" not in output
    if "simulated" in output:
        running = 0
        for line in output.splitlines():
            running += (" runs on 25 % " in line) - (" done after " in line)
            assert running <= 4


@pytest.mark.parametrize(
    ("mark", "number"),
    [("Starting", signal.SIGTERM), ("hpo[3] runs", signal.SIGINT)],
    ids=["SIGTERM while it starts", "Ctrl-C while trials run"],
)
def test_an_interrupted_demo_leaves_nothing(
    demo: Callable[[], subprocess.Popen[str]], mark: str, number: signal.Signals
) -> None:
    process = demo()
    assert process.stdout is not None
    for line in process.stdout:
        if mark in line:
            break
    os.kill(process.pid, number)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "Interrupted" in output
