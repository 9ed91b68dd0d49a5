"""What became of every job and every lease, told by the facts one after the other.

The state forgets jobs that ended long ago; records are for whoever reads the whole journal afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raysched.core import facts
from raysched.core.facts import Fact
from raysched.core.jobs import Kind, Outcome
from raysched.core.lease import Place, Slice
from raysched.core.measured import Stretch

LeaseOutcome = Outcome | Literal["returned"]
"""How a lease ended: as its attempt did, or given back because an engine said no."""


@dataclass(slots=True)
class JobRecord:
    """One job. Times are milliseconds since 1970, None until they come; `granted` and `started` are those of
    its first attempt. `attempts` counts grants; `since` is when it last began to wait, `lease` what it has;
    `by_memory` says that it asks for memory of a GPU and for no part of its compute."""

    job: str
    group: str
    index: int | None
    name: str
    user: str
    queue: str
    priority: int
    kind: Kind
    submitted: int
    state: str = "waiting"
    attempts: int = 0
    granted: int | None = None
    started: int | None = None
    ended: int | None = None
    code: int | None = None
    reason: str = ""
    since: int = 0
    lease: str | None = None
    by_memory: bool = False


@dataclass(slots=True)
class LeaseRecord:
    """One lease. `share` (ten-thousandths of one GPU) and `memory` (MiB) are what it holds of all its GPUs
    together, and `parts` (share, memory) of each; `cpus` (ten-thousandths) and `host_memory` (MiB) of all its
    nodes. The job had `waited` so many ms for it. It was `ended` when its work was over, and `released` when
    its capacity was free. At a site it holds nothing before it is `placed`; all others are placed as they are
    granted. `used` is what was measured of it, with the time (ms since 1970) of each. Of its share `borrowed`
    is what it has on nodes that other leases lent, by those leases."""

    lease: str
    job: str
    attempt: int
    name: str
    user: str
    queue: str
    kind: Kind
    backend: str
    sharing: str
    isolation: str
    mechanism: str
    nodes: tuple[str, ...]
    gpus: tuple[str, ...]
    share: int
    memory: int
    cpus: int
    host_memory: int
    waited: int
    granted: int
    instances: tuple[str, ...] = ()
    bound: int | None = None
    ended: int | None = None
    released: int | None = None
    outcome: LeaseOutcome | None = None
    code: int | None = None
    reason: str = ""
    placed: int | None = None
    parts: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    used: list[tuple[int, Stretch]] = field(default_factory=list["tuple[int, Stretch]"])
    borrowed: dict[str, int] = field(default_factory=dict[str, int])


class Records:
    """The records of all facts that were told, in order. `jobs` and `leases` are by their ids."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobRecord] = {}
        self.leases: dict[str, LeaseRecord] = {}
        self._lenders: dict[str, str] = {}

    def tell(self, fact: Fact) -> None:
        """Take one fact in. Facts that are about nothing here are silent."""
        take = _TAKE.get(type(fact))
        if take is not None:
            take(self, fact)

    def _node_joined(self, fact: facts.NodeJoined) -> None:
        if fact.node.lease:
            self._lenders[fact.node.name] = fact.node.lease

    def _submitted(self, fact: facts.Submitted) -> None:
        for index in [None] if fact.array is None else range(fact.array):
            id = fact.id if index is None else f"{fact.id}.{index}"
            self.jobs[id] = JobRecord(
                job=id,
                group=fact.id,
                index=index,
                name=fact.name,
                user=fact.user,
                queue=fact.queue,
                priority=fact.priority,
                kind=fact.kind,
                submitted=fact.at,
                since=fact.at,
                by_memory=fact.request.memory is not None and fact.request.share is None,
            )

    def _granted(self, fact: facts.Granted) -> None:
        lease, job = fact.lease, self.jobs[fact.lease.job]
        self.leases[lease.id] = LeaseRecord(
            lease=lease.id,
            job=job.job,
            attempt=lease.attempt,
            name=job.name,
            user=job.user,
            queue=job.queue,
            kind=job.kind,
            backend=lease.backend,
            sharing=lease.sharing,
            isolation=lease.isolation,
            mechanism=lease.mechanism,
            **_held(lease.places),
            waited=fact.at - job.since,
            granted=fact.at,
            borrowed=self._borrowed(lease.places),
        )
        job.state, job.lease, job.attempts = "starting", lease.id, lease.attempt
        job.granted = job.granted or fact.at

    def _borrowed(self, places: tuple[Place, ...]) -> dict[str, int]:
        found: dict[str, int] = {}
        for place in places:
            if (lender := self._lenders.get(place.node)) is not None:
                found[lender] = found.get(lender, 0) + sum(slice.share for slice in place.slices)
        return found

    def _placed(self, fact: facts.Placed) -> None:
        """A site has put the lease somewhere: from now on it takes GPUs."""
        lease = self.leases[fact.lease]
        lease.placed = lease.placed or fact.at
        for name, value in _held(fact.places).items():
            setattr(lease, name, value)

    def _used(self, fact: facts.Used) -> None:
        if (lease := self.leases.get(fact.use.lease)) is not None:
            lease.used.append((fact.at, fact.use))

    def _bound(self, fact: facts.Bound) -> None:
        lease = self.leases[fact.lease]
        lease.bound, lease.instances = lease.bound or fact.at, fact.instances
        job = self.jobs[lease.job]
        if job.kind == "lease" and job.lease == lease.lease:
            self._begins(job, fact.at)

    def _started(self, fact: facts.Started) -> None:
        self._begins(self.jobs[fact.job], fact.at)

    def _begins(self, job: JobRecord, at: int) -> None:
        job.started = job.started or at
        if job.state == "starting":
            job.state = "running"

    def _returned(self, fact: facts.Returned) -> None:
        self._waits_again(fact.job, fact.at, "returned", fact.reason)

    def _retried(self, fact: facts.Retried) -> None:
        self._waits_again(fact.job, fact.at, "failed", fact.reason)

    def _waits_again(self, id: str, at: int, outcome: LeaseOutcome, reason: str) -> None:
        job = self.jobs[id]
        self._attempt_ends(job, outcome, None, reason)
        job.state, job.since, job.reason = "waiting", at, reason

    def _stopping(self, fact: facts.Stopping) -> None:
        job = self.jobs[fact.job]
        job.state, job.reason = "stopping", fact.reason

    def _ended(self, fact: facts.Ended) -> None:
        job = self.jobs[fact.job]
        self._attempt_ends(job, fact.outcome, fact.code, fact.reason)
        job.state, job.ended, job.code, job.reason = fact.outcome, fact.at, fact.code, fact.reason

    def _attempt_ends(self, job: JobRecord, outcome: LeaseOutcome, code: int | None, reason: str) -> None:
        if job.lease is not None:
            lease = self.leases[job.lease]
            lease.outcome, lease.code, lease.reason = outcome, code, reason
        job.lease = None

    def _releasing(self, fact: facts.Releasing) -> None:
        self.leases[fact.lease].ended = fact.at

    def _released(self, fact: facts.Released) -> None:
        self.leases[fact.lease].released = fact.at

    def _clock_set(self, fact: facts.ClockSet) -> None:
        """Times move with the clock, as those in the state do."""
        if fact.shift:
            for record in (*self.jobs.values(), *self.leases.values()):
                for name in _TIMES:
                    if (time := getattr(record, name, None)) is not None:
                        setattr(record, name, time + fact.shift)
            for lease in self.leases.values():
                lease.used = [(at + fact.shift, use) for at, use in lease.used]


