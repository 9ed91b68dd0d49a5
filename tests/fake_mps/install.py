"""Puts the stand-in for the MPS control program where it is found."""

from __future__ import annotations

import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("control.py")


def install(folder: Path) -> Path:
    """Make the program in `folder`, which goes into PATH."""
    program = folder / "nvidia-cuda-mps-control"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {SOURCE} "$@"\n')
    program.chmod(0o755)
    return folder
