"""The shell that runs a job's line in its container, under whichever shell an image has: what tells it to end
tells all, and it stays until they have finished.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import wait_until

from raysched.backends.kube.command import SHELL

SHELLS = ("dash", "bash", "busybox sh")
PATIENT = """\
import pathlib, signal, sys, time
def end(*_):
    time.sleep(0.2)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1]).touch()
while True:
    time.sleep(0.05)
"""


def begun(shell: str, line: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*shell.split(), "-c", SHELL, "sh", line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_a_line_ends_as_it_would_by_itself(shell: str) -> None:
    """With its code, and with nothing written that it did not write."""
    lines = {"echo $0 '$A'; exit 7": (7, "/bin/sh $A\n"), "kill -9 $$": (137, ""), "true": (0, "")}
    for line, (code, text) in lines.items():
        process = begun(shell, line)
        assert process.communicate(timeout=60)[0] == text
        assert process.returncode == code


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("line", ["{}", "{}; echo never", "({} & wait)"])
def test_what_a_line_started_may_finish(shell: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "patient.py").write_text(PATIENT)
    ready = tmp_path / "ready"
    process = begun(shell, line.format(f"{sys.executable} {tmp_path}/patient.py {ready}"))
    wait_until(ready.exists, "it runs", 60)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "saved\n"
    assert process.returncode == 128 + signal.SIGTERM
