"""The only code that changes state: each fact, folded in. It decides nothing and never fails on a fact that
was recorded."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any

from raysched.core import facts
from raysched.core.facts import Fact
from raysched.core.jobs import Job
from raysched.core.lease import Lease
from raysched.core.node import GPU, Node, NodeInfo
from raysched.core.state import Reading, State

KEYS_KEPT = 20_000
"""How many idempotency keys are remembered: far more than can be in flight."""
ENDED_OWNED = 64
"""How many ended jobs of one owner it is still told about."""


def evolve(state: State, fact: Fact) -> None:
    """Fold one fact into `state`."""
    state.latest = max(state.latest, fact.at)
    _FOLD[type(fact)](state, fact)


def _node_joined(state: State, fact: facts.NodeJoined) -> None:
    node = state.nodes.get(fact.node.name)
    if node is None:
        node = state.nodes[fact.node.name] = Node(fact.node, {})
    node.info, node.lost = fact.node, None
    _update_gpus(node, fact.node)


def _update_gpus(node: Node, info: NodeInfo) -> None:
    """Take over what the node reports; a GPU that vanished stays known while a tenant is on it."""
    reported = {gpu.uuid: gpu for gpu in info.gpus}
    for uuid, gpu in list(node.gpus.items()):
        gpu.present = uuid in reported
        if not gpu.present and not gpu.tenants:
            del node.gpus[uuid]
    for uuid, found in reported.items():
        known = node.gpus.setdefault(uuid, GPU(found, info.name))
        known.info = found
    node.gpus = dict(sorted(node.gpus.items(), key=lambda item: item[1].info.index))


def _node_lost(state: State, fact: facts.NodeLost) -> None:
    state.nodes[fact.node].lost = fact.at


def _gpu_observed(state: State, fact: facts.GPUObserved) -> None:
    node = state.nodes.get(fact.node)
    if node and fact.gpu in node.gpus:
        gpu = node.gpus[fact.gpu]
        gpu.foreign, gpu.outside = fact.foreign, fact.outside


def _submitted(state: State, fact: facts.Submitted) -> None:
    indices: list[int | None] = [None] if fact.array is None else list(range(fact.array))
    ids = [fact.id if index is None else f"{fact.id}.{index}" for index in indices]
    for id, index in zip(ids, indices, strict=True):
        job = _new_job(fact, id, index, state.count)
        state.count += 1
        state.jobs[id] = job
        insort(state.waiting, _position(job))
        if job.owner is not None:
            state.owned.setdefault(job.owner, {})[id] = None
    if fact.owner is not None:
        _prune_owned(state, fact.owner)
    state.groups[fact.id] = ids
    state.keys[fact.key] = (*state.keys.get(fact.key, ()), *ids)
    if len(state.keys) > KEYS_KEPT:
        del state.keys[next(iter(state.keys))]


def _prune_owned(state: State, owner: str) -> None:
    """Keep the last few ended jobs of an owner, so that it can read how they ended, and no more."""
    owned = state.owned[owner]
    ended = [id for id in owned if id in state.ended]
    for id in ended[:-ENDED_OWNED]:
        del owned[id]


def _new_job(fact: facts.Submitted, id: str, index: int | None, order: int) -> Job:
    return Job(
        id=id,
        group=fact.id,
        name=fact.name,
        kind=fact.kind,
        request=fact.request,
        spec=fact.spec,
        user=fact.user,
        submitted=fact.at,
        index=index,
        package=fact.package,
        owner=fact.owner,
        queue=fact.queue,
        priority=fact.priority,
        retries=fact.retries,
        max_runtime=fact.max_runtime,
        grace=fact.grace,
        order=order,
    )


def _position(job: Job) -> tuple[int, int, str]:
    return (-job.priority, job.order, job.id)


def _wait(state: State, job: Job) -> None:
    job.state, job.lease = "waiting", None
    job.begun, job.exits = set(), {}
    insort(state.waiting, _position(job))


def _leave_queue(state: State, job: Job) -> None:
    position = _position(job)
    at = bisect_left(state.waiting, position)
    if at < len(state.waiting) and state.waiting[at] == position:
        del state.waiting[at]


def _granted(state: State, fact: facts.Granted) -> None:
    lease = fact.lease
    job = state.jobs[lease.job]
    state.leases[lease.id] = Lease(
        lease.id,
        lease.job,
        lease.attempt,
        lease.backend,
        lease.sharing,
        lease.isolation,
        lease.mechanism,
        lease.places,
    )
    _leave_queue(state, job)
    job.state, job.lease, job.attempt, job.reason = "starting", lease.id, lease.attempt, ""
    job.places, job.backend, job.mechanism = lease.places, lease.backend, lease.mechanism
    job.granted, job.started = fact.at, None
    for place in lease.places:
        node = state.nodes[place.node]
        node.cpus_used += place.cpus
        node.memory_used += place.memory
        for slice in place.slices:
            gpu = node.gpus[slice.gpu]
            gpu.sharing = lease.sharing
            gpu.tenants[lease.id] = slice
            gpu.share_used += slice.share
            gpu.memory_used += slice.memory


def _bound(state: State, fact: facts.Bound) -> None:
    lease = state.leases[fact.lease]
    lease.state, lease.groups = "bound", fact.groups
    job = state.jobs[lease.job]
    if job.kind == "lease" and job.state == "starting":
        job.state, job.started = "running", fact.at


def _returned(state: State, fact: facts.Returned) -> None:
    job = state.jobs[fact.job]
    job.reason, job.until = fact.reason, fact.until
    _wait(state, job)


def _started(state: State, fact: facts.Started) -> None:
    job = state.jobs[fact.job]
    job.begun.add(fact.rank)
    if job.started is None:
        job.started = fact.at
    if job.state == "starting":
        job.state = "running"


def _exited(state: State, fact: facts.Exited) -> None:
    state.jobs[fact.job].exits[fact.rank] = fact.code


def _retried(state: State, fact: facts.Retried) -> None:
    job = state.jobs[fact.job]
    job.failures += 1
    job.reason = fact.reason
    _wait(state, job)


def _stopping(state: State, fact: facts.Stopping) -> None:
    job = state.jobs[fact.job]
    job.state, job.outcome, job.reason = "stopping", fact.outcome, fact.reason


def _ended(state: State, fact: facts.Ended) -> None:
    job = state.jobs[fact.job]
    _leave_queue(state, job)
    job.state, job.code, job.reason, job.ended = fact.outcome, fact.code, fact.reason, fact.at
    job.lease = None
    state.ended[job.id] = None


def _releasing(state: State, fact: facts.Releasing) -> None:
    state.leases[fact.lease].state = "releasing"


def _released(state: State, fact: facts.Released) -> None:
    lease = state.leases.pop(fact.lease)
    for place in lease.places:
        node = state.nodes[place.node]
        node.cpus_used -= place.cpus
        node.memory_used -= place.memory
        for slice in place.slices:
            gpu = node.gpus[slice.gpu]
            del gpu.tenants[lease.id]
            gpu.share_used -= slice.share
            gpu.memory_used -= slice.memory
            if not gpu.tenants:
                gpu.sharing = None
                if not gpu.present:
                    del node.gpus[slice.gpu]


def _clock_set(state: State, fact: facts.ClockSet) -> None:
    state.clock, state.latest = Reading(fact.at, fact.boot, fact.uptime), fact.at
    if not fact.shift:
        return
    for job in state.jobs.values():
        for name in ("submitted", "granted", "started", "ended", "until"):
            if (time := getattr(job, name)) is not None:
                setattr(job, name, time + fact.shift)
    for node in state.nodes.values():
        if node.lost is not None:
            node.lost += fact.shift


def _forgotten(state: State, fact: facts.Forgotten) -> None:
    for id in fact.jobs:
        job = state.jobs.pop(id)
        state.ended.pop(id, None)
        if job.owner is not None:
            _forget_owned(state, job.owner, id)
        group = state.groups[job.group]
        group.remove(id)
        if not group:
            del state.groups[job.group]


def _forget_owned(state: State, owner: str, id: str) -> None:
    owned = state.owned.get(owner, {})
    owned.pop(id, None)
    if not owned:
        state.owned.pop(owner, None)


_FOLD: dict[type, Callable[[State, Any], None]] = {
    facts.NodeJoined: _node_joined,
    facts.NodeLost: _node_lost,
    facts.GPUObserved: _gpu_observed,
    facts.Submitted: _submitted,
    facts.Granted: _granted,
    facts.Bound: _bound,
    facts.Returned: _returned,
    facts.Started: _started,
    facts.Exited: _exited,
    facts.Retried: _retried,
    facts.Stopping: _stopping,
    facts.Ended: _ended,
    facts.Releasing: _releasing,
    facts.Released: _released,
    facts.ClockSet: _clock_set,
    facts.Forgotten: _forgotten,
}
