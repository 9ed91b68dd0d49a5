"""Ray jobs in queues of Kueue and KAI Scheduler, on a real API server with the real KubeRay operator: a test
does what their controllers would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from documented import KUEUE_QUEUE
from kube_cluster import KubeCluster
from orders import KubeHands
from running import wait_until
from test_kube_queues import says
from test_kube_ray import LONG, RAY, drives, nothing_is_left, order, pods, rayjob
from test_kube_ways import bind

from raysched.backends.base import Backend
from raysched.core.work import Run
from raysched.testing import RayDashboard


@pytest.fixture
def in_kueue(kuberay: KubeCluster, kueue: None, make: Callable[..., Backend]) -> Iterator[KubeHands]:
    """A backend whose jobs wait in Kueue's queues."""
    hands = KubeHands(lambda: make(kueue={"default": "team-a"}), kuberay)
    yield hands
    hands.close()


@pytest.fixture
def in_kai(kuberay: KubeCluster, make: Callable[..., Backend]) -> Iterator[KubeHands]:
    """A backend whose jobs have a queue of KAI Scheduler."""
    hands = KubeHands(lambda: make(kai={"default": "team-a"}), kuberay)
    yield hands
    hands.close()


def suspend(hands: KubeHands, run: Run, on: bool) -> None:
    """As Kueue does: its objects have no field that says no."""
    path = f"{RAY}/rayjobs/{rayjob(hands, run)['metadata']['name']}"
    hands.cluster.patch(path, {"spec": {"suspend": True if on else None}})


def waiting(hands: KubeHands, count: int) -> list[Run]:
    """Runs that wait in Kueue."""
    runs = [hands.start(order(nodes=2)) for _ in range(count)]
    for run in runs:
        assert hands.until(run, "queued").reason == "waits in Kueue"
    return runs


def test_a_ray_job_waits_in_kueue_and_runs_once_it_is_let_go(
    in_kueue: KubeHands, dashboard: RayDashboard
) -> None:
    hands = in_kueue
    run, other = waiting(hands, 2)
    hands.start(hands._started[run])  # whoever starts it again lets nothing go
    job = rayjob(hands, run)
    assert (job["metadata"]["labels"][KUEUE_QUEUE], job["spec"]["suspend"]) == ("team-a", True)
    why = "couldn't assign flavors to pod set head: insufficient quota for nvidia.com/gpu"
    says(hands.cluster, job, why)
    hands.until_reason(run, f"waits in Kueue: {why}")
    looked = lambda: rayjob(hands, run).get("status", {}).get("jobDeploymentStatus")  # noqa: E731
    wait_until(lambda: looked() == "Suspended", "KubeRay has written into it", LONG)
    assert hands.until(run, "queued")
    assert not pods(hands, run)
    suspend(hands, run, False)
    drives(hands, dashboard, run, 0)
    assert hands.until(run, "exited").code == 0
    hands.stop(other)  # which never began
    assert hands.until(other, "exited").code == 143
    assert not pods(hands, other)


def test_a_ray_job_that_kueue_takes_back_or_that_is_stopped_starts_no_second_time(
    in_kueue: KubeHands, dashboard: RayDashboard
) -> None:
    """Also where nobody saw that Kueue had let it go. Kueue lets go whatever it has admitted."""
    hands = in_kueue
    taken, unseen, stopped = runs = waiting(hands, 3)
    names = {run: rayjob(hands, run)["metadata"]["name"] for run in runs}
    hands.do(hands.backend.close())
    for run in (unseen, taken, stopped):
        suspend(hands, run, False)
    wait_until(lambda: pods(hands, unseen, "head"), "it was begun", LONG)
    suspend(hands, unseen, True)
    hands.restart()
    for run in (taken, stopped):
        hands.until(run, "running")
    suspend(hands, taken, True)
    hands.stop(stopped, grace=1)
    assert hands.until(stopped, "exited").code == 143
    for run in (taken, unseen):
        assert "Kueue took it away" in hands.until(run, "taken").reason
        hands.start(hands._started[run])
    for run in runs:
        nothing_is_left(hands, run, names[run])
        assert not [
            job for job in hands.cluster.items(f"{RAY}/rayjobs") if names[run] == job["metadata"]["name"]
        ]


def test_kai_scheduler_puts_head_and_workers_somewhere_and_not_what_submits(
    in_kai: KubeHands, dashboard: RayDashboard
) -> None:
    """It would wait for all pods of a job before it starts one, and the submitter is made last."""
    hands = in_kai
    share = {"kind": "gpu", "count": 1, "way": "kai", "share": 2_500, "resource": "nvidia.com/gpu"}
    run = hands.start(order(nodes=2, **share))
    there = lambda: len(found := pods(hands, run)) == 2 and found  # noqa: E731
    for pod in wait_until(there, "head and worker are made", LONG):
        assert pod["spec"]["schedulerName"] == "kai-scheduler"
        assert pod["metadata"]["labels"]["kai.scheduler/queue"] == "team-a"
        assert pod["metadata"]["annotations"]["gpu-fraction"] == "0.25"
        bind(hands.cluster, pod, "plain")
    assert rayjob(hands, run)["metadata"]["labels"]["kai.scheduler/queue"] == "team-a"
    drives(hands, dashboard, run, 0)
    assert hands.until(run, "exited").code == 0
