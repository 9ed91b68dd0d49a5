"""What a command leads to: facts, or a refusal that says why. Nothing here changes state.

A command is decided whole or not at all. Reports of an old attempt, and repeated ones, lead to no facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from raysched.core import (
    commands,
    cutting,
    evictions,
    facts,
    hosts,
    layouts,
    lent,
    namesakes,
    twins,
    warnings,
    watchdog,
)
from raysched.core.commands import Command
from raysched.core.facts import Fact
from raysched.core.impossible import impossible
from raysched.core.isolation import expected, mechanism_of
from raysched.core.jobs import ENDED, Job, Outcome
from raysched.core.lease import Group, Lease, Place
from raysched.core.mig import UNCUT
from raysched.core.node import GPUInfo, Node, NodeInfo
from raysched.core.placed import placed
from raysched.core.placement import Placement, possible
from raysched.core.reports import REST, end, failure, may_be_taken, pause, plausible
from raysched.core.request import Request
from raysched.core.state import State
from raysched.core.words import exit_of, too_long
from raysched.errors import Conflict, NotFound, Refused

HOLDER = "ray"
"""The backend that keeps leases in Ray, whichever one launches their work."""
NODE_PATIENCE = 60_000
"""Milliseconds that a lost node may stay away before its work counts as lost."""
LOST = 86_400_000
"""Milliseconds after which a lost node will not come back with processes of ours: what it had is free then.
Sooner, what its work held is free only once the node is back and somebody has looked: it may have been cut
off, and all of it may run on."""
CUT_PATIENCE = 300_000
"""Milliseconds after its grant for which a lease waits until its GPUs are cut."""
JOBS_KEPT = 2_000
"""How many jobs have to end after a job, or after the last element of an array, until it is forgotten."""


def decide(state: State, command: Command, now: int) -> list[Fact]:
    """The facts that `command` leads to at `now` (ms since 1970).

    Raises Refused for a request that can never be granted, NotFound for a job that is not known, Conflict for
    a key that was used for something else.
    """
    return list(_DECIDE[type(command)](state, command, now))


def grant(state: State, job: Job, placement: Placement, now: int) -> list[Fact]:
    """The facts of a job's grant. A lease on nodes that Ray does not manage needs no hold: it is held."""
    attempt = job.attempt + 1
    lease = Lease(
        id=f"{job.id}.{attempt}",
        job=job.id,
        attempt=attempt,
        backend=placement.backend,
        sharing=placement.sharing,
        isolation=job.request.isolation,
        mechanism=_mechanism(state, job.request, placement),
        places=placement.places,
        mark=now,
    )
    granted: list[Fact] = [facts.Granted(now, lease)]
    return granted if managed(state, placement) else [*granted, *_hold(state, lease, (), now)]


def _mechanism(state: State, request: Request, placement: Placement) -> str:
    """What will hold the lease to its share; of a site nothing is known but the way of sharing."""
    if not placement.places:
        return expected(possible(state, request) or request)
    shared = replace(request, sharing=placement.sharing)
    return mechanism_of(_infos(state, placement.places), shared)


def _infos(state: State, places: Iterable[Place]) -> Iterator[GPUInfo]:
    return (state.nodes[place.node].gpus[slice.gpu].info for place in places for slice in place.slices)


def managed(state: State, placement: Placement | Lease) -> bool:
    """Whether Ray manages a node of it, so that it must be held there."""
    return any(state.nodes[place.node].info.ray_id is not None for place in placement.places)


def keeper(state: State, node: str) -> str | None:
    """The backend that sees to it that nothing of a lease is left on a node before its capacity is free, None
    where nobody has to: Ray's for the nodes that Ray manages, whichever backend launched the work."""
    if state.nodes[node].info.ray_id is not None:
        return HOLDER
    return "vm" if node in state.hosts else None


def _hold(
    state: State, lease: Lease, groups: tuple[Group, ...], now: int, seen: NodeInfo | None = None
) -> Iterator[Fact]:
    """A lease is held: its work may start if its GPUs are cut as it needs them. `seen` is news of a node."""
    instances = cutting.instances(state, lease, seen)
    if instances is None:
        yield facts.Held(now, lease.id, groups)
        return
    yield facts.Bound(now, lease.id, groups, instances, cutting.pipes(state, lease, seen))
    job = state.jobs.get(lease.job)
    if job is not None and job.kind == "layout":
        yield from _end(state, job, "succeeded", None, "the GPU is cut so", now)


