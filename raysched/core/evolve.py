"""The only code that changes state: each fact, folded in. It decides nothing and never fails on a fact that
was recorded."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from raysched.core import facts
from raysched.core.facts import Fact
from raysched.core.host import KnownHost
from raysched.core.jobs import Job
from raysched.core.lease import Lease, Place
from raysched.core.measured import Over
from raysched.core.mig import shared
from raysched.core.node import GPU, GPUInfo, Node, NodeInfo, Refusal
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
    for gpu in fact.node.gpus:
        _move_in(state, gpu.uuid, fact.node.name)
    node.info, node.lost = fact.node, None
    _update_gpus(node, fact.node)
    if not node.info.managed:
        for gpu in node.gpus.values():
            gpu.outside = False
    node.changed(described=True)
    state.sites = None


def _move_in(state: State, uuid: str, name: str) -> None:
    """A GPU is on this node now; a lost one that had it, and on which nobody holds it, has it no more."""
    home = state.homes.get(uuid)
    state.homes[uuid] = name
    if home is not None and home != name:
        former = state.nodes[home]
        gpu = former.gpus.get(uuid)
        if gpu is not None and not gpu.tenants:
            del former.gpus[uuid]
            former.changed(described=True)


def _update_gpus(node: Node, info: NodeInfo) -> None:
    """Take over what the node reports; a GPU that vanished stays known while a tenant is on it."""
    reported = {gpu.uuid: gpu for gpu in info.gpus}
    for uuid, gpu in list(node.gpus.items()):
        gpu.present = uuid in reported
        if not gpu.present and not gpu.tenants:
            del node.gpus[uuid]
    for uuid, found in reported.items():
        _describe(node.gpus.setdefault(uuid, GPU(found, info.name)), found)
    node.gpus = dict(sorted(node.gpus.items(), key=lambda item: item[1].info.index))


def _describe(gpu: GPU, info: GPUInfo) -> None:
    """Take over what a GPU is; once it is cut differently, the driver may be asked again."""
    if info.layout != gpu.info.layout:
        gpu.refusals = ()
    gpu.info = replace(info, mig=shared(info.mig)) if info.mig else info


def _node_lost(state: State, fact: facts.NodeLost) -> None:
    state.nodes[fact.node].lost = fact.at


def _drained(state: State, fact: facts.Drained) -> None:
    state.nodes[fact.node].draining = fact.on


def _host_added(state: State, fact: facts.HostAdded) -> None:
    _set_host(state, fact.host.name, KnownHost(fact.host, fact.origin))


def _host_observed(state: State, fact: facts.HostObserved) -> None:
    known = state.hosts[fact.name]
    since = None if not fact.reason else fact.at if known.since is None else known.since
    _set_host(state, fact.name, replace(known, reason=fact.reason, since=since))


def _host_is(state: State, fact: facts.HostIs) -> None:
    _set_host(state, fact.name, replace(state.hosts[fact.name], node=fact.node))


def _host_leaving(state: State, fact: facts.HostLeaving) -> None:
    _set_host(state, fact.name, replace(state.hosts[fact.name], leaving=True))


def _host_removed(state: State, fact: facts.HostRemoved) -> None:
    _set_host(state, fact.name, None)
    node = state.nodes.get(fact.name)
    if node is not None and node.info.ray_id is None:
        _remove_node(state, fact.name)


def _node_left(state: State, fact: facts.NodeLeft) -> None:
    _remove_node(state, fact.node)


def _node_removed(state: State, fact: facts.NodeRemoved) -> None:
    _remove_node(state, fact.node)


def _node_renamed(state: State, fact: facts.NodeRenamed) -> None:
    node = state.nodes[fact.name] = state.nodes.pop(fact.node)
    node.info = replace(node.info, name=fact.name)
    for uuid, gpu in node.gpus.items():
        gpu.node = state.homes[uuid] = fact.name
    for lease in state.leases.values():
        if any(place.node == fact.node for place in lease.places):
            lease.places = tuple(
                replace(place, node=fact.name) if place.node == fact.node else place for place in lease.places
            )
            job = state.jobs.get(lease.job)
            if job is not None and job.lease == lease.id:
                job.places = lease.places
    node.changed(described=True)
    state.sites = None


def _remove_node(state: State, name: str) -> None:
    state.nodes.pop(name, None)
    for uuid in [uuid for uuid, home in state.homes.items() if home == name]:
        del state.homes[uuid]


def _set_host(state: State, name: str, known: KnownHost | None) -> None:
    """Note what is known of a host, and by which hosts the nodes of Ray can be reached now."""
    before = state.hosts.get(name)
    if known is None:
        del state.hosts[name]
    else:
        state.hosts[name] = known
    for node in {each.node for each in (before, known) if each is not None and each.node}:
        its = (each for each in state.hosts.values() if each.node == node)
        usable = next((each.host for each in its if each.reason == "" and not each.leaving), None)
        if (there := state.nodes.get(node)) is not None:
            there.host, there.labels = (usable.name, usable.labels) if usable else ("", ())
            there.changed(described=True)


def _gpu(state: State, node: str, uuid: str) -> GPU | None:
    """A GPU that something is about to change."""
    known = state.nodes.get(node)
    if known is None or uuid not in known.gpus:
        return None
    known.changed()
    return known.gpus[uuid]


def _gpu_observed(state: State, fact: facts.GPUObserved) -> None:
    gpu = _gpu(state, fact.node, fact.gpu)
    if gpu is not None:
        gpu.foreign, gpu.outside, gpu.strangers = fact.foreign, fact.outside, fact.instances


def _over_share(state: State, fact: facts.OverShare) -> None:
    gpu = _gpu(state, fact.node, fact.gpu)
    if gpu is not None:
        gpu.over = (*_without(gpu, fact.over.lease, fact.over.device), fact.over)


def _back_in_share(state: State, fact: facts.BackInShare) -> None:
    gpu = _gpu(state, fact.node, fact.gpu)
    if gpu is not None:
        gpu.over = _without(gpu, fact.lease, fact.device)


def _without(gpu: GPU, lease: str, device: str) -> tuple[Over, ...]:
    return tuple(over for over in gpu.over if (over.lease, over.device) != (lease, device))


def _used(state: State, fact: facts.Used) -> None:
    lease = state.leases.get(fact.use.lease)
    if lease is not None:
        lease.measured[fact.use.gpu] = fact.use.end


def _layout_changed(state: State, fact: facts.LayoutChanged) -> None:
    gpu = _gpu(state, fact.node, fact.gpu)
    if gpu is None:
        return
    node = state.nodes[fact.node]
    _describe(gpu, replace(gpu.info, layout=fact.layout))
    infos = tuple(gpu.info if info.uuid == fact.gpu else info for info in node.info.gpus)
    node.info = replace(node.info, gpus=infos)
    node.changed(described=True)


def _cut_refused(state: State, fact: facts.CutRefused) -> None:
    gpu = _gpu(state, fact.node, fact.gpu)
    if gpu is not None:
        others = tuple(refusal for refusal in gpu.refusals if refusal.cut != fact.cut)
        gpu.refusals = (*others, Refusal(fact.cut, fact.reason, fact.at))


def _refusal_lapsed(state: State, fact: facts.RefusalLapsed) -> None:
    gpu = _gpu(state, fact.node, fact.gpu)
    if gpu is not None:
        gpu.refusals = tuple(refusal for refusal in gpu.refusals if refusal.at > fact.before)


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
    _remember(state, fact.key, fact.digest, ids)


def _done(state: State, fact: facts.Done) -> None:
    _remember(state, fact.key, fact.digest, fact.about)


def _remember(state: State, key: str, digest: str, about: Iterable[str]) -> None:
    state.keys[key] = (*state.keys.get(key, ()), *about)
    state.digests[key] = digest
    if len(state.keys) > KEYS_KEPT:
        oldest = next(iter(state.keys))
        del state.keys[oldest]
        state.digests.pop(oldest, None)


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
    job.begun, job.exits, job.failure = set(), {}, ""
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
        mark=lease.mark,
    )
    _leave_queue(state, job)
    job.state, job.lease, job.attempt, job.reason = "starting", lease.id, lease.attempt, ""
    job.places, job.backend = lease.places, lease.backend
    job.sharing, job.mechanism, job.warning = lease.sharing, lease.mechanism, ""
    job.granted, job.started = fact.at, None
    job.single = not lease.places
    state.unplaced[lease.backend] += not lease.places
    _move_in_tenant(state, lease)


def _move_in_tenant(state: State, lease: Lease) -> None:
    for place in lease.places:
        node = state.nodes[place.node]
        node.cpus_used += place.cpus
        node.memory_used += place.memory
        node.changed()
        for slice in place.slices:
            gpu = node.gpus[slice.gpu]
            gpu.sharing = lease.sharing
            gpu.tenants[lease.id] = (*gpu.tenants.get(lease.id, ()), slice)
            gpu.share_used += slice.share
            gpu.memory_used += slice.memory


def _placed(state: State, fact: facts.Placed) -> None:
    lease = state.leases[fact.lease]
    _free(state, lease.id, lease.places)
    state.unplaced[lease.backend] += (not fact.places) - (not lease.places)
    lease.places = fact.places
    state.jobs[lease.job].places = fact.places
    _move_in_tenant(state, lease)


def _queued(state: State, fact: facts.Queued) -> None:
    state.jobs[fact.job].reason = fact.reason


def _held(state: State, fact: facts.Held) -> None:
    lease = state.leases[fact.lease]
    lease.state, lease.groups = "held", fact.groups


def _bound(state: State, fact: facts.Bound) -> None:
    lease = state.leases[fact.lease]
    lease.state, lease.groups = "bound", fact.groups
    job = state.jobs[lease.job]
    if fact.instances:
        _give(state, lease, "instance", fact.instances)
    if fact.pipes:
        _give(state, lease, "pipe", fact.pipes)
    job.places = lease.places
    if job.kind == "lease" and job.state == "starting":
        job.state, job.started = "running", fact.at


def _give(state: State, lease: Lease, what: str, values: tuple[str, ...]) -> None:
    """Each slice of a lease has one of these, in the order of its places."""
    given = iter(values)
    lease.places = tuple(
        replace(place, slices=tuple(replace(slice, **{what: next(given)}) for slice in place.slices))
        for place in lease.places
    )
    for place in lease.places:
        gpus = state.nodes[place.node].gpus
        for uuid in {slice.gpu for slice in place.slices}:
            gpus[uuid].tenants[lease.id] = tuple(slice for slice in place.slices if slice.gpu == uuid)


def _warned(state: State, fact: facts.Warned) -> None:
    state.jobs[fact.job].warning = fact.warning


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
        job.state, job.reason = "running", ""  # the reason was why its engine had not started it


def _exited(state: State, fact: facts.Exited) -> None:
    job = state.jobs[fact.job]
    job.exits[fact.rank] = fact.code
    if fact.code != 0 and not job.failure:
        job.failure = fact.reason


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


def _cleared(state: State, fact: facts.Cleared) -> None:
    lease = state.leases[fact.lease]
    lease.cleared = (*lease.cleared, *fact.nodes)


def _released(state: State, fact: facts.Released) -> None:
    lease = state.leases[fact.lease]
    state.unplaced[lease.backend] -= not lease.places
    freed = [place for place in lease.places if not fact.nodes or place.node in fact.nodes]
    lease.places = tuple(place for place in lease.places if place not in freed)
    if not lease.places:
        del state.leases[lease.id]
    _free(state, lease.id, freed)


def _free(state: State, lease: str, places: Iterable[Place]) -> None:
    """Nobody holds this any more."""
    for place in places:
        node = state.nodes[place.node]
        node.cpus_used -= place.cpus
        node.memory_used -= place.memory
        node.changed()
        for slice in place.slices:
            gpu = node.gpus[slice.gpu]
            gpu.share_used -= slice.share
            gpu.memory_used -= slice.memory
        for uuid in {slice.gpu for slice in place.slices}:
            _move_out(node, node.gpus[uuid], lease)


def _move_out(node: Node, gpu: GPU, lease: str) -> None:
    del gpu.tenants[lease]
    gpu.over = tuple(over for over in gpu.over if over.lease != lease)
    if not gpu.tenants:
        gpu.sharing = None
        if not gpu.present:
            del node.gpus[gpu.info.uuid]


def _clock_set(state: State, fact: facts.ClockSet) -> None:
    state.clock, state.latest = Reading(fact.at, fact.boot, fact.uptime), fact.at
    if not fact.shift:
        return
    for job in state.jobs.values():
        for name in ("submitted", "granted", "started", "ended", "until"):
            if (time := getattr(job, name)) is not None:
                setattr(job, name, time + fact.shift)
    for name, known in state.hosts.items():
        if known.since is not None:
            state.hosts[name] = replace(known, since=known.since + fact.shift)
    for node in state.nodes.values():
        if node.lost is not None:
            node.lost += fact.shift
        for gpu in node.gpus.values():
            if gpu.refusals:
                gpu.refusals = tuple(replace(refusal, at=refusal.at + fact.shift) for refusal in gpu.refusals)
            gpu.over = tuple(_shifted(over, fact.shift) for over in gpu.over)


def _shifted(over: Over, shift: int) -> Over:
    until = None if over.until is None else over.until + shift
    return replace(over, since=over.since + shift, until=until)


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
    facts.NodeLeft: _node_left,
    facts.GPUObserved: _gpu_observed,
    facts.OverShare: _over_share,
    facts.BackInShare: _back_in_share,
    facts.Used: _used,
    facts.LayoutChanged: _layout_changed,
    facts.CutRefused: _cut_refused,
    facts.RefusalLapsed: _refusal_lapsed,
    facts.Drained: _drained,
    facts.HostAdded: _host_added,
    facts.HostObserved: _host_observed,
    facts.HostIs: _host_is,
    facts.NodeRemoved: _node_removed,
    facts.NodeRenamed: _node_renamed,
    facts.HostLeaving: _host_leaving,
    facts.HostRemoved: _host_removed,
    facts.Submitted: _submitted,
    facts.Done: _done,
    facts.Granted: _granted,
    facts.Held: _held,
    facts.Bound: _bound,
    facts.Placed: _placed,
    facts.Queued: _queued,
    facts.Warned: _warned,
    facts.Returned: _returned,
    facts.Started: _started,
    facts.Exited: _exited,
    facts.Retried: _retried,
    facts.Stopping: _stopping,
    facts.Ended: _ended,
    facts.Releasing: _releasing,
    facts.Cleared: _cleared,
    facts.Released: _released,
    facts.ClockSet: _clock_set,
    facts.Forgotten: _forgotten,
}
