"""How `up` starts a Ray of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raysched.cluster import own_ray


def test_ray_gets_an_interpreter_without_a_space_in_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray splits its workers' command lines at spaces, and a checkout may lie in `My Projects`."""
    checkout = tmp_path / "My Projects" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(checkout)], check=True)
    monkeypatch.setattr(sys, "executable", str(checkout / "bin" / "python"))
    monkeypatch.setattr(sys, "prefix", str(checkout))
    for _ in range(2):
        python = own_ray._python(tmp_path)
        assert " " not in python
        shown = subprocess.run([python, "-c", "print('runs')"], capture_output=True, text=True, check=True)
        assert shown.stdout == "runs\n"
