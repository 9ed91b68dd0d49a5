"""What must exist at each backend now, derived from the state and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from raysched.core.decide import managed
from raysched.core.environment import job_variables, variables
from raysched.core.explain import asks
from raysched.core.jobs import ENDED, Job
from raysched.core.lease import Lease
from raysched.core.state import State
from raysched.core.work import Hold, Launch, Owned, Run, Stop, Wanted

HOLDER = "ray"
"""The backend that keeps leases in Ray, whichever one launches their work."""


def wanted(state: State, backend: str, version: int) -> Wanted:
    """All that must exist at `backend`, and what must end there. `version` is passed on."""
    bound = [lease for lease in state.leases.values() if lease.state == "bound" and lease.backend == backend]
    work = [item for lease in bound for item in _work(state, lease)]
    holds: tuple[Hold, ...] = ()
    releases: tuple[Hold, ...] = ()
    if backend == HOLDER:
        kept = [lease for lease in state.leases.values() if managed(state, lease)]
        holds = tuple(_hold(state, lease) for lease in kept if lease.state != "releasing")
        releases = tuple(_hold(state, lease) for lease in kept if lease.state == "releasing")
    launches = tuple(item for item in work if isinstance(item, Launch))
    stops = tuple(item for item in work if isinstance(item, Stop))
    return Wanted(version, launches, stops, holds, releases)


def _work(state: State, lease: Lease) -> Iterator[Launch | Stop]:
    """The runs of a bound lease: to be running, or to be ended once the job stops or one of them failed."""
    job = state.jobs[lease.job]
    if job.kind != "command" or job.lease != lease.id:
        return
    failed = any(code != 0 for code in job.exits.values())
    for rank in range(len(lease.places)):
        if rank in job.exits:
            continue
        run = Run(job.id, lease.attempt, rank)
        if job.state == "stopping" or failed:
            yield Stop(run, job.grace / 1000)
        else:
            yield _launch(job, lease, run)


def _launch(job: Job, lease: Lease, run: Run) -> Launch:
    entrypoint = job.spec["entrypoint"]
    place = lease.places[run.rank]
    return Launch(
        run=run,
        lease=lease.id,
        place=place,
        name=job.display,
        entrypoint=entrypoint if isinstance(entrypoint, str) else tuple(entrypoint),
        env=tuple(sorted(job_variables(job, run, lease.id, place).items())),
        package=job.package,
    )


def _hold(state: State, lease: Lease) -> Hold:
    job = state.jobs.get(lease.job)
    return Hold(
        lease=lease.id,
        job=lease.job,
        label=f"{job.display} {asks(job.request)}" if job else lease.job,
        sharing=lease.sharing,
        places=lease.places,
        resident=job is not None and job.kind == "command",
    )


def known_runs(state: State, backend: str) -> frozenset[Run]:
    """Every run that the ledger remembers; the files of others may be deleted."""
    return frozenset(
        Run(job.id, attempt, rank)
        for job in state.jobs.values()
        if job.kind == "command" and job.backend == backend
        for attempt in range(1, job.attempt + 1)
        for rank in range(max(1, len(job.places)))
    )


def packages(state: State) -> set[str]:
    """The digests of the packed working directories that a job may still need."""
    return {job.package for job in state.jobs.values() if job.package and job.state not in ENDED}


def owned(state: State, owner: str) -> list[Owned]:
    """The jobs that a client process holds or waits for, and how the last few of them ended."""
    return [_owned(state, state.jobs[id]) for id in state.owned.get(owner, {})]


def _owned(state: State, job: Job) -> Owned:
    if job.state in ENDED:
        return Owned(job.id, "ended", job.reason)
    lease = state.leases.get(job.lease) if job.lease else None
    if lease is None or lease.state != "bound":
        return Owned(job.id, "waiting", job.reason)
    env = variables(lease.id, lease.sharing, lease.places[0])
    return Owned(job.id, "bound", "", lease.id, lease.places, lease.groups, tuple(sorted(env.items())))