# ---------------------------------------------------------------- jobs


def _submit(state: State, command: commands.Submit, now: int) -> Iterator[Fact]:
    if known_key(state, command.key, command.digest):
        return
    for asked in command.jobs:
        if possible(state, asked.request) is None:
            raise Refused(f"{asked.name}: {impossible(state, asked.request)}{hosts.out(state)}")
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
            digest=command.digest,
            array=asked.array,
            package=asked.package,
            owner=asked.owner,
            queue=asked.queue,
            priority=asked.priority,
            retries=asked.retries,
            max_runtime=asked.max_runtime,
            grace=asked.grace,
        )


def known_key(state: State, key: str, digest: str) -> bool:
    """Whether this was done under that key before. Raises Conflict where it was something else."""
    if key not in state.keys:
        return False
    before = state.digests.get(key)
    if before and digest and before != digest:
        raise Conflict(
            f"the idempotency key {key!r} was used for something else before: take a new one for each "
            "command, and the same one only to repeat it"
        )
    return True


def _once(state: State, command: commands.Once, now: int) -> Iterator[Fact]:
    if known_key(state, command.key, command.digest):
        return
    yield facts.Done(now, command.key, command.digest, command.about)
    for each in command.commands:
        yield from decide(state, each, now)


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
    yield from _give_back(state, find(state, command.job), "released", "no longer asked for", now)


def _owner_lost(state: State, command: commands.OwnerLost, now: int) -> Iterator[Fact]:
    for id in state.owned.get(command.owner, {}):
        yield from _give_back(state, state.jobs[id], f"given back: {command.reason}", command.reason, now)


def _give_back(state: State, job: Job, held: str, waited: str, now: int) -> Iterator[Fact]:
    """End a lease that its holder no longer needs, or did not wait for, with the reason for either."""
    if job.state == "running":
        yield from _end(state, job, "succeeded", None, held, now)
    elif job.state not in ENDED:
        yield from _end(state, job, "cancelled", None, waited, now)


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
    yield from _free(lease, [place.node for place in lease.places if keeper(state, place.node) is None], now)


# ---------------------------------------------------------------- reports


def _report(state: State, command: commands.Report, now: int) -> Iterator[Fact]:
    seen = command.seen
    job = state.jobs.get(seen.run.job)
    if job is None or seen.run.attempt != job.attempt or job.lease is None or job.kind != "command":
        return
    rank = seen.run.rank
    if rank in job.exits or rank >= job.runs or seen.mark not in (0, state.leases[job.lease].mark):
        return
    if seen.state == "queued":
        if job.state == "starting" and job.reason != seen.reason:
            yield facts.Queued(now, job.id, seen.reason)
        return
    if seen.state == "taken" and job.state != "stopping" and may_be_taken(job, seen):
        yield from _take_back(state, job, seen.reason, now, now + (REST if seen.begun else pause(job)))
        return
    if rank not in job.begun and seen.state not in ("lost", "taken"):
        yield facts.Started(plausible(seen.started, job.granted, now), job.id, rank)
    if seen.state == "running":
        return
    code = seen.code if seen.state == "exited" else None
    ended = end(job, seen, now)
    reason = "" if code == 0 else failure(job, rank, code, seen.reason)
    yield facts.Exited(ended, job.id, rank, code, reason)
    yield from _conclude(state, job, {**job.exits, rank: code}, job.failure or reason, ended)


def _conclude(state: State, job: Job, exits: dict[int, int | None], reason: str, now: int) -> Iterator[Fact]:
    """What follows once these ranks have ended: nothing before all of them have. The first that failed tells
    why the job did: the others were ended for it. `reason` is how that was."""
    if len(exits) < job.runs:
        return
    bad = next((rank for rank in exits if exits[rank] != 0), None)
    code = 0 if bad is None else exits[bad]
    if job.state == "stopping":
        yield from _end(state, job, job.outcome or "cancelled", code, job.reason, now)
    elif bad is None:
        yield from _end(state, job, "succeeded", 0, "", now)
    else:
        yield from _fail(state, job, code, reason or exit_of(code), now)


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
    if lease.state == "bound" and lease.groups != command.groups:
        if (job := state.jobs[lease.job]).kind == "lease":  # what was put into the old group waits for ever
            yield from _end(state, job, "failed", None, "its placement group in Ray was removed", now)
        else:
            yield facts.Bound(now, lease.id, command.groups, cutting.given(lease))
    elif lease.state == "granted" or lease.groups != command.groups:
        yield from _hold(state, lease, command.groups, now)


