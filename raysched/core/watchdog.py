"""Whether tenants keep to their shares of memory: what a node measured, beside what was granted.

A tenant is over its share from the first sample that says so to the first that says otherwise. What follows
is the policy's, which comes with each sample; the end is decided on a sample too, never on the clock alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from raysched.core import facts, warnings
from raysched.core.commands import Measured, Outside, Usage
from raysched.core.facts import Fact
from raysched.core.lease import Lease
from raysched.core.measured import Guidance, Over, Stretch, Tenancy, TenantUse
from raysched.core.node import GPU
from raysched.core.state import State

UNKNOWN_MEMORY = 1
"""MiB that a process counts for whose memory the driver does not tell: it is there, and nobody can say how
much it holds."""


def strangers(gpu: GPU, seen: Usage) -> tuple[int, tuple[str, ...]]:
    """The memory in MiB that is used by who has no right to it, and the MIG instances that are: processes
    without a lease, and those of leases that do not have the device."""
    beside = [use for use in seen.tenants if not _held(gpu, use)]
    memory = seen.foreign + sum(_memory(use) for use in beside)
    instances = {*seen.instances, *(use.device for use in beside if use.device != gpu.info.uuid)}
    return memory, tuple(sorted(instances))


def outside(state: State, told: Outside, now: int) -> Iterator[Fact]:
    """Which GPUs somebody holds in Ray, or at a site, who did not ask raysched. A node that was Ray's may
    be a host by now."""
    node = state.nodes.get(told.node)
    for uuid, gpu in node.gpus.items() if node and node.info.managed else ():
        if gpu.outside != (uuid in told.gpus):
            yield facts.GPUObserved(now, told.node, uuid, gpu.foreign, not gpu.outside, gpu.strangers)


def observe(state: State, gpu: GPU, seen: Usage, now: int) -> Iterator[Fact]:
    """What is new of who uses a GPU: strangers, tenants that are over their share, or no longer are."""
    foreign, instances = strangers(gpu, seen)
    if (gpu.foreign, gpu.strangers) != (foreign, instances):
        yield facts.GPUObserved(now, seen.node, seen.gpu, foreign, gpu.outside, instances)
    known = {(over.lease, over.device): over for over in gpu.over}
    found = {(over.lease, over.device): over for over in _over(state, gpu, seen, now)}
    changed = {key: over for key, over in found.items() if not _same(known.get(key), over)}
    gone = {key: over for key, over in known.items() if key not in found and not _ends(state, over)}
    for over in changed.values():
        yield facts.OverShare(now, seen.node, gpu.info.uuid, over)
    for over in gone.values():
        yield facts.BackInShare(now, seen.node, gpu.info.uuid, over.lease, over.device)
    after = tuple({**{key: over for key, over in known.items() if key not in gone}, **changed}.values())
    for id in dict.fromkeys(lease for lease, _ in (*changed, *gone)):
        yield from _warned(state, gpu, id, after, now)


def _over(state: State, gpu: GPU, seen: Usage, now: int) -> Iterator[Over]:
    policy = seen.policy
    until = now + policy.grace if policy.over_memory == "end" else None
    for use in seen.tenants:
        lease = state.leases.get(use.lease)
        if lease is None or lease.state == "releasing":
            continue
        held, used = _held(gpu, use), _memory(use)
        if used > held:
            yield Over(use.lease, use.device, used, held, now, policy.over_memory, until)


def _ends(state: State, over: Over) -> bool:
    """Whether its lease is being ended anyway."""
    lease = state.leases.get(over.lease)
    return lease is not None and lease.state == "releasing"


def _same(known: Over | None, found: Over) -> bool:
    return known is not None and known.action == found.action


def _warned(state: State, gpu: GPU, id: str, after: tuple[Over, ...], now: int) -> Iterator[Fact]:
    lease = state.leases.get(id)
    job = state.jobs.get(lease.job) if lease else None
    if lease is None or job is None or job.lease != id:
        return
    warning = warnings.warning(state, lease, over={gpu.info.uuid: after})
    if warning != job.warning:
        yield facts.Warned(now, job.id, warning)


def overdue(gpu: GPU, seen: Usage, now: int) -> Iterator[tuple[str, str]]:
    """The leases that have to end as they were over their share for too long and still are, and why."""
    uses = {(use.lease, use.device): use for use in seen.tenants}
    for over in gpu.over:
        use = uses.get((over.lease, over.device))
        if over.until is None or now < over.until or use is None or _memory(use) <= _held(gpu, use):
            continue
        yield over.lease, f"used {warnings.excess(_memory(use), over, seen.node)}"


def _memory(use: TenantUse) -> int:
    return UNKNOWN_MEMORY if use.memory is None else use.memory


def _held(gpu: GPU, use: TenantUse) -> int:
    """The memory in MiB that the lease has of the device."""
    return sum(slice.memory for slice in gpu.tenants.get(use.lease, ()) if slice.device == use.device)


def measured(state: State, told: Measured, now: int) -> Iterator[Fact]:
    """The use that leases made, where it was not written down before."""
    for stretch in told.stretches:
        if not is_known(state, stretch):
            yield facts.Used(now, told.node, stretch)


def is_known(state: State, stretch: Stretch) -> bool:
    """Whether a stretch was written down before, or is of a lease that is over."""
    lease = state.leases.get(stretch.lease)
    return lease is None or lease.measured.get(stretch.gpu, -1) >= stretch.end


def guidance(state: State, node: str, leases: Iterable[str]) -> Guidance:
    """What the agent of a node has to know; `leases` are those that it saw there."""
    known = state.nodes.get(node)
    tenants = tuple(
        _tenancy(state, gpu, state.leases[id])
        for gpu in (known.gpus.values() if known else ())
        for id in gpu.tenants
        if state.leases[id].state == "bound"
    )
    return Guidance(tenants, frozenset(lease for lease in leases if orphaned(state, lease)))


def _tenancy(state: State, gpu: GPU, lease: Lease) -> Tenancy:
    slices, job = gpu.tenants[lease.id], state.jobs[lease.job]
    share, memory = sum(slice.share for slice in slices), sum(slice.memory for slice in slices)
    return Tenancy(gpu.info.uuid, lease.id, job.display, job.user, job.queue, share, memory)


def orphaned(state: State, lease: str) -> bool:
    """Whether that was a lease of this ledger which is over, so that nothing of it should run any more. A
    lease that is not known here may be another ledger's."""
    job, _, attempt = lease.rpartition(".")
    known = state.jobs.get(job)
    if known is None or lease in state.leases or not attempt.isdecimal():
        return False
    return int(attempt) <= known.attempt
