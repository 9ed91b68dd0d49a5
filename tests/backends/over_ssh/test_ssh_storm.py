"""A short storm; `make torture` has the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ssh_hosts import HostWorld

FAULTS = 25


def test_no_run_starts_twice_and_no_result_is_lost_whatever_breaks(hosts: HostWorld) -> None:
    """In a process of its own: it changes how long connections are waited for. `hosts` says that there are
    any."""
    script = Path(__file__).with_name("storm.py")
    done = subprocess.run(
        [sys.executable, str(script), "--faults", str(FAULTS)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-5000:]}"
    assert "none started twice" in done.stdout
