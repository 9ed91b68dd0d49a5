"""What the report of a run means for its job."""

from __future__ import annotations

from raysched.core.jobs import Job
from raysched.core.words import exit_of
from raysched.core.work import Seen

REST = 3_000
"""Milliseconds before a job is looked at again after an engine said no."""
LONGEST_REST = 300_000
"""The most milliseconds before a job is looked at again that was returned again and again."""


def may_be_taken(job: Job, seen: Seen) -> bool:
    """Whether a job may be started again that its engine took away: what never began loses nothing by it."""
    return not seen.begun or job.spec.get("preemptible", True)


def pause(job: Job) -> int:
    """The time (ms) before a job is looked at again that was granted and never began, as its image could not
    be had or its site said no: twice as long each time."""
    returned = job.attempt - 1 - job.failures
    return min(REST * 2 ** min(returned, 16), LONGEST_REST)


def plausible(time: int | None, earliest: int | None, now: int) -> int:
    """A time by a node's clock, which may be off: never in our future, never before what led to it."""
    return now if time is None else min(now, max(time, earliest or 0))


def end(job: Job, seen: Seen, now: int) -> int:
    """When a run ended. By a clock that was behind it may have begun before its lease was granted; then at
    least how long it took is known."""
    behind = max(0, (job.granted or 0) - seen.started) if seen.started is not None else 0
    ended = seen.ended + behind if seen.ended is not None else None
    return plausible(ended, job.started or job.granted, now)


def failure(job: Job, rank: int, code: int | None, reason: str) -> str:
    """How a rank failed, with its number and its node where the job has several."""
    how = reason or exit_of(code)
    return how if job.runs == 1 else f"rank {rank} on {job.places[rank].node}: {how}"
