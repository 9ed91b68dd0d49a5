"""What is to be said of a run, from its record, its Job and its pods. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from raysched.backends.kube import reasons
from raysched.backends.kube.moments import moment
from raysched.backends.kube.names import KUEUE_QUEUE, LET_GO, MANAGER
from raysched.backends.kube.records import Record
from raysched.core.work import Seen

TOLD_TO_END = 128 + 15
"""The exit code of what was ended and left none."""

Object = dict[str, Any]

CODE = re.compile(r"failed with exit code (-?\d+)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`seen`: what the run is now, None where its Job still has to be made. `end`: how it ended, once it has
    and none of its pods goes on any more. `early`: its Job is not over, and has to be deleted for that."""

    seen: Seen | None
    end: Seen | None = None
    early: bool = False


class Kind(NamedTuple):
    """What differs between a Job of Kubernetes and one of KubeRay: the pods in which a run's command runs,
    whether the Job is as good as gone, what it waits for that has no pod which waits, how it ended if it has,
    and how it did if something broke before Kubernetes says that it has."""

    mains: Callable[[Sequence[Object]], Sequence[Object]]
    gone: Callable[[Object], bool]
    waits: Callable[[Object, str], str]
    ended: Callable[[Record, Object, Sequence[Object]], Seen | None]
    broken: Callable[[Record, Sequence[Object]], Seen | None]


def verdict(
    kind: Kind,
    record: Record,
    job: Object | None,
    pods: Sequence[Object],
    *,
    nodes: Sequence[Object] = (),
    not_made: str = "",
    patience: int,
    now: int,
) -> Verdict:
    """`pods` are those of the Job, also those that are gone, as they were last seen; `not_made` is why there
    are none, `nodes` are the cluster's. A pod that waits for what may never come does so for at most
    `patience` ms."""
    if record.end is not None:
        return Verdict(record.end)
    mains = kind.mains(pods)
    before = _now(kind, record, job, pods, not_made, nodes)
    if record.due is not None:
        return Verdict(before, record.due)
    if job is None or kind.gone(job):
        return _without_job(record, mains, before)
    if halted(job):
        return _halted(record, job, mains, before)
    if (ended := kind.ended(record, job, pods)) is not None:
        return Verdict(before, ended)
    broken = kind.broken(record, pods) or _stuck(record, pods, patience, now)
    return Verdict(before, broken, early=broken is not None)


def fresh(job: Object) -> bool:
    """Whether a Job was never let go, so that nothing of it can have run."""
    metadata = job["metadata"]
    if not halted(job) or LET_GO in (metadata.get("annotations") or {}):
        return False
    return _suspended_by_us(job) if job.get("kind") == "RayJob" else metadata.get("generation", 1) <= 1


def _suspended_by_us(job: Object) -> bool:
    """Whether a RayJob is still suspended as it was made. KubeRay writes into its spec by itself, so that its
    generation does not tell; but the API server knows who said `suspend` last."""
    return any(
        owner["manager"] == MANAGER and "f:suspend" in owner.get("fieldsV1", {}).get("f:spec", {})
        for owner in job["metadata"].get("managedFields") or ()
    )


def halted(job: Object) -> bool:
    """Whether Kubernetes is to make no pods of a Job, as it was not let go yet, or is not to go on."""
    return bool(job["spec"].get("suspend")) or job["spec"].get("parallelism") == 0


def in_kueue(job: Object) -> bool:
    """Whether it is for Kueue to let a Job go."""
    return KUEUE_QUEUE in (job["metadata"].get("labels") or {})


def _without_job(record: Record, pods: Sequence[Object], before: Seen) -> Verdict:
    """Of a run whose Job is not there."""
    if record.stop:
        return Verdict(before, stopped(record, pods))
    if record.job:
        lost = Seen(record.run, "lost", started_at(pods), None, None, reasons.DELETED)
        return Verdict(before, lost)
    return Verdict(None)


def _halted(record: Record, job: Object, pods: Sequence[Object], before: Seen) -> Verdict:
    """Of a run whose Job is halted."""
    if record.stop:
        return Verdict(before, stopped(record, pods))
    if fresh(job):
        return Verdict(before if record.job and in_kueue(job) else None)
    why = reasons.BY_KUEUE if in_kueue(job) else reasons.SUSPENDED
    taken = Seen(record.run, "taken", started_at(pods), None, None, why)
    return Verdict(before, taken, early=True)


