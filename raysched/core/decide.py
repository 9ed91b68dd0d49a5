"""What a command leads to: facts, or a refusal that says why. Nothing here changes state.

A command is decided whole or not at all. Reports of an old attempt, and repeated ones, lead to no facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from raysched.core import commands, explain, facts
from raysched.core.commands import Command
from raysched.core.facts import Fact
from raysched.core.jobs import ENDED, Job, Outcome
from raysched.core.lease import Lease
from raysched.core.node import Node, NodeInfo
from raysched.core.placement import Placement, possible
from raysched.core.state import State
from raysched.errors import NotFound, Refused

NODE_PATIENCE = 60_000
"""Milliseconds that a lost node may stay away before its work counts as lost."""
REST = 3_000
"""Milliseconds before a job is looked at again after an engine said no."""
JOBS_KEPT = 2_000
"""How many jobs have to end after a job, or after the last element of an array, until it is forgotten."""


def decide(state: State, command: Command, now: int) -> list[Fact]:
    """The facts that `command` leads to at `now` (ms since 1970).

    Raises Refused for a request that can never be granted, NotFound for a job that is not known.
    """
    return list(_DECIDE[type(command)](state, command, now))


def grant(job: Job, placement: Placement, managed: bool, now: int) -> list[Fact]:
    """The facts of a job's grant. A lease on nodes that Ray does not manage needs no hold: it is bound."""
    attempt = job.attempt + 1
    request = job.request
    lease = Lease(
        id=f"{job.id}.{attempt}",
        job=job.id,
        attempt=attempt,
        backend=placement.backend,
        sharing=request.sharing,
        isolation=request.isolation,
        mechanism=explain.mechanism(request),
        places=placement.places,
    )
    granted: list[Fact] = [facts.Granted(now, lease)]
    return granted if managed else [*granted, facts.Bound(now, lease.id, ())]


def managed(state: State, placement: Placement | Lease) -> bool:
    """Whether Ray manages a node of it, so that it must be held there."""
    return any(state.nodes[place.node].info.ray_id is not None for place in placement.places)


# ---------------------------------------------------------------- jobs


def _submit(state: State, command: commands.Submit, now: int) -> Iterator[Fact]:
    if command.key in state.keys:
        return
    for asked in command.jobs:
        problem = explain.never(state, asked.request)
        if problem or not possible(state, asked.request):
            raise Refused(f"{asked.name}: {problem or explain.impossible(state, asked.request)}")
    for asked in command.jobs:
        yield facts.Submitted(
            at=now,
            id=asked.id,
            name=asked.name,
            kind=asked.kind,
            spec=asked.spec,
            request=asked.request,
            user=command.user,
            key=command.key,
            array=asked.array,
            package=asked.package,
            owner=asked.owner,
            queue=asked.queue,
            priority=asked.priority,
            retries=asked.retries,
            max_runtime=asked.max_runtime,
            grace=asked.grace,
        )


def _cancel(state: State, command: commands.Cancel, now: int) -> Iterator[Fact]:
    job = find(state, command.job)
    if job.state in ENDED:
        return
    reason = f"cancelled by {command.by}"
    if job.state == "stopping" or (job.kind == "command" and _launched(state, job)):
        yield facts.Stopping(now, job.id, "cancelled", reason)
    else:
        yield from _end(state, job, "cancelled", None, reason, now)


def _launched(state: State, job: Job) -> bool:
    """Whether a backend may have started something for the job."""
    return job.lease is not None and state.leases[job.lease].state == "bound"


def _release(state: State, command: commands.Release, now: int) -> Iterator[Fact]:
    yield from _give_back(state, find(state, command.job), "released", now)


def _owner_lost(state: State, command: commands.OwnerLost, now: int) -> Iterator[Fact]:
    for id in state.owned.get(command.owner, {}):
        yield from _give_back(state, state.jobs[id], "given back as its program ended", now)


def _give_back(state: State, job: Job, reason: str, now: int) -> Iterator[Fact]:
    """End a lease that its holder no longer needs, or that it did not wait for."""
    if job.state == "running":
        yield from _end(state, job, "succeeded", None, reason, now)
    elif job.state not in ENDED:
        yield from _end(state, job, "cancelled", None, "no longer asked for", now)