def _denied(state: State, command: commands.Denied, now: int) -> Iterator[Fact]:
    lease = state.leases.get(command.lease)
    if lease is None or lease.state == "releasing":
        return
    job = state.jobs[lease.job]
    if job.state == "running":
        # Its holder works with it, or some of its nodes do: a no to the rest may still become a yes.
        if command.final and len(job.begun) < job.runs and job.kind == "command":
            yield facts.Stopping(now, job.id, "failed", command.reason)
    elif job.state == "stopping":
        return
    elif command.final:
        yield from _end(state, job, "failed", None, command.reason, now)
    else:
        yield from _take_back(state, job, command.reason, now, now + (pause(job) if job.single else REST))


def _take_back(state: State, job: Job, reason: str, now: int, until: int) -> Iterator[Fact]:
    """Give the lease of a job back that has not begun; it waits until then, or ends if it is a layout's."""
    if job.kind == "layout":
        yield from _end(state, job, "failed", None, reason, now)
        return
    yield facts.Returned(now, job.id, reason, until)
    yield from _let_go(state, job, now)


def _gone(state: State, command: commands.Gone, now: int) -> Iterator[Fact]:
    lease = state.leases.get(command.lease)
    if lease is None or lease.state != "releasing":
        return
    there = [place.node for place in lease.places if not command.nodes or place.node in command.nodes]
    if command.backend == "vm":
        rays = tuple(node for node in there if keeper(state, node) == HOLDER)
        there = [node for node in there if node not in rays]
        if left := tuple(node for node in rays if node not in lease.cleared):
            yield facts.Cleared(now, lease.id, left)
    yield from _free(lease, there, now)


def _free(lease: Lease, nodes: Sequence[str], now: int) -> Iterator[Fact]:
    """The capacity of a lease on these of its nodes is free."""
    if len(nodes) == len(lease.places):
        yield facts.Released(now, lease.id)
    elif nodes:
        yield facts.Released(now, lease.id, tuple(nodes))


# ---------------------------------------------------------------- nodes


def _node_seen(state: State, command: commands.NodeSeen, now: int) -> Iterator[Fact]:
    info, known = command.node, state.nodes.get(command.node.name)
    if known is not None and known.lost is None and known.info == info:
        return
    if known is not None and namesakes.are(known.info, info):
        yield from namesakes.apart(state, known, info, now)
        return
    same = twins.hosts_of(state, info)
    if twins.stands_in_the_way(state, info, same):
        yield from hosts.make_way(state, info, now)
        return
    yield from twins.taken_over(state, info, same, now)
    yield from _described(state, twins.without_foreign_gpus(state, info, same), now)
    yield from twins.known_as(state, info.name, same, now)


def _described(state: State, info: NodeInfo, now: int) -> Iterator[Fact]:
    known = state.nodes.get(info.name)
    if known is not None and known.lost is None and known.info == info:
        return
    if known is None or known.lost is not None or _without_layouts(known.info) != _without_layouts(info):
        yield facts.NodeJoined(now, info)
    else:
        for gpu in info.gpus:
            if gpu.layout != known.gpus[gpu.uuid].info.layout:
                yield facts.LayoutChanged(now, info.name, gpu.uuid, gpu.layout)
    if known is not None:
        yield from _tenants_see(state, known, info, now)


def _host_seen(state: State, command: commands.HostSeen, now: int) -> Iterator[Fact]:
    """A host that was taken out meanwhile is none. One whose GPUs a node of Ray has is that node."""
    info, name = command.node, command.node.name
    if name not in state.hosts:
        return
    node, reason = twins.of_host(state, info)
    if reason:
        yield from hosts.out_of_reach(state, commands.HostOut(name, reason), now)
        return
    yield from hosts.back(state, name, now)
    yield from twins.known_as(state, node, [name], now)
    if not node:
        yield from _described(state, twins.without_foreign_gpus(state, info), now)
    elif name != node and name in state.nodes:
        yield from _described(state, replace(info, backends=()), now)


