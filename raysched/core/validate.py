"""Every invariant of the ledger, asserted. The tests run it after each step."""

from __future__ import annotations

from collections import Counter

from raysched.core.cuts import busy_instances, cut_mask
from raysched.core.jobs import ENDED
from raysched.core.lease import Lease, Slice
from raysched.core.node import GPU, Node
from raysched.core.placement import NOTHING_KEPT, emptied, room_now
from raysched.core.request import WHOLE
from raysched.core.state import State
from raysched.core.wanted import partitions


def validate(state: State) -> None:
    """Raise AssertionError with the broken rule if `state` breaks one."""
    for node in state.nodes.values():
        _validate_node(state, node)
    _validate_jobs(state)
    _validate_leases(state)
    unplaced = Counter(lease.backend for lease in state.leases.values() if not lease.places)
    assert state.unplaced == unplaced, "it was lost count of the leases that no site has placed"


def _validate_node(state: State, node: Node) -> None:
    name = node.info.name
    held = [place for lease in state.leases.values() for place in lease.places if place.node == name]
    assert node.cpus_used == sum(place.cpus for place in held), f"{name}: CPUs held do not add up"
    assert node.memory_used == sum(place.memory for place in held), f"{name}: host memory does not add up"
    for gpu in node.gpus.values():
        _validate_gpu(state, gpu)
    _validate_partitions(state, node)
    _validate_remembered(node)


def _validate_partitions(state: State, node: Node) -> None:
    for change in partitions(state, node.info.name):
        gpu = node.gpus[change.gpu]
        had = {*gpu.held_cuts(), *(instance.cut for instance in busy_instances(gpu))}
        assert not had & set(change.destroy), (
            f"{change.gpu}: an instance that somebody has is to be destroyed"
        )
        if change.mig != gpu.info.layout.enabled:
            assert not gpu.used_by_strangers, f"{change.gpu}: its mode is to be switched while it is used"
            ready = [lease for lease in gpu.tenants if state.leases[lease].state == "bound"]
            assert change.mig or not gpu.held_cuts(), f"{change.gpu}: its tenants need the MIG mode"
            assert not change.mig or not ready, f"{change.gpu}: its mode is to be switched under a tenant"


def _validate_remembered(node: Node) -> None:
    """What was worked out about a node is what would be worked out now."""
    empty, node.empty = node.empty, None
    assert empty is None or empty == emptied(node), f"{node.info.name}: remembered empty as it is not"
    for known in node.remembered.values():
        now = room_now(node, known.request, NOTHING_KEPT)
        assert known == now, f"{node.info.name}: an offer is remembered that is none"


def _validate_gpu(state: State, gpu: GPU) -> None:
    name = gpu.info.uuid
    held = {lease.id: slices for lease in state.leases.values() if (slices := _held_of(lease, gpu))}
    slices = [slice for own in held.values() for slice in own]
    assert gpu.tenants == held, f"{name}: its tenants are not the leases on it"
    assert gpu.share_used == sum(slice.share for slice in slices), f"{name}: shares do not add up"
    assert gpu.memory_used == sum(slice.memory for slice in slices), f"{name}: memory does not add up"
    assert gpu.share_used <= WHOLE, f"{name} is granted beyond its compute"
    assert gpu.memory_used <= gpu.info.memory or not gpu.present, f"{name} is granted beyond its memory"
    assert (gpu.sharing is None) == (not gpu.tenants), (
        f"{name}: the first tenant sets the mode, the last frees it"
    )
    for lease in gpu.tenants:
        assert state.leases[lease].sharing == gpu.sharing, f"{name}: a tenant of another mode is on it"
    if gpu.sharing == "exclusive":
        assert len(gpu.tenants) == 1, f"{name} is exclusive and has several tenants"
    _validate_cuts(gpu, slices)


def _held_of(lease: Lease, gpu: GPU) -> tuple[Slice, ...]:
    return tuple(
        slice
        for place in lease.places
        for slice in place.slices
        if place.node == gpu.node and slice.gpu == gpu.info.uuid
    )


def _validate_cuts(gpu: GPU, slices: list[Slice]) -> None:
    name, geometry = gpu.info.uuid, gpu.info.mig
    cuts = [slice.cut for slice in slices]
    assert (gpu.sharing == "mig") == any(cuts), f"{name}: an instance is held of a GPU that is not cut"
    assert all(cuts) or not any(cuts), f"{name}: an instance is held beside a share"
    if geometry is None:
        return
    taken = 0
    for cut in filter(None, cuts):
        profile = geometry.profile(cut.profile)
        assert profile is None or cut.start in profile.starts, f"{name}: {cut} is no legal placement"
        cells = cut_mask(geometry, cut)
        assert not taken & cells, f"{name}: two MIG instances overlap"
        taken |= cells
    instances = [slice.instance for slice in slices if slice.instance is not None]
    assert len(instances) == len(set(instances)), f"{name}: an instance has two tenants"


def _validate_jobs(state: State) -> None:
    waiting = {job.id for job in state.jobs.values() if job.state == "waiting"}
    assert {id for _, _, id in state.waiting} == waiting, "the queue is not the waiting jobs"
    assert state.waiting == sorted(state.waiting), "the queue is out of order"
    assert len(state.waiting) == len(waiting), "a job waits twice"
    for job in state.jobs.values():
        active = job.state in ("starting", "running", "stopping")
        assert (job.lease is not None) == active, f"{job.id} is {job.state} with lease {job.lease}"
        assert (job.id in state.ended) == (job.state in ENDED), f"{job.id} is {job.state} and not listed so"
        if job.lease is not None:
            lease = state.leases[job.lease]
            assert (lease.job, lease.attempt) == (job.id, job.attempt), (
                f"{job.id} has the lease of another attempt"
            )


def _validate_leases(state: State) -> None:
    current: dict[str, str] = {}
    for lease in state.leases.values():
        if lease.state == "releasing":
            continue
        assert lease.job not in current, f"{lease.job} holds two leases"
        current[lease.job] = lease.id
        assert state.jobs[lease.job].lease == lease.id, (
            f"{lease.id} is held by a job that does not know of it"
        )
        slices = [slice for place in lease.places for slice in place.slices]
        parts = [(slice.gpu, slice.cut) for slice in slices]
        assert len(parts) == len(set(parts)), f"{lease.id} has two shares of one GPU"
        if lease.state == "bound":
            assert all(slice.cut is None or slice.instance for slice in slices), (
                f"{lease.id} is bound and lacks an instance"
            )
