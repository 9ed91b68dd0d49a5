"""Sites: clusters whose own scheduler chooses the GPUs, such as Slurm. A job is handed over whole and waits
there; where it was put is learned once it runs (`commands.Placed`). This says what of a site a request asks
for, in the site's own units, or why the site can never give it.

Nodes of a site are those whose `NodeInfo.site` is true. A GPU's model is the site's name of its type, `parts`
the number of equal parts (Slurm's shards) in which it is given out. A MIG instance that the site has cut is a
device of its own, known by the profile that its type's name ends with.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from raysched.core.lease import Place
from raysched.core.node import GPUInfo, NodeInfo, Way
from raysched.core.product import matches
from raysched.core.profiles import alike
from raysched.core.request import WHOLE, Request, Sharing, share_of_memory
from raysched.core.words import asks, listing, number

UNTYPED = "GPU"
"""The model of a GPU whose type the site does not name."""
NOWHERE = Place("", (), 0, 0)
"""The place of a launch at a site, before anybody knows it."""

_PROFILE = re.compile(r"(\d+g\.(\d+)gb((?:[+-][a-z.]+)*))$", re.IGNORECASE)

Kind = Literal["", "gpu", "shard", "mps"]
Device = tuple[Kind, str, int, int]
"""Kind and model of a device, the share that is held of it, and how many of the site's parts that is."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job asks of a site: `count` devices or parts (`kind`; none: no GPU) of the site's type `type`
    (empty: any) on each of `nodes` nodes, or (`together`) on all of them together. `cpus` are ten-thousandths
    of a core and `memory` MiB on each node, 0: what the site gives. It then holds `share` of each GPU.
    `resource` is the name under which Kubernetes gives the devices out, `way` how; `gpu_memory` are MiB of
    each GPU, 0 where only the share is said or all of it is asked for."""

    kind: Kind
    type: str
    count: int
    nodes: int
    together: bool
    cpus: int
    memory: int
    share: int
    resource: str = ""
    way: Way = ""
    gpu_memory: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """The nodes of a site; another object once one of them is described anew, so that what was worked out for
    this one holds."""

    nodes: tuple[NodeInfo, ...]

    @property
    def pods(self) -> bool:
        """Whether it is a Kubernetes cluster, which runs pods (`core/pods.py`)."""
        return any(node.containers for node in self.nodes)


class Unfit(Exception):
    """The site can never give what was asked; the message says why, as a refusal does."""


def profile_of(model: str) -> str:
    """The MIG profile that a type's name ends with, such as 3g.39gb of a100_3g.39gb; else empty."""
    found = _PROFILE.search(model)
    return found[1].lower() if found else ""


def sharing_at(request: Request) -> Sharing:
    """How a lease at a site shares its devices: an instance that the site has cut is had whole."""
    return "exclusive" if request.sharing == "mig" else request.sharing


@lru_cache(maxsize=1024)
def demand(site: Site, request: Request) -> Demand:
    """What `request` (one way of sharing) asks of a site. Raises Unfit."""
    if request.container:
        raise Unfit("image: jobs at a site run without containers in this version: remove it")
    nodes = site.nodes
    room = [node for node in nodes if request.cpus <= node.cpus and request.host_memory <= node.memory]
    if not room:
        raise Unfit(too_large(nodes, request, "site"))
    if not request.gpus:
        return _counted(request, "", "", WHOLE, 1, [1 for _ in room])
    last: Unfit | None = None
    for kind, model, share, parts in _devices(nodes, request):
        have = [count for node in room if (count := _count(node, model))]
        try:
            return _counted(request, kind, _type(nodes, model), share, parts, have)
        except Unfit as unfit:
            last = last or unfit
    raise last or Unfit(f"asks for {asks(request)}, and the site has none")


def too_large(nodes: Sequence[NodeInfo], request: Request, what: str) -> str:
    """Why no node has the CPUs and the memory."""
    cpus, memory = max(node.cpus for node in nodes), max(node.memory for node in nodes)
    return (
        f"asks for CPUs and memory that no single node of the {what} has together: {number(request.cpus)} "
        f"CPUs and {request.host_memory} MiB, and at most {number(cpus)} CPUs and {memory} MiB are there"
    )


