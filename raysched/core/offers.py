"""What a Kubernetes cluster gives out, and which of it will do for a request, the best first.

Each GPU that a node tells of is given out in one way (`node.Way`): by a device plugin, whole, as the MIG
instance that it is, or in equal `parts`; in shares of any size by KAI Scheduler, HAMi or Volcano; or by DRA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from raysched.core.node import GPUInfo, Mechanism, Way
from raysched.core.product import matches
from raysched.core.profiles import alike
from raysched.core.request import WHOLE, Request, share_of_memory
from raysched.core.site import Unfit, profile_of
from raysched.core.words import asks, listing, number

SHARERS: tuple[Way, ...] = ("kai", "hami", "volcano")
"""The ways that give out shares of any size."""
INSTALL = "install HAMi or KAI Scheduler, give the NVIDIA device plugin replicas (MPS or time-slicing)"
"""What a cluster needs that shares no GPU."""
INSTALL_HARD = "install HAMi, or give the NVIDIA device plugin replicas under MPS"
"""What a cluster needs that holds nobody to a share."""

_HOLDING: tuple[Mechanism, ...] = ("nvfractions", "hami", "mps")
_STRENGTH: tuple[Mechanism | None, ...] = (*_HOLDING, None)
"""What holds a pod to its share, the strongest first; None: nothing does."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a pod can be given one of. `held`: what holds it to its share, None where nothing does."""

    resource: str
    model: str
    parts: int
    way: Way
    held: Mechanism | None
    memory: int = field(compare=False)  # the same product has a little more or less under another driver

    @property
    def profile(self) -> str:
        """The MIG profile that it is; empty for none."""
        return profile_of(self.model)

    @property
    def whole(self) -> bool:
        """Whether a pod can have a GPU of it for itself."""
        return not self.parts and not self.profile

    @property
    def shared(self) -> bool:
        """Whether a pod can have a part of a GPU."""
        return not self.profile and (self.parts > 0 or self.way in SHARERS)

    @property
    def share(self) -> int:
        """The largest share of a GPU, or of a MIG instance, that a pod gets with one of it."""
        return WHOLE // (self.parts or 1)


def offer(gpu: GPUInfo) -> Offer:
    """What a GPU of the cluster is given out as."""
    held: Mechanism | None = next((one for one in _HOLDING if one in gpu.mechanisms), None)
    return Offer(gpu.resource, gpu.model, gpu.parts, gpu.way, held, gpu.memory)


def suitable(often: Counter[Offer], request: Request) -> Iterator[Offer]:
    """Which of these (and how many there are of each) will do, the best first. Raises Unfit."""
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
    return iter(_parts(offers, request))


