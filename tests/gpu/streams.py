"""Runs `stream.py` and `error_codes.py` in processes of their own, on a fake NVML, of which `library` is the
folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def stream(library: Path, folder: Path, seed: str, steps: int) -> subprocess.CompletedProcess[str]:
    """A stream of so many steps."""
    return _run(library, folder, "stream.py", str(folder), seed, str(steps))


def errors(library: Path, folder: Path, which: str) -> subprocess.CompletedProcess[str]:
    """Each call fails with `all` error codes, or with `some`."""
    return _run(library, folder, "error_codes.py", str(folder / "calls"), which)


def _run(library: Path, folder: Path, script: str, *args: str) -> subprocess.CompletedProcess[str]:
    environ = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library),
        "FAKE_NVML_STATE": str(folder / "nvml"),
        "PYTHONPATH": str(HERE.parent),
    }
    command = [sys.executable, str(HERE / script), *args]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
