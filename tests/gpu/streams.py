"""Runs `stream.py` in a process of its own, on a fake NVML."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def stream(library: Path, folder: Path, seed: str, steps: int) -> subprocess.CompletedProcess[str]:
    """A stream of so many steps; `library` is the folder of the fake NVML."""
    environ = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library),
        "FAKE_NVML_STATE": str(folder / "nvml"),
        "PYTHONPATH": str(HERE.parent),
    }
    command = [sys.executable, str(HERE / "stream.py"), str(folder), seed, str(steps)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