def find(state: State, id: str) -> Job:
    """The job with this id. Raises NotFound."""
    if id not in state.jobs:
        raise NotFound(f"no job {id}: `raysched status` lists those that are known")
    return state.jobs[id]


def _end(state: State, job: Job, outcome: Outcome, code: int | None, reason: str, now: int) -> Iterator[Fact]:
    yield facts.Ended(now, job.id, outcome, code, reason)
    yield from _let_go(state, job, now)


def _let_go(state: State, job: Job, now: int) -> Iterator[Fact]:
    if job.lease is None:
        return
    lease = state.leases[job.lease]
    yield facts.Releasing(now, lease.id)
    if not managed(state, lease):
        yield facts.Released(now, lease.id)


# ---------------------------------------------------------------- reports


def _report(state: State, command: commands.Report, now: int) -> Iterator[Fact]:
    seen = command.seen
    job = state.jobs.get(seen.run.job)
    if job is None or seen.run.attempt != job.attempt or job.lease is None or job.kind != "command":
        return
    rank = seen.run.rank
    if rank in job.exits or rank >= len(job.places):
        return
    if rank not in job.begun and seen.state != "lost":
        yield facts.Started(_plausible(seen.started, job.granted, now), job.id, rank)
    if seen.state == "running":
        return
    code = seen.code if seen.state == "exited" else None
    ended = _plausible(seen.ended, job.started or job.granted, now)
    yield facts.Exited(ended, job.id, rank, code)
    yield from _conclude(state, job, {**job.exits, rank: code}, seen.reason, ended)


def _plausible(time: int | None, earliest: int | None, now: int) -> int:
    """A time by a node's clock, which may be off: never in our future, never before what led to it."""
    return now if time is None else min(now, max(time, earliest or 0))


def _conclude(state: State, job: Job, exits: dict[int, int | None], reason: str, now: int) -> Iterator[Fact]:
    """What follows once these ranks have ended: nothing before all of them have."""
    if len(exits) < len(job.places):
        return
    bad = next((rank for rank in sorted(exits) if exits[rank] != 0), None)
    code = 0 if bad is None else exits[bad]
    if job.state == "stopping":
        yield from _end(state, job, job.outcome or "cancelled", code, job.reason, now)
    elif bad is None:
        yield from _end(state, job, "succeeded", 0, "", now)
    else:
        yield from _fail(state, job, code, reason or _worded(code), now)


def _worded(code: int | None) -> str:
    if code is None:
        return "lost without an exit code"
    return f"ended by signal {code - 128}" if code > 128 else f"exit code {code}"


def _fail(state: State, job: Job, code: int | None, reason: str, now: int) -> Iterator[Fact]:
    if job.failures < job.retries:
        yield facts.Retried(now, job.id, f"attempt {job.attempt} failed: {reason}")
        yield from _let_go(state, job, now)
    else:
        yield from _end(state, job, "failed", code, reason, now)


def _held(state: State, command: commands.Held, now: int) -> Iterator[Fact]:
    lease = state.leases.get(command.lease)
    if lease is None or lease.state == "releasing":
        return
    if lease.state == "granted" or lease.groups != command.groups:
        yield facts.Bound(now, lease.id, command.groups)


def _denied(state: State, command: commands.Denied, now: int) -> Iterator[Fact]:
    lease = state.leases.get(command.lease)
    if lease is None or lease.state == "releasing":
        return
    job = state.jobs[lease.job]
    if job.begun or job.state == "stopping":
        return
    if command.final:
        yield from _end(state, job, "failed", None, command.reason, now)
    else:
        yield facts.Returned(now, job.id, command.reason, now + REST)
        yield from _let_go(state, job, now)


def _gone(state: State, command: commands.Gone, now: int) -> Iterator[Fact]:
    lease = state.leases.get(command.lease)
    if lease is not None and lease.state == "releasing":
        yield facts.Released(now, lease.id)


# ---------------------------------------------------------------- nodes


def _node_seen(state: State, command: commands.NodeSeen, now: int) -> Iterator[Fact]:
    info = _without_foreign_gpus(state, command.node)
    known = state.nodes.get(info.name)
    if known is None or known.lost is not None or known.info != info:
        yield facts.NodeJoined(now, info)


