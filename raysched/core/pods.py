"""Kubernetes clusters: what of one a request asks for, in pods that are all alike, or why it can't be.

A cluster is a site (`core/site.py`): its own scheduler chooses the nodes. Each of its GPUs is given out under
one resource: whole, as the MIG instance that it is, or in `parts`, of which a pod may have one: two replicas
may be of one GPU, and promise no more than one does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.product import matches
from raysched.core.profiles import alike
from raysched.core.request import WHOLE, Request, share_of_memory
from raysched.core.site import UNTYPED, Demand, Site, Unfit, profile_of
from raysched.core.words import asks, listing, number


@dataclass(frozen=True, slots=True)
class Offer:
    """What a pod can be given one of."""

    resource: str
    model: str
    parts: int
    mps: bool
    memory: int = field(compare=False)  # the same product has a little more or less under another driver

    @property
    def whole(self) -> bool:
        """Whether it is a GPU that the pod has for itself."""
        return not self.parts and not profile_of(self.model)

    @property
    def share(self) -> int:
        """The share of a GPU, or of a MIG instance, that one of it is."""
        return WHOLE // (self.parts or 1)


def offer(gpu: GPUInfo) -> Offer:
    """What a GPU of the cluster is given out as."""
    return Offer(gpu.resource, gpu.model, gpu.parts, "mps" in gpu.mechanisms, gpu.memory)


def demand(site: Site, request: Request) -> Demand:
    """What `request` (one way of sharing) asks of a cluster. Raises Unfit."""
    room = [node for node in site.nodes if request.cpus <= node.cpus and request.host_memory <= node.memory]
    if not room:
        raise Unfit("asks for CPUs and memory that no single node of the cluster has together")
    if not request.gpus:
        return Demand("", "", 0, request.nodes or 1, False, request.cpus, request.host_memory, WHOLE)
    gpus = sorted((gpu for node in site.nodes for gpu in node.gpus), key=lambda gpu: gpu.memory)
    often = Counter(map(offer, gpus))  # each with the least memory that one of it has
    last: Unfit | None = None
    for one in _suitable(often, request):
        try:
            return _counted(room, often, one, request)
        except Unfit as unfit:
            last = last or unfit
    raise last or Unfit(f"asks for {asks(request)}, and the cluster has none")


def _counted(room: Sequence[NodeInfo], often: Counter[Offer], one: Offer, request: Request) -> Demand:
    """Spread the request over pods that have the same count each, as few as will do."""
    have = [sum(offer(gpu) == one for gpu in node.gpus) for node in room]
    pods = request.nodes or next(
        (
            pods
            for pods in range(1, min(request.gpus, len(room)) + 1)
            if request.gpus % pods == 0 and sum(count >= request.gpus // pods for count in have) >= pods
        ),
        0,
    )
    if pods and request.gpus % pods:
        raise Unfit(f"nodes: {request.gpus} GPUs are not the same number on each of {pods} nodes")
    if not pods or not any(count >= request.gpus // pods for count in have):
        raise Unfit(
            f"gpus: asks for {asks(request)}, and the cluster has {sum(have)} such "
            f"GPU{'s' * (sum(have) != 1)}, {max(have)} on one node at most"
        )
    if one.parts and request.gpus // pods > 1:
        raise Unfit(
            f"gpus: asks for {asks(request)}; the GPUs here are shared by {one.parts} replicas each, two of "
            "which may be of one GPU, so a pod can have one: submit an array instead"
        )
    named = "" if one.model == UNTYPED or len(often) == 1 else one.model
    each = request.gpus // pods
    return Demand("gpu", named, each, pods, False, request.cpus, request.host_memory, one.share, one.resource)


# ---------------------------------------------------------------- which GPUs


def _suitable(often: Counter[Offer], request: Request) -> Iterator[Offer]:
    """What will do, the best first. Raises Unfit."""
    if not often:
        raise Unfit(f"asks for {asks(request)}, and the cluster has no GPU")
    offers = [one for one in often if matches(one.model, request.gpu_types)]
    if not offers:
        there = listing(sorted({one.model for one in often}))
        raise Unfit(f"gpu_type: asks for {' or '.join(request.gpu_types)}, and there is only {there}")
    offers.sort(key=lambda one: (-often[one], one.model, one.resource))
    if request.sharing == "mig":
        return iter(_instances(offers, request))
    if request.sharing == "exclusive":
        return iter(_whole(offers, request))
    return iter(_replicas(offers, request))


def _whole(offers: list[Offer], request: Request) -> list[Offer]:
    found = [one for one in offers if one.whole]
    if not found:
        raise Unfit(
            f"asks for {asks(request)}, and no whole GPU is to be had: there is only {_named(offers)}"
        )
    return found


def _instances(offers: list[Offer], request: Request) -> list[Offer]:
    """The MIG instances that will do."""
    cut = [one for one in offers if profile_of(one.model) and not one.parts]
    field = "use_mig" if request.mig_profile is None else "mig_profile"
    what = request.mig_profile or f"at least {request.memory or 0} MiB"
    if not cut:
        raise Unfit(f"{field}: asks for {what}, and no node of the cluster offers MIG instances")
    if request.mig_profile is None and request.memory is None:
        raise Unfit(f"{field}: MIG instances of a cluster are found by mig_profile or by gpu_memory")
    if request.mig_profile is not None:
        found = [one for one in cut if alike(profile_of(one.model), request.mig_profile)]
    else:
        found = [one for one in cut if one.memory >= (request.memory or 0)]
        found.sort(key=lambda one: one.memory)
    if not found:
        have = listing(sorted({profile_of(one.model) for one in cut}))
        raise Unfit(f"{field}: asks for {what}, and the cluster has {have}")
    return found


def _replicas(offers: list[Offer], request: Request) -> list[Offer]:
    """Replicas of shared GPUs that will do: by MPS, which holds their memory, before by time-slicing."""
    shared = [one for one in offers if one.parts and not profile_of(one.model)]
    if not shared:
        raise Unfit(
            f"asks for {asks(request)}, and no GPU of the cluster is shared: give the NVIDIA device plugin "
            f"replicas (MPS or time-slicing), or ask for {_other(offers)}"
        )
    if request.isolation == "hard" or request.sharing == "mps":
        shared = [one for one in shared if one.mps]
        if not shared:
            raise Unfit(
                f"isolation: hard can't be kept for {asks(request)}: the cluster shares its GPUs by "
                f"time-slicing, which holds nothing; ask for {_other(offers)} or isolation: soft"
                if request.isolation == "hard"
                else "sharing: mps is asked for, and the cluster shares its GPUs by time-slicing only"
            )
    if request.sharing == "time_slice":
        shared = [one for one in shared if not one.mps]
        if not shared:
            raise Unfit("sharing: time_slice is asked for, and the cluster shares its GPUs by MPS only")
    found = [one for one in shared if _share(one, request) <= one.share]
    if not found:
        _too_large(shared, request)
    return sorted(found, key=lambda one: (not one.mps, one.share))


def _too_large(shared: list[Offer], request: Request) -> None:
    """Raise Unfit for a share that no replica is."""
    largest = max(shared, key=lambda one: one.share)
    if request.memory is not None and not any(one.memory for one in shared):
        raise Unfit("gpu_memory: the nodes do not tell how much memory their GPUs have: ask for gpu_fraction")
    asked = "gpu_fraction" if request.memory is None else "gpu_memory"
    size = f" ({largest.memory // largest.parts} MiB)" if largest.memory else ""
    raise Unfit(
        f"{asked}: asks for {asks(request)}; the GPUs here are shared by {largest.parts} replicas each, of "
        f"which a pod can have one: the largest share is 1/{largest.parts} = {number(largest.share)}{size}"
    )


def _share(one: Offer, request: Request) -> int:
    """The share that is needed of such a GPU; more than there is if nobody knows its memory."""
    if request.memory is None:
        return request.share or 0
    if not one.memory:
        return WHOLE + 1
    enough = request.memory * one.parts <= one.memory
    by_memory = one.share if enough else max(one.share + 1, share_of_memory(request.memory, one.memory))
    return max(request.share or 0, by_memory)


def _other(offers: list[Offer]) -> str:
    """What else can be asked for."""
    cut = sorted({profile_of(one.model) for one in offers} - {""})
    return f"mig_profile: {cut[0]}" if cut else "a whole GPU"


def _named(offers: list[Offer]) -> str:
    """What there is, in words."""
    words = {
        f"MIG {profile_of(one.model)}"
        if profile_of(one.model)
        else f"{one.model} in {one.parts} shares (replicas)"
        for one in offers
    }
    return listing(sorted(words))
