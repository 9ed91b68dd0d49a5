"""What is to be said of a Ray job where that is not as of any Job (`verdict.py`). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysched.backends.kube import reasons
from raysched.backends.kube.moments import moment
from raysched.backends.kube.names import KAI_QUEUE, ROLE
from raysched.backends.kube.records import Record
from raysched.backends.kube.verdict import CODE, TOLD_TO_END, Kind, over, started_at, waits_in_kueue
from raysched.core.work import Seen

STOPPED = "its Ray job was stopped in Ray, not by raysched"
NOT_WITH_KAI = (
    " (it never does where it runs with --batch-scheduler=kai-scheduler: that refuses Ray jobs which a pod "
    "submits, and is not needed)"
)

Object = dict[str, Any]


def of_role(pods: Sequence[Object], role: str) -> list[Object]:
    """The pods of a Ray job that are its head, workers or submitter."""
    return [pod for pod in pods if pod["metadata"]["labels"].get(ROLE) == role]


def _submitters(pods: Sequence[Object]) -> list[Object]:
    return of_role(pods, "submitter")


def _waits(job: Object, not_made: str) -> str:
    """Why there is none of its pods that waits."""
    if waits_in_kueue(job):
        return not_made or "waits in Kueue"
    status = job.get("status") or {}
    if not status.get("jobDeploymentStatus"):
        return "waits for the KubeRay operator, which has not looked at it yet"
    failure = reasons.condition({"status": status.get("rayClusterStatus") or {}}, "ReplicaFailure")
    if failure is not None and failure["status"] == "True":
        return reasons.not_made(failure.get("message", ""))
    in_kai = KAI_QUEUE in (job["metadata"].get("labels") or {})
    return f"KubeRay is starting its Ray{NOT_WITH_KAI if in_kai else ''}"


def _ended(record: Record, job: Object, pods: Sequence[Object]) -> Seen | None:
    """How it ended, once KubeRay says that it has."""
    status = job.get("status") or {}
    state, of_job = status.get("jobDeploymentStatus"), status.get("jobStatus")
    if state not in ("Complete", "Failed", "ValidationFailed"):
        return None
    started = started_at(_submitters(pods))
    ended = moment((status.get("rayJobInfo") or {}).get("endTime")) or moment(status.get("endTime"))
    message = (status.get("message") or status.get("reason") or "no reason given").strip()
    if of_job == "SUCCEEDED":
        return Seen(record.run, "exited", started, ended, 0)
    if record.stop:
        return Seen(record.run, "exited", started, ended, TOLD_TO_END)
    if of_job == "FAILED" and (code := CODE.search(message)):
        return Seen(record.run, "exited", started, ended, _exit_code(int(code[1])))
    for pod in pods:
        if why := reasons.disrupted(pod):
            return Seen(record.run, "taken", started, ended, None, why)
    if of_job == "STOPPED":
        return Seen(record.run, "lost", started, ended, None, STOPPED)
    return Seen(record.run, "lost", started, ended, None, f"KubeRay says that it failed: {message}")


def _exit_code(code: int) -> int:
    """Ray tells a signal as a negative number."""
    return 128 - code if code < 0 else code


def _headless(record: Record, pods: Sequence[Object]) -> Seen | None:
    """The end of a run whose head is gone, and its driver with it: KubeRay would make another head, which
    knows nothing of the driver. One that ended before the driver was submitted took nothing along; one that
    ends as the run was told to is not missed."""
    submitters = _submitters(pods)
    if record.stop:
        return None
    if not submitters:
        return None
    submitted = min(_made(pod) for pod in submitters)
    for head in of_role(pods, "head"):
        if head["status"].get("phase") not in ("Failed", "Succeeded") and (
            "deletionTimestamp" not in head["metadata"]
        ):
            continue
        started, ended = started_at(submitters), over([head])
        if (ended or moment(head["metadata"].get("deletionTimestamp")) or submitted) < submitted:
            continue
        if why := reasons.disrupted(head):
            return Seen(record.run, "taken", started, ended, None, why)
        code, why = reasons.failed(head)
        said = why or (f"exit code {code}" if code is not None else "its pod was deleted")
        return Seen(record.run, "lost", started, ended, None, f"the head of its Ray ended: {said}")
    return None


def _made(pod: Object) -> int:
    return moment(pod["metadata"]["creationTimestamp"]) or 0


RAY = Kind(
    mains=_submitters,
    gone=lambda job: "deletionTimestamp" in job["metadata"],
    waits=_waits,
    ended=_ended,
    broken=_headless,
)
"""A RayJob of KubeRay: its driver begins when it is submitted, and ends as the RayJob says, or with the head
of its Ray."""
