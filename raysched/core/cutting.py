"""Whether the GPUs of a lease are cut as it needs them, and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator

from raysched.core import facts
from raysched.core.cuts import busy_instances, cut_mask, overlapping
from raysched.core.facts import Fact
from raysched.core.lease import Lease, Place, Slice
from raysched.core.mig import DAEMON, Cut, Instance, Layout
from raysched.core.node import GPU, NodeInfo
from raysched.core.state import State

REFUSAL = 600_000
"""Milliseconds for which what a driver refused is not asked of it again."""


def instances(state: State, lease: Lease, seen: NodeInfo | None = None) -> tuple[str, ...] | None:
    """The UUIDs of a lease's MIG instances, one a slice, none where it needs none; None while its GPUs are
    not cut as it needs them. `seen` is news of one of its nodes."""
    found: list[str] = []
    for place, slice in _slices(lease):
        layout = _layout(state, place, slice, seen)
        if bool(layout.mps) != (lease.sharing == "mps"):
            return None
        if slice.cut is None:
            if layout.enabled:
                return None
            continue
        there = _at(layout, slice.cut)
        if there is None:
            return None
        found.append(there.uuid)
        if is_layout(state, lease) and _others(state, place, slice, layout):
            return None
    return tuple(found)


def is_layout(state: State, lease: Lease) -> bool:
    """Whether a lease is there to have a GPU cut, and ends when it is."""
    job = state.jobs.get(lease.job)
    return job is not None and job.kind == "layout"


def _others(state: State, place: Place, slice: Slice, layout: Layout) -> bool:
    """Whether a GPU has instances that nobody holds."""
    held = state.nodes[place.node].gpus[slice.gpu].held_cuts()
    return any(there.cut not in held for there in layout.instances)


def pipes(state: State, lease: Lease, seen: NodeInfo | None = None) -> tuple[str, ...]:
    """The pipe directories of the MPS daemons of a lease, one a slice; none where it is not under MPS."""
    if lease.sharing != "mps":
        return ()
    return tuple(_layout(state, place, slice, seen).mps for place, slice in _slices(lease))


def given(lease: Lease) -> tuple[str, ...]:
    """The UUIDs of the instances that a bound lease has."""
    return tuple(slice.instance for _, slice in _slices(lease) if slice.instance is not None)


def _slices(lease: Lease) -> Iterator[tuple[Place, Slice]]:
    return ((place, slice) for place in lease.places for slice in place.slices)


def _layout(state: State, place: Place, slice: Slice, seen: NodeInfo | None) -> Layout:
    """How a GPU is cut now; one that its node no longer reports is as it was last seen."""
    known = state.nodes[place.node].gpus[slice.gpu].info.layout
    if seen is None or seen.name != place.node:
        return known
    return next((gpu.layout for gpu in seen.gpus if gpu.uuid == slice.gpu), known)


def _at(layout: Layout, cut: Cut) -> Instance | None:
    return next((there for there in layout.instances if there.cut == cut), None) if layout.enabled else None


def broken(lease: Lease, seen: NodeInfo) -> str | None:
    """What of a bound lease is no longer as it was given, on a node that is now as `seen` says."""
    layouts = {gpu.uuid: gpu.layout for gpu in seen.gpus}
    for place, slice in _slices(lease):
        layout = layouts.get(slice.gpu) if place.node == seen.name else None
        if layout is None:
            continue
        if lease.sharing == "mps" and layout.mps != slice.pipe:
            return f"the MPS daemon of {slice.gpu} on {place.node} is gone: nothing holds its tenants now"
        if slice.cut is None and layout.enabled:
            return f"{slice.gpu} on {place.node} was turned to MIG mode by somebody else"
        if slice.cut is not None:
            there = _at(layout, slice.cut)
            if there is None or there.uuid != slice.instance:
                return f"its MIG instance {slice.instance} of {slice.gpu} on {place.node} is gone"
    return None


def missing_cuts(gpu: GPU, slices: tuple[Slice, ...]) -> list[Cut]:
    """The placements of these slices where no instance exists yet."""
    return [slice.cut for slice in slices if slice.cut is not None and gpu.instance(slice.cut) is None]


def needs(lease: Lease, gpu: GPU, cut: Cut | None) -> bool:
    """Whether a lease that is not bound yet needs the instance at `cut` made or destroyed, or (without one)
    the MIG mode of the GPU switched, or its MPS daemon."""
    if cut == DAEMON:
        return lease.sharing == "mps"
    slices, geometry = gpu.tenants[lease.id], gpu.info.mig
    mig = lease.sharing == "mig"
    if cut is None or not mig:
        return gpu.info.layout.enabled != mig
    if geometry is None:
        return True
    cells = cut_mask(geometry, cut)
    return any(cells & cut_mask(geometry, missing) for missing in missing_cuts(gpu, slices))


def steps(gpu: GPU, slice: Slice) -> str:
    """What has to be done to a GPU before a slice of it can be used; empty where nothing has."""
    layout, geometry = gpu.info.layout, gpu.info.mig
    if slice.cut is None:
        return "turns its MIG mode off" if layout.enabled else ""
    if not layout.enabled:
        return "turns the GPU to MIG mode, creates the instance"
    if gpu.instance(slice.cut) is not None:
        return "takes a free instance"
    if geometry and overlapping(geometry, slice.cut, layout.instances):
        return "destroys free instances in the way, creates the instance"
    return "creates the instance"


def waited_for(state: State, lease: Lease) -> list[tuple[str, str, Cut | None]]:
    """The node, GPU and placement of each instance that a held lease still waits for; without a placement it
    is the MIG mode."""
    found: list[tuple[str, str, Cut | None]] = []
    for place, slice in _slices(lease):
        gpu = state.nodes[place.node].gpus[slice.gpu]
        if gpu.info.layout.enabled != (slice.cut is not None):
            found.append((place.node, slice.gpu, None))
        elif lease.sharing == "mps" and not gpu.info.layout.mps:
            found.append((place.node, slice.gpu, DAEMON))
        elif slice.cut is not None and gpu.instance(slice.cut) is None:
            found.append((place.node, slice.gpu, slice.cut))
    return found


def hindrance(state: State, lease: Lease) -> str | None:
    """Why the GPUs of a held lease can't be cut for it now, or None."""
    for node, uuid in dict.fromkeys((place.node, slice.gpu) for place, slice in _slices(lease)):
        gpu = state.nodes[node].gpus[uuid]
        if not gpu.present:
            return f"{uuid} is no longer there"
        reason = hindered(gpu, lease)
        if reason is not None:
            return f"{uuid} on {node} can't be cut: {reason}"
    return None


def hindered(gpu: GPU, lease: Lease) -> str | None:
    """Why one GPU can't be cut for a held lease now, or None."""
    mig = lease.sharing == "mig"
    if gpu.info.layout.enabled != mig:
        if gpu.info.mig is None or not gpu.info.mig.switchable:
            return "its MIG mode can't be switched here"
        if gpu.used_by_strangers:
            return "processes without a lease use it"
    elif mig and gpu.info.mig is not None:
        for cut in missing_cuts(gpu, gpu.tenants[lease.id]):
            if overlapping(gpu.info.mig, cut, busy_instances(gpu)):
                return "processes without a lease use an instance in the way"
    return None


def lapse(state: State, now: int) -> Iterator[Fact]:
    """Let what a driver refused long ago be tried again."""
    before = now - REFUSAL
    for node in state.nodes.values():
        for uuid, gpu in node.gpus.items():
            if gpu.refusals and any(refusal.at <= before for refusal in gpu.refusals):
                yield facts.RefusalLapsed(now, node.info.name, uuid, before)