def _count(node: NodeInfo, model: str) -> int:
    return sum(gpu.model == model for gpu in node.gpus)


def _type(nodes: Sequence[NodeInfo], model: str) -> str:
    """The type to name; none where all that the site has of this kind are one."""
    only = {gpu.model for node in nodes for gpu in node.gpus} == {model}
    return "" if model == UNTYPED or (only and not profile_of(model)) else model


def _counted(request: Request, kind: Kind, model: str, share: int, parts: int, have: list[int]) -> Demand:
    """Spread the request over nodes that have so many devices each."""
    have = sorted(have, reverse=True)
    wanted = request.gpus
    nodes = request.nodes or _fewest(have, wanted)
    each, rest = divmod(wanted, nodes or 1)
    together = rest > 0 or (request.nodes is None and nodes > 1 and have[nodes - 1] < each)
    few = not nodes or len(have) < nodes
    if few or (kind and (sum(have[:nodes]) < wanted or (not together and have[nodes - 1] < each))):
        if request.nodes is not None and len(have) < nodes:
            with_them = " with such GPUs" if kind else ""
            raise Unfit(f"nodes: asks for {nodes}, and the site has {len(have)}{with_them}")
        most = sum(have) if request.nodes is None else have[0] if have else 0
        where = "the site has" if request.nodes is None else "its largest node has"
        raise Unfit(f"gpus: asks for {asks(request)}, and {where} {most} such GPU{'s' * (most != 1)}")
    count = wanted if together else each
    units = count * parts if kind else 0
    return Demand(kind, model, units, nodes, together, request.cpus, request.host_memory, share)


def _fewest(have: list[int], wanted: int) -> int:
    """On how many nodes, of those that have the most, so many devices are; 0 where there are not as many."""
    total = 0
    for nodes, count in enumerate(have, 1):
        total += count
        if total >= wanted:
            return nodes
    return 0 if wanted else 1


# ---------------------------------------------------------------- which devices


def _devices(nodes: tuple[NodeInfo, ...], request: Request) -> Iterator[Device]:
    """The devices that will do, the best first. Raises Unfit."""
    gpus = {gpu.model: gpu for node in nodes for gpu in node.gpus}
    if not gpus:
        raise Unfit(f"asks for {asks(request)}, and the site has no GPU")
    models = [model for model in gpus if matches(model, request.gpu_types)]
    if not models:
        have = listing(sorted(gpus))
        raise Unfit(f"gpu_type: asks for {' or '.join(request.gpu_types)}, and the site has only {have}")
    often = Counter(gpu.model for node in nodes for gpu in node.gpus)
    models.sort(key=lambda model: (-often[model], model))
    if request.sharing == "mig":
        for model in _cut(models, gpus, request):
            yield "gpu", model, WHOLE, 1
        return
    whole = [model for model in models if not profile_of(model)]
    if not whole:
        raise Unfit(f"asks for {asks(request)}, and the site has only MIG instances: {listing(models)}")
    if request.sharing == "exclusive":
        for model in whole:
            yield "gpu", model, WHOLE, 1
    else:
        yield from _shared(whole, gpus, request)


def _cut(models: list[str], gpus: dict[str, GPUInfo], request: Request) -> list[str]:
    """The types of MIG instances that will do."""
    cut = [model for model in models if profile_of(model)]
    field = "use_mig" if request.mig_profile is None else "mig_profile"
    what = request.mig_profile or f"at least {request.memory or 0} MiB"
    if not cut:
        raise Unfit(f"{field}: asks for {what}, and no GPU type of the site ends like 1g.10gb")
    if request.mig_profile is None and request.memory is None:
        raise Unfit(f"{field}: a site's MIG instances are found by mig_profile or by gpu_memory")
    if request.mig_profile is not None:
        found = [model for model in cut if alike(profile_of(model), request.mig_profile)]
    else:
        found = [model for model in cut if gpus[model].memory >= (request.memory or 0)]
        found.sort(key=lambda model: gpus[model].memory)
    if not found:
        have = listing(sorted({profile_of(model) for model in cut}))
        raise Unfit(f"{field}: asks for {what}, and the site has {have}")
    return found