def _now(
    kind: Kind,
    record: Record,
    job: Object | None,
    pods: Sequence[Object],
    not_made: str,
    nodes: Sequence[Object],
) -> Seen:
    """What it is as long as it has not ended."""
    started = started_at(kind.mains(pods))
    if started is not None:
        return Seen(record.run, "running", started)
    if waiting := [pod for pod in pods if started_at([pod]) is None]:
        # Of several pods the one that is furthest behind says most.
        first = min(waiting, key=lambda pod: (bool(pod["spec"].get("nodeName")), pod["metadata"]["name"]))
        return Seen(record.run, "queued", reason=reasons.waits(first, nodes))
    waits = "is being handed to Kubernetes" if job is None else kind.waits(job, not_made)
    return Seen(record.run, "queued", reason=waits)


def waits_in_kueue(job: Object) -> bool:
    """Whether Kueue has not let a Job go."""
    return in_kueue(job) and bool(job["spec"].get("suspend"))


def _waits(job: Object, not_made: str) -> str:
    return not_made or ("waits in Kueue" if waits_in_kueue(job) else "waits in Kubernetes")


def started_at(pods: Sequence[Object]) -> int | None:
    """When the first of the commands began."""
    begun = [at for pod in pods for one in _mains(pod) if (at := _began(one)) is not None]
    return min(begun, default=None)


def _mains(pod: Object) -> list[Object]:
    return [one.get("state", {}) for one in pod["status"].get("containerStatuses") or []]


def _began(state: Object) -> int | None:
    running = state.get("running") or state.get("terminated") or {}
    return moment(running.get("startedAt"))


def stopped(record: Record, pods: Sequence[Object]) -> Seen:
    """How a run ended that was told to."""
    codes = [code for pod in pods if (code := _code(pod)) is not None]
    code = next((code for code in codes if code), 0 if codes else TOLD_TO_END)
    return Seen(record.run, "exited", started_at(pods), over(pods), code)


def _code(pod: Object) -> int | None:
    ended = [state["terminated"] for state in _mains(pod) if state.get("terminated")]
    return ended[0]["exitCode"] if ended else None


def over(pods: Sequence[Object]) -> int | None:
    """When the last of the commands ended."""
    ends = [
        state["terminated"].get("finishedAt")
        for pod in pods
        for state in _mains(pod)
        if "terminated" in state
    ]
    return max((at for end in ends if (at := moment(end)) is not None), default=None)


def _finished(record: Record, job: Object, pods: Sequence[Object]) -> Seen | None:
    """How a Job ended that Kubernetes says is over."""
    done = reasons.condition(job, "Complete")
    if done is not None and done["status"] == "True":
        ended = over(pods) or moment(job["status"].get("completionTime"))
        return Seen(record.run, "exited", started_at(pods), ended, 0)
    broken = reasons.condition(job, "Failed")
    if broken is None or broken["status"] != "True":
        return None
    for pod in pods:
        if not record.stop and (why := reasons.disrupted(pod)):
            return Seen(record.run, "taken", started_at(pods), over(pods), None, why)
    if record.stop:
        return stopped(record, pods)
    failures = sorted((pod for pod in pods if pod["status"].get("phase") == "Failed"), key=_end_of)
    code, why = reasons.failed(failures[0]) if failures else (None, "")
    if code is not None or why:
        state = "lost" if code is None else "exited"
        return Seen(record.run, state, started_at(pods), over(pods), code, why)
    return _by_job(record, job, pods)


def _end_of(pod: Object) -> tuple[bool, int, str]:
    """Those that failed by themselves come before those that were ended for it."""
    return "deletionTimestamp" in pod["metadata"], over([pod]) or 0, pod["metadata"]["name"]


def _by_job(record: Record, job: Object, pods: Sequence[Object]) -> Seen:
    """How it failed by what the Job says alone, where its pods were gone before anybody looked."""
    said = reasons.of_job(job)
    if "DisruptionTarget" in said:
        why = f"Kubernetes took it away: {said}"
        return Seen(record.run, "taken", started_at(pods), None, None, why)
    found = CODE.search(said)
    if found:
        return Seen(record.run, "exited", started_at(pods), over(pods), int(found[1]))
    return Seen(record.run, "lost", started_at(pods), over(pods), None, said)


def _stuck(record: Record, pods: Sequence[Object], patience: int, now: int) -> Seen | None:
    """The end of a run that waited too long for what may never come."""
    for pod in pods:
        since = moment(pod["metadata"]["creationTimestamp"]) or now
        if reasons.stuck(pod) and now - since >= patience:
            why = f"{reasons.waits(pod)}; after {patience // 1000} s raysched gave it up"
            return Seen(record.run, "lost", None, None, None, why)
    return None


PLAIN = Kind(
    mains=lambda pods: pods,
    gone=lambda _: False,
    waits=_waits,
    ended=_finished,
    broken=lambda _, __: None,
)
"""A Job of Kubernetes."""
