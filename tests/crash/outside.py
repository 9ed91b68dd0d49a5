"""Runs the modules of this folder, each in processes of its own, and tells what they told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from faulty_disk import FaultyDisk

ROOT = Path(__file__).parents[2]


def stories(seed: str, crashes: int) -> dict[str, Any]:
    """At least so many crashes of a ledger with its backends. Raises AssertionError with what went wrong."""
    with tempfile.TemporaryDirectory(prefix="raysched-crash-") as folder:
        disk = FaultyDisk(Path(folder) / "control", "no file of its own")
        return _run("tests.crash.stories", seed, str(crashes), **disk.environment)


def starts(seed: str, points: int) -> dict[str, Any]:
    """Starts of runs that are cut short, at so many lines each; 0: at all of them."""
    return _run("tests.crash.starts", seed, str(points))


def _run(module: str, *args: str, **env: str) -> dict[str, Any]:
    env = os.environ | env | {"PYTHONPATH": str(ROOT / "tests"), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", module, *args]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command[1:])}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout)