def _shared(models: list[str], gpus: dict[str, GPUInfo], request: Request) -> Iterator[Device]:
    """Parts of one GPU: Slurm's shards, or MPS."""
    if request.sharing == "time_slice":
        raise Unfit("sharing: time_slice is not to be had at a site; ask for gpu_fraction without sharing")
    kind: Kind = "mps" if request.sharing == "mps" else "shard"
    if request.isolation == "hard":
        raise Unfit(
            f"isolation: hard can't be kept for {asks(request)}: a site's {kind}s do not hold memory; "
            "ask for a mig_profile, a whole GPU or isolation: soft"
        )
    if request.gpus > 1:
        raise Unfit(
            f"gpus: asks for {asks(request)}, and a site gives parts of one GPU a job; "
            "submit an array, or ask for whole GPUs"
        )
    steps = {model: _steps(gpus[model], kind) for model in models}
    offered = [model for model in models if steps[model]]
    if not offered:
        raise Unfit(f"asks for {asks(request)}, and the site offers no gres/{kind}; ask for a whole GPU")
    shares = {model: _share(gpus[model], request) for model in offered}
    known = [(model, share) for model, share in shares.items() if share is not None]
    if not known:
        raise Unfit(
            f"gpu_memory: the memory of {listing(offered)} is not known: name it in raysched.yaml under "
            "backends.slurm.gpu_memory, or ask for gpu_fraction"
        )
    fits = [(model, share) for model, share in known if share <= WHOLE]
    if not fits:
        most = max(gpus[model].memory for model, _ in known)
        raise Unfit(f"gpu_memory: asks for {request.memory} MiB of one GPU, and the largest has {most} MiB")
    for model, share in fits:
        parts = -(-share * steps[model] // WHOLE)
        yield kind, model, parts * WHOLE // steps[model], parts


def _steps(gpu: GPUInfo, kind: Kind) -> int:
    if kind == "shard":
        return gpu.parts
    return 100 if "mps" in gpu.mechanisms else 0


def _share(gpu: GPUInfo, request: Request) -> int | None:
    """The share that is needed of a GPU; None where that depends on memory that nobody knows."""
    if request.memory is None:
        return request.share or WHOLE
    if not gpu.memory:
        return None
    by_memory = request.memory * WHOLE // gpu.memory + (request.memory * WHOLE % gpu.memory > 0)
    return max(request.share or 0, by_memory, share_of_memory(request.memory, gpu.memory))


# ---------------------------------------------------------------- words

BY: dict[Way, str] = {
    "": "",
    "kai": " by KAI Scheduler",
    "hami": " by HAMi",
    "volcano": " by Volcano",
    "dra": " by claim",
}
"""Who gives the devices out."""


def worded(demand: Demand, request: Request) -> str:
    """What is asked of the site, as a plan says it: `2 x a100 on each of 2 nodes`."""
    if not demand.kind:
        return "CPUs and memory only" + (f", {demand.nodes} nodes" if demand.nodes > 1 else "")
    if demand.resource:
        kind = f" ({demand.type})" if demand.type else ""
        many = f", in each of {demand.nodes} pods" if demand.nodes > 1 else ""
        part = f"{number(demand.share)} of " if demand.way and demand.share < WHOLE else ""
        what = f"{demand.count} x {part}{demand.resource}{kind}{BY[demand.way]}"
        return f"{what}{_held(demand, request)}{many}"
    what = f"{demand.kind}:{demand.type}:{demand.count}" if demand.type else f"{demand.kind}:{demand.count}"
    where = f" on each of {demand.nodes} nodes" if demand.nodes > 1 else ""
    if demand.together:
        where = f" on {demand.nodes} nodes together"
    return f"{what}{where}{_held(demand, request)}"


def _held(demand: Demand, request: Request) -> str:
    asked = request.share if request.sharing in ("fraction", "mps") else None
    more = asked is not None and demand.share != asked
    return f", {number(demand.share)} of the GPU is held" if more else ""
