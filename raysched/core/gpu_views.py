"""What the API shows of nodes and GPUs, as plain JSON values: the shapes of docs/api.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from raysched.core.cuts import busy_instances, room_left
from raysched.core.layouts import Steps
from raysched.core.lease import Lease
from raysched.core.mig import Cut, Geometry
from raysched.core.node import GPU, Node
from raysched.core.state import State
from raysched.core.words import seconds, stamp
from raysched.errors import NotFound

View = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """What was last measured of a GPU, or of a tenant on it: memory in MiB, and the part of the GPU's compute
    that was busy, in ten-thousandths, lately and as the `mean` of the last minute; of a GPU its power in
    watts and its temperature in degrees Celsius. None: not measured."""

    memory: int | None = None
    busy: int | None = None
    mean: int | None = None
    power: int | None = None
    temperature: int | None = None


@dataclass(frozen=True, slots=True)
class Stranger:
    """A process on a GPU on which its lease has no part, or that has none. `memory` in MiB, None: not told;
    `lease` is the one that its environment names."""

    pid: int
    name: str
    user: str
    memory: int | None
    lease: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What was last measured: of each GPU, of each lease by (GPU, lease), and who else is on a GPU."""

    gpus: Mapping[str, Reading] = field(default_factory=dict[str, Reading])
    tenants: Mapping[tuple[str, str], Reading] = field(default_factory=dict["tuple[str, str]", Reading])
    strangers: Mapping[str, tuple[Stranger, ...]] = field(default_factory=dict[str, "tuple[Stranger, ...]"])


NOTHING = Reading()


def gpus_view(state: State, usage: Usage, now: int) -> View:
    """Every node with its GPUs and their tenants."""
    nodes = sorted(state.nodes.values(), key=lambda node: node.info.name)
    return {
        "simulated": any(node.info.simulated for node in nodes),
        "nodes": [_node_view(state, node, usage, now) for node in nodes],
    }


def node_view(state: State, name: str, usage: Usage, now: int) -> View:
    """One node. Raises NotFound."""
    if name not in state.nodes:
        raise NotFound(f"no node {name}: `raysched gpus` lists those that are known")
    return _node_view(state, state.nodes[name], usage, now)


def _node_view(state: State, node: Node, usage: Usage, now: int) -> View:
    return {
        "name": node.info.name,
        "alive": node.lost is None,
        "cordoned": node.draining,
        "closed": node.info.closed,
        "lease": node.info.lease or None,
        "simulated": node.info.simulated,
        "driver": node.info.driver,
        "cuda": node.info.cuda,
        "problem": node.info.problem,
        "backends": list(node.backends),
        "cpus": {"total": node.info.cpus / 10_000, "used": node.cpus_used / 10_000},
        "memory_mib": {"total": node.info.memory, "used": node.memory_used},
        "gpus": [_gpu_view(state, gpu, usage, now) for gpu in node.gpus.values()],
    }


def _gpu_view(state: State, gpu: GPU, usage: Usage, now: int) -> View:
    reading = usage.gpus.get(gpu.info.uuid, NOTHING)
    return {
        "uuid": gpu.info.uuid,
        "index": gpu.info.index,
        "model": gpu.info.model,
        "pci": gpu.info.pci,
        "capability": gpu.info.capability,
        "links": {link.gpu: link.path for link in gpu.info.links},
        "mode": gpu.mode,
        "sharing": gpu.sharing,
        "present": gpu.present,
        "outside": gpu.outside,
        "fault": gpu.info.fault,
        "mechanisms": list(gpu.info.mechanisms),
        "replicas": gpu.info.replicas,
        "share_used": gpu.share_used,
        "share_free": gpu.share_free,
        "memory_mib": gpu.info.memory,
        "memory_held_mib": gpu.memory_used,
        "memory_free_mib": gpu.memory_free,
        "memory_used_mib": reading.memory,
        "foreign_mib": gpu.foreign,
        "busy": reading.busy,
        "busy_mean": reading.mean,
        "power_w": reading.power,
        "temperature_c": reading.temperature,
        "strangers": [_stranger_view(each) for each in _strangers(gpu, usage)],
        "mig": _mig_view(state, gpu, gpu.info.mig) if gpu.info.mig else None,
        "tenants": [_tenant_view(state, gpu, state.leases[lease], usage, now) for lease in gpu.tenants],
    }


def _strangers(gpu: GPU, usage: Usage) -> Iterator[Stranger]:
    """Who is on a GPU and has no part of it."""
    there = usage.strangers.get(gpu.info.uuid, ())
    return (stranger for stranger in there if stranger.lease not in gpu.tenants)