def _without_layouts(info: NodeInfo) -> NodeInfo:
    return replace(info, gpus=tuple(replace(gpu, layout=UNCUT) for gpu in info.gpus))


def _tenants_see(state: State, node: Node, info: NodeInfo, now: int) -> Iterator[Fact]:
    """What follows for those who hold something of a node that is now as `info` says."""
    for id in dict.fromkeys(lease for gpu in node.gpus.values() for lease in gpu.tenants):
        lease = state.leases[id]
        job = state.jobs.get(lease.job)
        if job is not None and job.lease == id:
            yield from _tenant_sees(state, lease, job, info, now)


def _tenant_sees(state: State, lease: Lease, job: Job, info: NodeInfo, now: int) -> Iterator[Fact]:
    broken = cutting.broken(lease, info) if lease.state == "bound" else None
    if broken is not None:
        yield from _lose(state, job, broken, now)
        return
    if lease.state == "held" and cutting.instances(state, lease, info) is not None:
        yield from _hold(state, lease, lease.groups, now, info)
        if job.kind == "layout":
            return
    warning = warnings.warning(state, lease, info)
    if warning != job.warning:
        yield facts.Warned(now, job.id, warning)


def _node_gone(state: State, command: commands.NodeGone, now: int) -> Iterator[Fact]:
    node = state.nodes.get(command.node)
    if node is None or node.lost is not None or (command.site and not namesakes.of_site(node, command.site)):
        return
    yield facts.NodeLost(now, command.node)


def _usage(state: State, command: commands.Usage, now: int) -> Iterator[Fact]:
    node = state.nodes.get(command.node)
    gpu = node.gpus.get(command.gpu) if node else None
    if gpu is None:
        return
    yield from watchdog.observe(state, gpu, command, now)
    for id, reason in watchdog.overdue(gpu, command, now):
        yield from _put_out(state, state.leases.get(id), reason, now)


def _put_out(state: State, lease: Lease | None, reason: str, now: int) -> Iterator[Fact]:
    """End a job that may not go on where it is."""
    job = state.jobs.get(lease.job) if lease else None
    if lease is None or job is None or job.lease != lease.id or job.state == "stopping":
        return
    if job.kind == "command" and _launched(state, job):
        yield facts.Stopping(now, job.id, "failed", reason)
    else:
        yield from _end(state, job, "failed", None, reason, now)


def _move_on(state: State, lease: Lease, job: Job, reason: str, now: int) -> Iterator[Fact]:
    """A job has to go from where it is: it waits again if it may be stopped for others."""
    if job.kind == "command" and job.state != "stopping" and job.spec.get("preemptible", True):
        yield from _take_back(state, job, reason, now, now)
    else:
        yield from _put_out(state, lease, reason, now)


def _evict(state: State, command: commands.Evict, now: int) -> Iterator[Fact]:
    """Those that may not be stopped stay, and are told (`core/evictions.py`)."""
    node = hosts.find_node(state, command.node).info.name
    for job in evictions.movable(state, node):
        yield from _take_back(state, job, f"{node} is drained by {command.by}", now, now)


def _cut_refused(state: State, command: commands.CutRefused, now: int) -> Iterator[Fact]:
    """The driver's no is remembered, and the leases that needed it go back: another place is looked for."""
    node = state.nodes.get(command.node)
    gpu = node.gpus.get(command.gpu) if node else None
    if gpu is None:
        return
    yield facts.CutRefused(now, command.node, command.gpu, command.cut, command.reason)
    for id in gpu.tenants:
        lease = state.leases[id]
        if lease.state in ("granted", "held") and cutting.needs(lease, gpu, command.cut):
            yield from _uncut(state, lease, command.reason, now)


def _uncut(state: State, lease: Lease, reason: str, now: int) -> Iterator[Fact]:
    job = state.jobs[lease.job]
    if job.lease == lease.id and job.state == "starting":
        yield from _take_back(state, job, reason, now, now)


def _set_layout(state: State, command: commands.SetLayout, now: int) -> Iterator[Fact]:
    if not known_key(state, command.key, command.digest):
        yield from layouts.granted(state, command, now)


# ---------------------------------------------------------------- time


def _set_clock(state: State, command: commands.SetClock, now: int) -> Iterator[Fact]:
    yield facts.ClockSet(now + command.shift, command.boot, command.uptime, command.shift)


