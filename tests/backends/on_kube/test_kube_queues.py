"""Jobs that Kueue lets go, on a real API server: a test does what Kueue's controller would do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from documented import KUEUE, KUEUE_QUEUE
from kube_cluster import KubeCluster
from orders import NAMESPACE, KubeHands, ordered
from running import wait_until

from raysched.backends.base import Backend
from raysched.core.site import NOWHERE
from raysched.core.work import Run
from raysched.testing.conformance import LASTS, new_launch


@pytest.fixture
def hands(cluster: KubeCluster, kueue: None, make: Callable[..., Backend]) -> Iterator[KubeHands]:
    """A backend whose jobs wait in Kueue's queues."""
    hands = KubeHands(lambda: make(kueue={"default": "team-a"}), cluster)
    yield hands
    hands.close()


def job_of(cluster: KubeCluster, run: Run) -> Any:
    return next(job for job in cluster.jobs(NAMESPACE) if _run(job) == str(run))


def _run(thing: Any) -> str:
    """The run that a Job is of; "" where another program made it."""
    return (thing["metadata"].get("annotations") or {}).get("raysched.io/run", "")


def suspend(cluster: KubeCluster, run: Run, on: bool) -> None:
    path = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{job_of(cluster, run)['metadata']['name']}"
    cluster.patch(path, {"spec": {"suspend": on}})


def says(cluster: KubeCluster, job: Any, message: str) -> None:
    """Make the workload of a Job, which waits for this reason."""
    metadata = job["metadata"]
    owner = {
        "apiVersion": job.get("apiVersion", "batch/v1"),
        "kind": job.get("kind", "Job"),
        "name": metadata["name"],
        "uid": metadata["uid"],
    }
    name = f"job-{metadata['name']}"
    path = f"{KUEUE}/namespaces/{NAMESPACE}/workloads"
    body = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Workload"}
    spec = {"queueName": metadata["labels"][KUEUE_QUEUE]}
    cluster.call("POST", path, {**body, "metadata": {"name": name, "ownerReferences": [owner]}, "spec": spec})
    condition = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": message}
    status = {"status": {"conditions": [condition]}}
    cluster.call("PATCH", f"{path}/{name}/status", status, "application/merge-patch+json")


def test_a_job_waits_in_kueue_runs_when_it_is_let_go_and_is_taken_away_for_others(
    cluster: KubeCluster, hands: KubeHands
) -> None:
    run = hands.start(ordered(new_launch(LASTS, NOWHERE)))
    assert hands.until(run, "queued").reason == "waits in Kueue"
    hands.start(hands._started[run])  # whoever starts it again lets nothing go
    job = job_of(cluster, run)
    assert (job["metadata"]["labels"][KUEUE_QUEUE], job["spec"]["suspend"]) == ("team-a", True)
    why = "couldn't assign flavors to pod set main: insufficient quota for nvidia.com/gpu"
    says(cluster, job, why)
    wait_until(lambda: hands.until(run, "queued").reason == f"waits in Kueue: {why}", "it is told why", 60)
    assert not hands.pods(run)
    suspend(cluster, run, False)
    hands.until(run, "running")
    suspend(cluster, run, True)
    assert "Kueue took it away" in hands.until(run, "taken").reason


def test_kueue_lets_nothing_go_again_that_was_stopped(cluster: KubeCluster, hands: KubeHands) -> None:
    """Kueue lets go what it has admitted as often as somebody suspends it."""
    waits, runs = (hands.start(ordered(new_launch(LASTS, NOWHERE))) for _ in range(2))
    hands.until(waits, "queued")
    suspend(cluster, runs, False)
    hands.until(runs, "running")
    for run in (waits, runs):
        hands.stop(run, grace=1)
        assert job_suspended(cluster, run) in (None, run == waits)
        hands.until(run, "exited")
    left = [*hands.pods(waits), *hands.pods(runs)]
    assert not [pod for pod in left if pod["status"]["phase"] == "Running"]


def job_suspended(cluster: KubeCluster, run: Run) -> bool | None:
    """Whether a run's Job is suspended; None where it is gone."""
    ours = [job for job in cluster.jobs(NAMESPACE) if _run(job) == str(run)]
    return ours[0]["spec"]["suspend"] if ours else None


def test_a_job_is_not_kueues_before_its_record_knows_of_it(cluster: KubeCluster, hands: KubeHands) -> None:
    """Else it could run, be deleted by somebody, and run again."""
    write, seen = hands.backend._objects.write, []  # type: ignore[attr-defined]

    async def watched(record: Any, **data: str) -> Any:
        if "job" in data:
            seen.append(KUEUE_QUEUE in job_of(cluster, record.run)["metadata"]["labels"])
        return await write(record, **data)

    hands.backend._objects.write = watched  # type: ignore[attr-defined]
    hands.until(hands.start(ordered(new_launch(LASTS, NOWHERE))), "queued")
    assert seen == [False]
