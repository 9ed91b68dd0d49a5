"""Who leaves a node that is drained: a job that may be stopped waits again, and starts elsewhere. Everybody
else stays until it ends, and is told why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raysched.core import hosts
from raysched.core.jobs import Job
from raysched.core.lease import Lease
from raysched.core.state import State

View = dict[str, Any]


def movable(state: State, node: str) -> Iterator[Job]:
    """The jobs that have to leave a node and may be stopped for it."""
    for lease in _there(state, node):
        job = state.jobs.get(lease.job)
        if job is not None and _goes_on(job, lease) and not stays(job):
            yield job


def stays(job: Job) -> str:
    """Why a job is not ended for others; empty where it may be."""
    if job.kind == "layout":
        return "a GPU is being cut"
    if job.kind == "lease":
        return f"a program of {job.user} holds it"
    if not job.spec.get("preemptible", True):
        return f"preemptible: false; `raysched cancel {job.id}` ends it"
    return ""


def staying(state: State, name: str) -> dict[str, str]:
    """The jobs of a node that are not ended, by id, each with the reason; of a site's node those of the whole
    site, as it may have put one there a moment ago. Raises NotFound."""
    info = hosts.find_node(state, name).info
    at_site = (lease for lease in state.leases.values() if lease.backend in info.backends)
    jobs = (state.jobs.get(lease.job) for lease in (at_site if info.site else _there(state, info.name)))
    return {job.id: why for job in jobs if job is not None and (why := stays(job))}


def left_view(state: State, name: str) -> list[View]:
    """Who is still on a node: `why` one stays, empty where it is about to end. Raises NotFound."""
    node = hosts.find_node(state, name).info.name
    return [_row(state, lease) for lease in _there(state, node)]


def _row(state: State, lease: Lease) -> View:
    job = state.jobs.get(lease.job)
    why = stays(job) if job is not None and _goes_on(job, lease) else ""
    return {"job": lease.job, "display": job.display if job else lease.job, "pod": None, "why": why}


def _goes_on(job: Job, lease: Lease) -> bool:
    return job.lease == lease.id and job.state in ("starting", "running")


def _there(state: State, node: str) -> list[Lease]:
    return [lease for lease in state.leases.values() if any(place.node == node for place in lease.places)]