def _tick(state: State, _: commands.Tick, now: int) -> Iterator[Fact]:
    leaving, ways = dict(lent.overdue(state, now)), twins.ways(state)
    for lease in list(state.leases.values()):
        job = state.jobs.get(lease.job)
        lost = next(_gone_from(state, lease, ways, now), None)
        if lease.state == "releasing":
            yield from _free(lease, [node.info.name for node in _lost(state, lease, now, LOST)], now)
            if away := tuple(twins.cut_off(state, lease, ways, now - LOST)):
                yield facts.Cleared(now, lease.id, away)
        elif lost is not None and job is not None and job.lease == lease.id:
            yield from _lose(state, job, lost, now)
        elif lease.id in leaving and job is not None:
            yield from _move_on(state, lease, job, leaving[lease.id], now)
        elif job is not None and _overdue(job, now):
            yield facts.Stopping(now, job.id, "failed", too_long(job))
        elif lease.state == "held" and job is not None and job.state == "starting":
            yield from _still_held(state, lease, job, now)
    yield from lent.sweep(state, now)
    yield from hosts.sweep(state, now)
    yield from cutting.lapse(state, now)
    yield from _forget(state, now)


def _still_held(state: State, lease: Lease, job: Job, now: int) -> Iterator[Fact]:
    """A lease whose GPUs can't be cut any more goes back, and one for which that takes too long: its node's
    agent or driver hangs, and other GPUs may do."""
    reason = cutting.hindrance(state, lease)
    if reason is None and now - (job.granted or now) >= CUT_PATIENCE:
        reason = f"its GPUs were not cut within {CUT_PATIENCE // 60_000} minutes"
        for node, gpu, cut in cutting.waited_for(state, lease):
            yield facts.CutRefused(now, node, gpu, cut, reason)
    if reason is not None:
        yield from _uncut(state, lease, reason, now)


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


def _gone_from(state: State, lease: Lease, ways: dict[str, str], now: int) -> Iterator[str]:
    """Why the work of a lease counts as lost, in words."""
    for node in _lost(state, lease, now, NODE_PATIENCE):
        yield f"node {node.info.name} is gone"
    for name in twins.cut_off(state, lease, ways, now - NODE_PATIENCE):
        yield f"{ways[name]} is out: {state.hosts[ways[name]].reason}"


def _lost(state: State, lease: Lease, now: int, since: int) -> Iterator[Node]:
    """The nodes of a lease that have been lost for so long."""
    nodes, at = (state.nodes[place.node] for place in lease.places), now - since
    return (one for one in nodes if one.lost is not None and (one.lost <= at or lent.has_left(state, one)))


def _lose(state: State, job: Job, reason: str, now: int) -> Iterator[Fact]:
    """What a job ran on is gone."""
    if job.state == "stopping":
        yield from _end(state, job, job.outcome or "cancelled", None, job.reason, now)
    elif job.kind != "command":
        yield from _end(state, job, "failed", None, reason, now)
    else:
        yield from _fail(state, job, None, reason, now)


def _overdue(job: Job, now: int) -> bool:
    if job.state != "running" or job.max_runtime is None or job.started is None:
        return False
    return now - job.started >= job.max_runtime and job.kind == "command"


_DECIDE: dict[type, Callable[[State, Any, int], Iterator[Fact]]] = {
    commands.Submit: _submit,
    commands.Once: _once,
    commands.Cancel: _cancel,
    commands.Release: _release,
    commands.OwnerLost: _owner_lost,
    commands.NodeSeen: _node_seen,
    commands.NodeGone: _node_gone,
    commands.Inventory: hosts.inventory,
    commands.AddHost: hosts.add,
    commands.RemoveHost: hosts.remove,
    commands.HostSeen: _host_seen,
    commands.HostOut: hosts.out_of_reach,
    commands.Cordon: hosts.cordon,
    commands.Evict: _evict,
    commands.CutRefused: _cut_refused,
    commands.SetLayout: _set_layout,
    commands.Usage: _usage,
    commands.Measured: watchdog.measured,
    commands.Outside: watchdog.outside,
    commands.Held: _held,
    commands.Denied: _denied,
    commands.Report: _report,
    commands.Placed: placed,
    commands.Gone: _gone,
    commands.SetClock: _set_clock,
    commands.Tick: _tick,
}