def _without_foreign_gpus(state: State, info: NodeInfo) -> NodeInfo:
    """A GPU that another node reported already is one GPU, and stays there."""
    taken = {
        uuid
        for node in state.nodes.values()
        if node.info.name != info.name and node.lost is None
        for uuid in node.gpus
    }
    gpus = tuple(gpu for gpu in info.gpus if gpu.uuid not in taken)
    return NodeInfo(
        info.name, info.backends, gpus, info.cpus, info.memory, info.ray_id, info.driver, info.simulated
    )


def _node_gone(state: State, command: commands.NodeGone, now: int) -> Iterator[Fact]:
    node = state.nodes.get(command.node)
    if node is not None and node.lost is None:
        yield facts.NodeLost(now, command.node)


def _usage(state: State, command: commands.Usage, now: int) -> Iterator[Fact]:
    node = state.nodes.get(command.node)
    gpu = node.gpus.get(command.gpu) if node else None
    if gpu is not None and gpu.foreign != command.foreign:
        yield facts.GPUObserved(now, command.node, command.gpu, command.foreign, gpu.outside)


def _outside(state: State, command: commands.Outside, now: int) -> Iterator[Fact]:
    node = state.nodes.get(command.node)
    for uuid, gpu in node.gpus.items() if node else ():
        outside = uuid in command.gpus
        if gpu.outside != outside:
            yield facts.GPUObserved(now, command.node, uuid, gpu.foreign, outside)


# ---------------------------------------------------------------- time


def _set_clock(state: State, command: commands.SetClock, now: int) -> Iterator[Fact]:
    yield facts.ClockSet(now + command.shift, command.boot, command.uptime, command.shift)


def _tick(state: State, _: commands.Tick, now: int) -> Iterator[Fact]:
    for lease in list(state.leases.values()):
        job = state.jobs.get(lease.job)
        lost = _lost_node(state, lease, now)
        if lost is not None and lease.state == "releasing":
            yield facts.Released(now, lease.id)
        elif lost is not None and job is not None and job.lease == lease.id:
            yield from _lose(state, job, lost, now)
        elif job is not None and _overdue(job, now):
            yield facts.Stopping(now, job.id, "failed", explain.too_long(job))
    yield from _forget(state, now)


def _forget(state: State, now: int) -> Iterator[Fact]:
    """Forget what ended long ago; an array as a whole, so that who follows it learns how each one ended."""
    surplus = len(state.ended) - JOBS_KEPT
    if surplus <= 0:
        return
    held = {lease.job for lease in state.leases.values()}
    old = {id for id, _ in zip(state.ended, range(surplus), strict=False) if id not in held}
    groups = dict.fromkeys(state.jobs[id].group for id in state.ended if id in old)
    whole = [state.groups[group] for group in groups if old.issuperset(state.groups[group])]
    if whole:
        yield facts.Forgotten(now, tuple(id for group in whole for id in group))


def _lost_node(state: State, lease: Lease, now: int) -> Node | None:
    for place in lease.places:
        node = state.nodes[place.node]
        if node.lost is not None and now - node.lost >= NODE_PATIENCE:
            return node
    return None


def _lose(state: State, job: Job, node: Node, now: int) -> Iterator[Fact]:
    reason = f"node {node.info.name} is gone"
    if job.state == "stopping":
        yield from _end(state, job, job.outcome or "cancelled", None, job.reason, now)
    elif job.kind == "lease":
        yield from _end(state, job, "failed", None, reason, now)
    else:
        yield from _fail(state, job, None, reason, now)


def _overdue(job: Job, now: int) -> bool:
    if job.state != "running" or job.max_runtime is None or job.started is None:
        return False
    return now - job.started >= job.max_runtime and job.kind == "command"


_DECIDE: dict[type, Callable[[State, Any, int], Iterator[Fact]]] = {
    commands.Submit: _submit,
    commands.Cancel: _cancel,
    commands.Release: _release,
    commands.OwnerLost: _owner_lost,
    commands.NodeSeen: _node_seen,
    commands.NodeGone: _node_gone,
    commands.Usage: _usage,
    commands.Outside: _outside,
    commands.Held: _held,
    commands.Denied: _denied,
    commands.Report: _report,
    commands.Gone: _gone,
    commands.SetClock: _set_clock,
    commands.Tick: _tick,
}
