"""Every invariant of the ledger, asserted. The tests run it after each step."""

from __future__ import annotations

from raysched.core.jobs import ENDED
from raysched.core.node import GPU, Node
from raysched.core.request import WHOLE
from raysched.core.state import State


def validate(state: State) -> None:
    """Raise AssertionError with the broken rule if `state` breaks one."""
    for node in state.nodes.values():
        _validate_node(state, node)
    _validate_jobs(state)
    _validate_leases(state)


def _validate_node(state: State, node: Node) -> None:
    name = node.info.name
    held = [place for lease in state.leases.values() for place in lease.places if place.node == name]
    assert node.cpus_used == sum(place.cpus for place in held), f"{name}: CPUs held do not add up"
    assert node.memory_used == sum(place.memory for place in held), f"{name}: host memory does not add up"
    for gpu in node.gpus.values():
        _validate_gpu(state, gpu)


def _validate_gpu(state: State, gpu: GPU) -> None:
    name = gpu.info.uuid
    slices = {
        lease.id: slice
        for lease in state.leases.values()
        for place in lease.places
        for slice in place.slices
        if place.node == gpu.node and slice.gpu == name
    }
    assert gpu.tenants == slices, f"{name}: its tenants are not the leases on it"
    assert gpu.share_used == sum(slice.share for slice in slices.values()), f"{name}: shares do not add up"
    assert gpu.memory_used == sum(slice.memory for slice in slices.values()), (
        f"{name}: memory does not add up"
    )
    assert gpu.share_used <= WHOLE, f"{name} is granted beyond its compute"
    assert gpu.memory_used <= gpu.info.memory or not gpu.present, f"{name} is granted beyond its memory"
    assert (gpu.sharing is None) == (not gpu.tenants), (
        f"{name}: the first tenant sets the mode, the last frees it"
    )
    if gpu.sharing == "exclusive":
        assert len(gpu.tenants) == 1, f"{name} is exclusive and has several tenants"
    for lease in gpu.tenants:
        assert state.leases[lease].sharing == gpu.sharing, f"{name}: a tenant of another mode is on it"


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
        uuids = [(place.node, slice.gpu) for place in lease.places for slice in place.slices]
        assert len(uuids) == len(set(uuids)), f"{lease.id} has two shares of one GPU"
