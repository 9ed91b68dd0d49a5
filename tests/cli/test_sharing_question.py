"""Before GPUs are shared in another way, people on a terminal are asked."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from scripted import Server, answer, scripted

SET = ("k8s", "sharing", "set", "gpu-1", "--mps", "4")
STATUS = {"simulated": None}


def look(state: str) -> dict[str, Any]:
    """How far the node is."""
    return {
        "node": "gpu-1",
        "state": state,
        "to": "4 replicas each by mps",
        "changes": ["write label nvidia.com/device-plugin.config=raysched-mps-4"],
        "offers": {"nvidia.com/gpu": 2},
        "wanted": {"nvidia.com/gpu.shared": 8},
        "left": [],
    }


def answered(server: Server, line: bytes) -> subprocess.CompletedProcess[str]:
    """What becomes of the command where somebody answers with this line."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, line)
        return subprocess.run(
            [sys.executable, "-c", "from raysched.cli.entry import run; run()", *SET],
            stdin=theirs,
            capture_output=True,
            text=True,
            env={**os.environ, "RAYSCHED_ADDRESS": server.address, "RAYSCHED_TOKEN": "x"},
            timeout=60,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)


def plans(server: Server) -> list[bool]:
    """Of each request about the node, whether it only asked what would be done."""
    return [json.loads(one.body)["plan"] for one in server.asked if one.line.startswith("POST")]


@pytest.mark.parametrize("line", [b"n\n", b"\n"])
def test_nothing_is_done_unless_somebody_agrees(line: bytes) -> None:
    with scripted(answer(look("planned"))) as server:
        done = answered(server, line)
    assert (done.returncode, done.stdout) == (82, "")
    assert "write label nvidia.com/device-plugin.config=raysched-mps-4\nDo this? [y/N]:" in done.stderr
    assert "nothing was changed" in done.stderr
    assert plans(server) == [True]


def test_who_agrees_is_asked_once_and_it_is_done() -> None:
    steps = (answer(look("planned")), answer(look("waiting")), answer(look("done")), answer(STATUS))
    with scripted(*steps) as server:
        done = answered(server, b"y\n")
    assert (done.returncode, done.stdout) == (0, "gpu-1: 4 replicas each by mps, nvidia.com/gpu: 2\n")
    assert done.stderr.count("Do this?") == 1
    assert plans(server) == [True, False, False]
