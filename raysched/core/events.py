"""Facts as people follow them: one short JSON object each."""

from __future__ import annotations

from typing import Any

from raysched.core import facts, warnings
from raysched.core.facts import Fact
from raysched.core.state import State
from raysched.core.words import listing, short, stamp

_OF_NO_JOB = (
    facts.NodeJoined
    | facts.NodeLost
    | facts.NodeLeft
    | facts.GPUObserved
    | facts.Used
    | facts.LayoutChanged
    | facts.CutRefused
    | facts.RefusalLapsed
    | facts.Drained
    | facts.HostAdded
    | facts.HostObserved
    | facts.HostIs
    | facts.NodeRemoved
    | facts.NodeRenamed
    | facts.HostLeaving
    | facts.HostRemoved
    | facts.Done
    | facts.ClockSet
    | facts.Forgotten
)


_OF_A_LEASE = (
    facts.Held
    | facts.Bound
    | facts.Placed
    | facts.Releasing
    | facts.Cleared
    | facts.Released
    | facts.BackInShare
)


def event_view(state: State, seq: int, fact: Fact) -> dict[str, Any] | None:
    """The event of a fact that was just folded into `state`, or None where nobody needs to follow it."""
    job = _job_of(state, fact)
    if job is None:
        return None
    known = state.jobs.get(job)
    return {
        "seq": seq,
        "at": stamp(fact.at),
        "event": type(fact).__name__.lower(),
        "job": job,
        "group": known.group if known else job.partition(".")[0],
        "display": known.display if known else job,
        "state": known.state if known else None,
        "message": _message(fact),
    }


def _job_of(state: State, fact: Fact) -> str | None:
    if isinstance(fact, facts.Submitted):
        return fact.id
    if isinstance(fact, facts.Granted):
        return fact.lease.job
    if isinstance(fact, facts.OverShare):
        return fact.over.lease.rpartition(".")[0]
    if isinstance(fact, _OF_A_LEASE):
        return fact.lease.rpartition(".")[0]
    if isinstance(fact, _OF_NO_JOB):
        return None
    return fact.job


def _message(fact: Fact) -> str:
    match fact:
        case facts.Submitted():
            many = f"{fact.array} jobs" if fact.array else "1 job"
            return f"submitted by {fact.user}: {many}"
        case facts.Granted():
            gpus = [f"{short(s.gpu)} on {place.node}" for place in fact.lease.places for s in place.slices]
            if not fact.lease.places:
                return f"handed to {fact.lease.backend}"
            return f"granted {', '.join(gpus) or fact.lease.places[0].node}"
        case facts.Placed():
            return f"runs on {listing([place.node for place in fact.places])}"
        case facts.Held():
            return "waits until its GPUs are cut"
        case facts.OverShare():
            return f"uses {warnings.excess(fact.over.used, fact.over, fact.node)}"
        case facts.BackInShare():
            return f"uses no more of {short(fact.device)} than it has"
        case facts.Warned():
            return fact.warning or "all is well again"
        case facts.Returned() | facts.Retried() | facts.Stopping() | facts.Queued():
            return fact.reason
        case facts.Ended():
            return fact.reason or fact.outcome
        case facts.Exited():
            return "lost" if fact.code is None else f"exit code {fact.code}"
        case _:
            return type(fact).__name__.lower()
