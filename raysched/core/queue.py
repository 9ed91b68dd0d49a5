"""The order of the waiting: first come, first served, and no one is starved.

A job that does not fit keeps the GPUs that it would get soonest, so that those behind it can't take them for
ever; on all others they may pass it. Higher priority goes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raysched.core.jobs import Job
from raysched.core.placement import Kept, Placement, has_host_room, nearest, place
from raysched.core.request import Request
from raysched.core.state import State


@dataclass(frozen=True, slots=True)
class Look:
    """One waiting job as it was looked at: its placement, or None where it does not fit. `kept` is what the
    jobs before it keep; `resting` says that it was given back and is not looked at yet."""

    job: Job
    placement: Placement | None
    kept: Kept
    resting: bool = False


def survey(state: State, now: int) -> Iterator[Look]:
    """Look at each waiting job in order.

    The caller may evolve `state` with the grant of a placement before it asks for the next look. Within one
    survey capacity only shrinks, so a request that did not fit once is not searched for again.
    """
    kept = Kept()
    hopeless: dict[Request, Kept] = {}
    for _, _, id in list(state.waiting):
        job = state.jobs[id]
        if job.until > now:
            yield Look(job, None, kept, resting=True)
        elif job.request in hopeless:
            yield Look(job, None, hopeless[job.request])
        elif (placement := place(state, job.request, kept)) is not None:
            yield Look(job, placement, kept)
        else:
            before = hopeless[job.request] = kept.copy()
            _keep(state, job, kept)
            yield Look(job, None, before)


def _keep(state: State, job: Job, kept: Kept) -> None:
    for gpu in list(nearest(state, job.request, kept)):
        kept.keep_gpu(gpu, job.id)
    if not job.request.cpus and not job.request.host_memory:
        return
    short = [node for node in state.nodes.values() if not has_host_room(node, job.request, kept)]
    if short and not any(has_host_room(node, job.request, kept) for node in state.nodes.values()):
        roomiest = max(short, key=lambda node: node.cpus_free)
        kept.keep_host(roomiest, job.id)