def _stranger_view(stranger: Stranger) -> View:
    return {
        "pid": stranger.pid,
        "name": stranger.name,
        "user": stranger.user,
        "memory_mib": stranger.memory,
        "lease": stranger.lease,
    }


def _over_view(gpu: GPU, lease: Lease) -> View | None:
    """How far a tenant is beyond its share of the memory, and what follows."""
    over = next((over for over in gpu.over if over.lease == lease.id), None)
    if over is None:
        return None
    return {
        "used_mib": over.used,
        "held_mib": over.held,
        "since": stamp(over.since),
        "action": over.action,
        "ends": stamp(over.until),
    }


def _tenant_view(state: State, gpu: GPU, lease: Lease, usage: Usage, now: int) -> View:
    job = state.jobs[lease.job]
    slices = gpu.tenants[lease.id]
    reading = usage.tenants.get((gpu.info.uuid, lease.id), NOTHING)
    return {
        "job": job.id,
        "display": job.display,
        "kind": job.kind,
        "user": job.user,
        "backend": lease.backend,
        "state": "ending" if lease.state == "releasing" else job.state,
        "since": stamp(job.granted),
        "for_s": seconds(job.granted, None, now),
        "share": sum(slice.share for slice in slices),
        "memory_mib": sum(slice.memory for slice in slices),
        "memory_used_mib": reading.memory,
        "busy": reading.busy,
        "busy_mean": reading.mean,
        "over": _over_view(gpu, lease),
        "isolation": lease.isolation,
        "mechanism": lease.mechanism,
    }


# ---------------------------------------------------------------- MIG


def _mig_view(state: State, gpu: GPU, geometry: Geometry) -> View:
    """How a GPU is cut and for whom, and how many instances of each profile could be had beside that."""
    return {
        "enabled": gpu.info.layout.enabled,
        "switchable": geometry.switchable,
        "cells": geometry.cells,
        "instances": _instances_view(state, gpu, geometry),
        "fits": {profile.name: room_left(gpu, profile) for profile in geometry.profiles},
        "refusals": [refusal.reason for refusal in gpu.refusals],
    }


def _instances_view(state: State, gpu: GPU, geometry: Geometry) -> list[View]:
    """The instances that exist or are held, in the order of their start."""
    held = {slice.cut: lease for lease, own in gpu.tenants.items() for slice in own if slice.cut}
    strangers = {instance.cut for instance in busy_instances(gpu)}
    cuts = {*held, *(instance.cut for instance in gpu.info.layout.instances)}
    views: list[View] = []
    for cut in sorted(cuts, key=lambda cut: cut.start):
        lease = state.leases[held[cut]] if cut in held else None
        profile, there = geometry.profile(cut.profile), gpu.instance(cut)
        views.append(
            {
                "uuid": there.uuid if there else None,
                "profile": profile.name if profile else f"profile {cut.profile}",
                "start": cut.start,
                "size": profile.size if profile else None,
                "memory_mib": profile.memory if profile else None,
                "state": "held" if lease else "foreign" if cut in strangers else "free",
                "job": lease.job if lease else None,
                "display": state.jobs[lease.job].display if lease else None,
            }
        )
    return views


def layout_view(gpu: GPU, wanted: Steps, job: str | None) -> View:
    """What is done, or would be, until a GPU is cut as it shall be; `job` is the one that does it."""
    modes = {(False, True): "on", (True, False): "off"}
    return {
        "gpu": gpu.info.uuid,
        "node": gpu.node,
        "index": gpu.info.index,
        "model": gpu.info.model,
        "cells": gpu.info.mig.cells if gpu.info.mig else 0,
        "destroy": [_cut_view(gpu, cut) for cut in wanted.destroy],
        "mode": modes.get((gpu.info.layout.enabled, wanted.cuts is not None)),
        "create": [_cut_view(gpu, cut) for cut in wanted.create],
        "keep": [_cut_view(gpu, cut) for cut in wanted.keep],
        "job": job,
    }


def _cut_view(gpu: GPU, cut: Cut) -> View:
    profile = gpu.info.mig.profile(cut.profile) if gpu.info.mig else None
    return {
        "profile": profile.name if profile else f"profile {cut.profile}",
        "start": cut.start,
        "size": profile.size if profile else None,
        "memory_mib": profile.memory if profile else None,
    }


def profile_name(gpu: GPU | None, cut: Cut | None) -> str | None:
    """This driver's name of the profile of an instance."""
    profile = gpu.info.mig.profile(cut.profile) if gpu and cut and gpu.info.mig else None
    return profile.name if profile else None
