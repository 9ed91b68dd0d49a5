"""A port at which the ranks of a job are to meet, and that somebody else uses."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from running import wait_until

from raysched.backends.runs import Runs
from raysched.core.meeting import meeting_port
from raysched.core.work import Launch, Run, Seen
from raysched.testing.conformance import new_launch


@contextmanager
def used() -> Iterator[Run]:
    """Rank 0 of a job at whose port somebody listens."""
    while True:
        run = new_launch("true").run
        try:
            listening = socket.create_server(("127.0.0.1", meeting_port(run.job, run.attempt)))
        except OSError:  # by another test
            continue
        with listening:
            yield run
        return


def rank_of(run: Run, *, nodes: int = 2, port: int | None = None) -> Launch:
    """A rank of the job, with the variables that it has by the ledger, or a port that its spec sets."""
    port = meeting_port(run.job, run.attempt) if port is None else port
    env = {"RAYSCHED_NUM_NODES": str(nodes), "MASTER_PORT": str(port)}
    return replace(new_launch("exit 3", env=env), run=run)


def seen(folder: Path, launch: Launch) -> Seen:
    """What is seen of the run once it is over."""
    runs = Runs(folder / "runs", os.environ)
    runs.start(launch, None)
    wait_until(lambda: (seen := runs.look(launch.run)) and seen.state != "running", "it is over")
    found = runs.look(launch.run)
    assert found is not None
    runs.start(launch, None)
    assert Runs(folder / "runs", {}).look(launch.run) == found, "it is over for good, whoever looks"
    return found


def test_rank_0_does_not_begin_where_its_port_is_in_use_and_costs_no_attempt(tmp_path: Path) -> None:
    with used() as run:
        found = seen(tmp_path, rank_of(run))
    assert (found.state, found.begun, found.started) == ("taken", False, None)
    port = meeting_port(run.job, run.attempt)
    assert found.reason == f"port {port}, at which its ranks were to meet, is in use on this node"


@pytest.mark.parametrize("whose", ["another rank", "a job on one node", "a port of the spec's own"])
def test_nobody_else_is_kept_from_beginning_by_a_port(tmp_path: Path, whose: str) -> None:
    with used() as run:
        launch = {
            "another rank": rank_of(replace(run, rank=1)),
            "a job on one node": rank_of(run, nodes=1),
            "a port of the spec's own": rank_of(run, port=meeting_port(run.job, run.attempt + 1)),
        }[whose]
        found = seen(tmp_path, launch)
    assert (found.state, found.code) == ("exited", 3)