_TIMES = ("submitted", "since", "granted", "placed", "bound", "started", "ended", "released")
_TAKE: dict[type, Callable[[Records, Any], None]] = {
    facts.NodeJoined: Records._node_joined,
    facts.Submitted: Records._submitted,
    facts.Granted: Records._granted,
    facts.Used: Records._used,
    facts.Bound: Records._bound,
    facts.Placed: Records._placed,
    facts.Started: Records._started,
    facts.Returned: Records._returned,
    facts.Retried: Records._retried,
    facts.Stopping: Records._stopping,
    facts.Ended: Records._ended,
    facts.Releasing: Records._releasing,
    facts.Released: Records._released,
    facts.ClockSet: Records._clock_set,
}


def _parts(slices: Sequence[Slice]) -> dict[str, tuple[int, int]]:
    parts: dict[str, tuple[int, int]] = {}
    for slice in slices:
        share, memory = parts.get(slice.gpu, (0, 0))
        parts[slice.gpu] = (share + slice.share, memory + slice.memory)
    return parts


def _held(places: tuple[Place, ...]) -> dict[str, Any]:
    """What is held of these places, in the words of a record."""
    slices = [slice for place in places for slice in place.slices]
    return {
        "nodes": tuple(place.node for place in places),
        "gpus": tuple(slice.gpu for slice in slices),
        "share": sum(slice.share for slice in slices),
        "memory": sum(slice.memory for slice in slices),
        "cpus": sum(place.cpus for place in places),
        "host_memory": sum(place.memory for place in places),
        "parts": _parts(slices),
    }
