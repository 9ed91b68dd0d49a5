"""What is said of a Ray job whose head KubeRay made anew, as a real one did where Ray started too late."""

from __future__ import annotations

from typing import Any

import pytest

from raysched.backends.kube.names import ROLE
from raysched.backends.kube.ray_verdict import RAY
from raysched.backends.kube.records import Record
from raysched.backends.kube.verdict import verdict
from raysched.core.work import Run

RUN = Run("job-12ab", 1, 0)


def pod(role: str, second: int, ended: int | None = None) -> dict[str, Any]:
    """A pod that was made at one second and ended at another."""
    made, over = (f"2026-01-01T00:00:{at:02}Z" for at in (second, ended or 0))
    failed = {"terminated": {"exitCode": 1, "startedAt": made, "finishedAt": over}}
    state = {"running": {"startedAt": made}} if ended is None else failed
    return {
        "metadata": {"name": f"{role}-{second}", "creationTimestamp": made, "labels": {ROLE: role}},
        "spec": {"nodeName": "one"},
        "status": {
            "phase": "Running" if ended is None else "Failed",
            "containerStatuses": [{"name": "main", "state": state}],
        },
    }


@pytest.mark.parametrize(
    ("heads", "state"),
    [
        ([pod("head", 1)], "running"),
        ([pod("head", 1, 19), pod("head", 20)], "running"),
        ([pod("head", 1, 35)], "lost"),
        ([pod("head", 1, 19), pod("head", 20, 35)], "lost"),
        ([pod("head", 1, 35), pod("head", 36)], "lost"),
        ([pod("head", 30, 30), pod("head", 30)], "lost"),
    ],
)
def test_a_run_is_lost_with_the_head_that_its_driver_was_submitted_to(
    heads: list[dict[str, Any]], state: str
) -> None:
    """Whatever became of heads before, and whether or not there is another one by now."""
    record = Record(RUN, "rs-job", 0, job="uid", ray=True)
    job = {"metadata": {"name": "rs-job"}, "spec": {"suspend": False}, "status": {"jobStatus": "RUNNING"}}
    said = verdict(RAY, record, job, [*heads, pod("submitter", 30)], patience=60_000, now=0)
    told = said.end or said.seen
    assert told is not None
    assert told.state == state