def share_needed(one: Offer, request: Request) -> int:
    """The share that is needed of such a GPU; more than there is if nobody knows its memory."""
    if request.memory is None:
        return request.share or 0
    if not one.memory:
        return WHOLE + 1
    enough = request.memory * (one.parts or 1) <= one.memory
    if one.parts:
        by_memory = one.share if enough else max(one.share + 1, share_of_memory(request.memory, one.memory))
    else:
        by_memory = -(-request.memory * WHOLE // one.memory)  # more than all where it is not enough
    return max(request.share or 0, by_memory)


# ---------------------------------------------------------------- whole GPUs and MIG instances


def _whole(offers: list[Offer], request: Request) -> list[Offer]:
    found = [one for one in offers if one.whole]
    if not found:
        raise Unfit(
            f"asks for {asks(request)}, and no whole GPU is to be had: there is only {_named(offers)}"
        )
    return found


def _instances(offers: list[Offer], request: Request) -> list[Offer]:
    """The MIG instances that will do."""
    cut = [one for one in offers if one.profile and not one.parts]
    field = "use_mig" if request.mig_profile is None else "mig_profile"
    what = request.mig_profile or f"at least {request.memory or 0} MiB"
    if not cut:
        raise Unfit(f"{field}: asks for {what}, and no node of the cluster offers MIG instances")
    if request.mig_profile is None and request.memory is None:
        raise Unfit(f"{field}: MIG instances of a cluster are found by mig_profile or by gpu_memory")
    if request.mig_profile is not None:
        found = [one for one in cut if alike(one.profile, request.mig_profile)]
    else:
        found = [one for one in cut if one.memory >= (request.memory or 0)]
        found.sort(key=lambda one: one.memory)
    if not found:
        have = listing(sorted({one.profile for one in cut}))
        raise Unfit(f"{field}: asks for {what}, and the cluster has {have}")
    return found


# ---------------------------------------------------------------- parts of GPUs


def _parts(offers: list[Offer], request: Request) -> list[Offer]:
    """Parts of GPUs that will do: what holds a pod to its share before what does not."""
    shared = [one for one in offers if one.shared]
    if not shared:
        raise Unfit(f"asks for {asks(request)}, and {_unshared(offers)}, or ask for {_other(offers)}")
    shared = _of_kind(shared, offers, request)
    found = [one for one in shared if share_needed(one, request) <= one.share]
    if not found:
        _too_large(shared, request)
    return sorted(found, key=lambda one: (_STRENGTH.index(one.held), bool(one.parts), one.share))


def _of_kind(shared: list[Offer], offers: list[Offer], request: Request) -> list[Offer]:
    """Those that share as the request says. Raises Unfit."""
    if request.sharing == "mps":
        found = [one for one in shared if one.parts and one.held == "mps"]
        if not found:
            raise Unfit(f"sharing: mps is asked for, and {_how(shared)}: give the NVIDIA device plugin "
                        "replicas under MPS, or leave out sharing")  # fmt: skip
        return found
    if request.isolation == "hard":
        found = [one for one in shared if one.held is not None]
        if not found:
            raise Unfit(
                f"isolation: hard can't be kept for {asks(request)}: {_how(shared)}, which holds nothing; "
                f"{INSTALL_HARD}, or ask for {_other(offers)} or isolation: soft"
            )
        return found
    if request.sharing == "time_slice":
        found = [one for one in shared if one.parts and one.held is None]
        if not found:
            raise Unfit(f"sharing: time_slice is asked for, and {_how(shared)}: give the NVIDIA device "
                        "plugin replicas by time-slicing, or leave out sharing")  # fmt: skip
        return found
    return shared


def _too_large(shared: list[Offer], request: Request) -> None:
    """Raise Unfit for a share that none of them has."""
    largest = max(shared, key=lambda one: (one.share, one.memory))
    if request.memory is not None and not any(one.memory for one in shared):
        raise Unfit("gpu_memory: the nodes do not tell how much memory their GPUs have: ask for gpu_fraction")
    asked = "gpu_fraction" if request.memory is None else "gpu_memory"
    if not largest.parts:
        raise Unfit(f"{asked}: asks for {asks(request)}, and the largest GPU has {largest.memory} MiB")
    size = f" ({largest.memory // largest.parts} MiB)" if largest.memory else ""
    raise Unfit(
        f"{asked}: asks for {asks(request)}; the GPUs here are shared by {largest.parts} replicas each, of "
        f"which a pod can have one: the largest share is 1/{largest.parts} = {number(largest.share)}{size}"
    )


# ---------------------------------------------------------------- words


def _unshared(offers: list[Offer]) -> str:
    """That nothing is shared, and what to do."""
    if all(one.way == "dra" for one in offers):
        return (
            "the cluster gives its GPUs out by DRA, where NVIDIA's driver counts no parts of one: have HAMi "
            "or the NVIDIA device plugin serve such nodes"
        )
    return f"no GPU of the cluster is shared: {INSTALL}"


def _how(shared: list[Offer]) -> str:
    """How the cluster shares its GPUs."""
    return f"the cluster shares its GPUs by {listing(sorted({sharing_of(one) for one in shared}))}"


def sharing_of(one: Offer) -> str:
    """In which way parts of it are given out."""
    if one.parts:
        return "MPS" if one.held == "mps" else "time-slicing"
    name = {"kai": "KAI Scheduler", "hami": "HAMi", "volcano": "Volcano vGPU"}[one.way]
    return f"{name} without a limit" if one.held is None else name


def _other(offers: list[Offer]) -> str:
    """What else can be asked for."""
    cut = sorted({one.profile for one in offers} - {""})
    return f"mig_profile: {cut[0]}" if cut else "a whole GPU"


def _named(offers: list[Offer]) -> str:
    """What there is, in words."""
    words = {
        f"MIG {one.profile}" if one.profile else f"{one.model} in {one.parts} shares (replicas)"
        for one in offers
    }
    return listing(sorted(words))
