"""Where one request goes: best fit, and for a gang all places or none.

The rules in the order they are applied:
1. a GPU serves a request if `lack` finds nothing missing on it, a node if enough of its GPUs do and its CPUs
   and host memory suffice;
2. a request goes to one node if one can serve it, else (unless it says how many nodes) to as few as can;
3. shares go to the GPU with the least that is left, so that whole GPUs stay whole; whole GPUs come from the
   node with the fewest free ones, and from those that are not in MIG mode first; MIG instances go where
   `cuts` says; ties go to the lower index and the node's name.

Shares of one card are never several GPUs. MIG instances are devices of their own: several may lie on one GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count
from typing import Literal, NamedTuple

from raysched.core import cuts, pods, site
from raysched.core.clusters import among
from raysched.core.isolation import mechanism
from raysched.core.lease import Place, Slice
from raysched.core.mig import DAEMON, Cut, Layout, Profile
from raysched.core.node import GPU, GPUInfo, Node, NodeInfo
from raysched.core.product import matches
from raysched.core.profiles import profile_named, share_of, smallest_profile
from raysched.core.request import WHOLE, Request, Sharing, memory_of_share, share_of_memory
from raysched.core.state import State

LackKind = Literal[
    "type",
    "profile",
    "mechanism",
    "outside",
    "fault",
    "daemon",
    "taken",
    "tenants",
    "foreign",
    "share",
    "memory",
    "replicas",
    "slices",
    "kept",
    "sharing",
    "mode",
    "refused",
]
LASTING: frozenset[LackKind] = frozenset({"type", "profile", "mechanism", "mode"})
"""What no waiting changes."""


@dataclass(frozen=True, slots=True)
class Lack:
    """What one GPU lacks for a request: `have` and `need` in the unit of the kind (share, MiB, tenants)."""

    kind: LackKind
    have: int = 0
    need: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request fits now, how the GPUs are shared there, and the backend that would launch it. At a
    site there are no places yet: its own scheduler finds them."""

    backend: str
    sharing: Sharing
    places: tuple[Place, ...]


@dataclass(slots=True)
class Kept:
    """What is kept for jobs that wait longer: later ones may not have it.

    `gpus` maps (node, GPU) to the job that it is kept for, `nodes` a node whose CPUs or memory are waited
    for; `names` are the nodes of both.
    """

    gpus: dict[tuple[str, str], str] = field(default_factory=dict["tuple[str, str]", str])
    nodes: dict[str, str] = field(default_factory=dict[str, str])
    names: set[str] = field(default_factory=set[str])

    def keep_gpu(self, gpu: GPU, job: str) -> None:
        """Keep a GPU for a job."""
        self.gpus[gpu.node, gpu.info.uuid] = job
        self.names.add(gpu.node)

    def keep_host(self, node: Node, job: str) -> None:
        """Keep the CPUs and the memory of a node for a job."""
        self.nodes[node.info.name] = job
        self.names.add(node.info.name)

    def copy(self) -> Kept:
        """The same, which later changes leave as it is."""
        return Kept(dict(self.gpus), dict(self.nodes), set(self.names))


NOTHING_KEPT = Kept()
REMEMBERED = 1000
"""How many requests a node that does not change remembers what it offers to."""


@lru_cache(maxsize=4096)
def ways(request: Request) -> tuple[Request, ...]:
    """The ways of sharing that will do, the one that holds most first, and as it was asked last."""
    plain = replace(request, or_mig=False, or_mps=False)
    asked: dict[Sharing, bool] = {"mig": request.or_mig, "mps": request.or_mps}
    return (*(replace(plain, sharing=way) for way, will_do in asked.items() if will_do), plain)


def place(state: State, request: Request, kept: Kept = NOTHING_KEPT) -> Placement | None:
    """The best place for `request` now, or None where there is none."""
    for way in ways(request):
        for backend in backends(state, way):
            if there := site_of(state, backend):
                if asked(there, way) is not None:
                    return Placement(backend, site.sharing_at(way), ())
                continue
            places = _places(open_nodes(state, backend, way), way, kept)
            if places:
                return Placement(backend, way.sharing, places)
    return None


def sites(state: State) -> dict[str, site.Site]:
    """The sites that are reached, by backend."""
    if state.sites is None:
        found: dict[str, list[NodeInfo]] = {}
        for node in state.nodes.values():
            for backend in node.info.backends if node.info.site else ():
                found.setdefault(backend, []).append(node.info)
        state.sites = {backend: site.Site(tuple(nodes)) for backend, nodes in sorted(found.items())}
    return state.sites


def site_of(state: State, backend: str) -> site.Site | None:
    """The site that a backend reaches, if it reaches one."""
    return sites(state).get(backend)


def backends(state: State, request: Request) -> list[str]:
    """The backends that a request may be for, the preferred one first: of several clusters the one that has
    to find places for the fewest jobs of ours."""
    meant = [name for backend in request.backends for name in among(backend, sites(state))]
    return (
        sorted(meant, key=lambda name: state.unplaced[name]) if len(meant) > len(request.backends) else meant
    )


def asked(there: site.Site, request: Request) -> site.Demand | None:
    """What a request asks of a site, or None where that can never give it."""
    try:
        return demand(there, request)
    except site.Unfit:
        return None


def demand(there: site.Site, request: Request) -> site.Demand:
    """What a request asks of a site, in its own words. Raises site.Unfit."""
    return pods.demand(there, request) if there.pods else site.demand(there, request)


def open_nodes(state: State, backend: str, request: Request) -> list[Node]:
    """The nodes on which a backend may start something new for a request."""
    return [
        node
        for node in state.nodes.values()
        if node.lost is None and not node.draining and reaches(backend, node, request)
    ]


def reaches(backend: str, node: Node, request: Request) -> bool:
    """Whether a backend can start what a request is for on a node."""
    if backend == "vm" and request.node_selector and not selected(node, request):
        return False
    return backend in node.backends and (not request.container or bool(node.info.containers))


def selected(node: Node, request: Request) -> bool:
    """Whether a node has the labels that a request names."""
    return set(request.node_selector) <= {*node.info.labels, *node.labels}


def possible(state: State, request: Request) -> Request | None:
    """The way in which `request` would fit if nothing else ran, on the nodes that are known, or None."""
    for way in ways(request):
        for backend in backends(state, way):
            if there := site_of(state, backend):
                if asked(there, way) is not None:
                    return way
                continue
            nodes = [emptied(node) for node in state.nodes.values() if reaches(backend, node, way)]
            if _places(nodes, way, NOTHING_KEPT):
                return way
    return None


def emptied(node: Node) -> Node:
    """The node as it would be with no tenant, no stranger and no fault on it."""
    if node.empty is None:
        gpus = {uuid: GPU(_emptied(gpu.info), gpu.node) for uuid, gpu in node.gpus.items() if gpu.present}
        node.empty = Node(node.info, gpus)
    return node.empty


def _emptied(info: GPUInfo) -> GPUInfo:
    stays = info.layout.enabled and info.mig is not None and not info.mig.switchable
    return replace(info, fault="", layout=Layout(enabled=stays))


# ---------------------------------------------------------------- nodes


class Offer(NamedTuple):
    """Part of one GPU that a request could have; less cost is better."""

    cost: int
    slice: Slice


class Fit(NamedTuple):
    """A place on one node, and how good it is: what is left, free GPUs, the name (less is better)."""

    score: tuple[int, int, str]
    place: Place


class Room(NamedTuple):
    """What a node has for a request: its offers, the best first and no more than are asked for, and the place
    that all of the request would have."""

    request: Request
    offers: list[Offer]
    fit: Fit | None


def room(node: Node, request: Request, kept: Kept) -> Room:
    """What a node has for a request now."""
    return _room(node, request, kept, _number(request))


def _room(node: Node, request: Request, kept: Kept, number: int) -> Room:
    """The same, with the request's number. Where nothing is kept it is worked out once, until the node
    changes."""
    if node.info.name in kept.names:
        return room_now(node, request, kept)
    known = node.remembered.get(number)
    if known is None:
        if len(node.remembered) >= REMEMBERED:
            node.remembered.clear()
        known = node.remembered[number] = room_now(node, request, NOTHING_KEPT)
    return known


@lru_cache(maxsize=4096)
def _number(_: Request) -> int:
    """A number for a request: a key that takes no time to hash. It is never given to another one."""
    return next(_numbers)


_numbers = count()


def room_now(node: Node, request: Request, kept: Kept) -> Room:
    """What a node has for a request, worked out anew."""
    offers = _offers(node, request, kept)
    return Room(request, offers, _fit(node, request, kept, offers, request.gpus))


def _fit(node: Node, request: Request, kept: Kept, offers: list[Offer], number: int) -> Fit | None:
    """The place that the best `number` offers of a node make."""
    if len(offers) < number or not has_host_room(node, request, kept):
        return None
    taken = offers[:number]
    left = sum(offer.cost for offer in taken)
    free = sum(gpu.untouched for gpu in node.gpus.values())
    slices = tuple(offer.slice for offer in taken)
    return Fit((left, free, node.info.name), Place(node.info.name, slices, request.cpus, request.host_memory))


def _places(nodes: list[Node], request: Request, kept: Kept) -> tuple[Place, ...]:
    if request.nodes is not None and request.nodes > 1:
        return _spread(nodes, request, kept, request.nodes)
    number = _number(request)
    fits = (fit for node in nodes if (fit := _room(node, request, kept, number).fit) is not None)
    best = min(fits, key=_score, default=None)
    if best is not None:
        return (best.place,)
    return _few(nodes, request, kept) if request.nodes is None and request.gpus > 1 else ()


def _score(fit: Fit) -> tuple[int, int, str]:
    return fit.score


def _spread(nodes: list[Node], request: Request, kept: Kept, parts: int) -> tuple[Place, ...]:
    """Equal parts on exactly so many nodes, or nothing."""
    size = request.gpus // parts
    rooms = [(node, room(node, request, kept).offers) for node in nodes]
    fits = [fit for node, offers in rooms if (fit := _fit(node, request, kept, offers, size))]
    fits.sort(key=_score)
    return tuple(fit.place for fit in fits[:parts]) if len(fits) >= parts else ()


def _few(nodes: list[Node], request: Request, kept: Kept) -> tuple[Place, ...]:
    """As few nodes as can serve the request together: those that serve most of it first."""
    rooms = [(node, room(node, request, kept).offers) for node in nodes if has_host_room(node, request, kept)]
    rooms.sort(key=lambda pair: (-len(pair[1]), pair[0].info.name))
    places: list[Place] = []
    missing = request.gpus
    for node, offers in rooms:
        part = min(len(offers), missing)
        fit = _fit(node, request, kept, offers, part) if part else None
        if fit:
            places.append(fit.place)
            missing -= part
        if not missing:
            return tuple(places)
    return ()


def has_host_room(node: Node, request: Request, kept: Kept) -> bool:
    """Whether the node's CPUs and host memory suffice for one place of the request."""
    if (request.cpus or request.host_memory) and node.info.name in kept.nodes:
        return False
    return request.cpus <= node.cpus_free and request.host_memory <= node.memory_free


def _offers(node: Node, request: Request, kept: Kept) -> list[Offer]:
    gpus = usable(node, request, kept)
    if request.sharing == "mig":
        return _instances(gpus, request)
    gpus.sort(key=lambda gpu: (_left(gpu, request), gpu.info.index))
    return [Offer(_left(gpu, request), slice_of(gpu, request)) for gpu in gpus[: request.gpus]]


def _instances(gpus: list[GPU], request: Request) -> list[Offer]:
    """MIG instances, chosen one after the other: each takes room of those after it."""
    chosen: dict[str, list[Cut]] = {gpu.info.uuid: [] for gpu in gpus}
    found: list[Offer] = []
    while len(found) < request.gpus:
        options = (
            (choice, gpu.info.index, gpu)
            for gpu in gpus
            for choice in cuts.choices(gpu, _profile(gpu, request), chosen[gpu.info.uuid])
        )
        best = min(options, key=lambda option: option[:2], default=None)
        if best is None:
            break
        choice, _, gpu = best
        chosen[gpu.info.uuid].append(choice.cut)
        found.append(Offer(choice.cost, _instance_slice(gpu, _profile(gpu, request), choice.cut)))
    return found


def _instance_slice(gpu: GPU, profile: Profile, cut: Cut) -> Slice:
    geometry = gpu.info.mig
    share = share_of(geometry, profile) if geometry else 0
    return Slice(gpu.info.uuid, share, profile.memory, cut)


def _left(gpu: GPU, request: Request) -> int:
    """What is left of a GPU after the request; a fresh one counts as more than any that is shared, and one
    whose MIG mode has to be switched off as more still."""
    turned = WHOLE if gpu.sharing is None and gpu.info.layout.enabled else 0
    if request.sharing == "exclusive":
        return turned
    fresh = WHOLE if gpu.sharing is None else 0
    return turned + fresh + gpu.share_free - slice_of(gpu, request).share


def usable(node: Node, request: Request, kept: Kept) -> list[GPU]:
    """The GPUs of a node that lack nothing."""
    return [gpu for gpu in node.gpus.values() if lack(gpu, request, kept) is None]


# ---------------------------------------------------------------- one GPU


def lack(gpu: GPU, request: Request, kept: Kept = NOTHING_KEPT) -> Lack | None:
    """The first thing that a GPU lacks for a request, or None where it serves it."""
    info = gpu.info
    if request.gpu_types and not matches(info.model, request.gpu_types):
        return Lack("type")
    if request.sharing == "mig":
        if profile_for(info, request) is None:
            return Lack("profile")
    elif (need := slice_of(gpu, request).memory) > info.memory:
        return Lack("memory", info.memory, need)
    if mechanism(info, request) is None:
        return Lack("mechanism")
    if gpu.outside or not gpu.present:
        return Lack("outside")
    if info.fault:
        return Lack("fault")
    if info.layout.mps and not gpu.tenants:
        return Lack("daemon")
    if gpu.sharing == "exclusive":
        return Lack("taken")
    if (gpu.node, info.uuid) in kept.gpus:
        return Lack("kept")
    if request.sharing == "exclusive":
        return _lack_whole(gpu)
    return _lack_instance(gpu, request) if request.sharing == "mig" else _lack_share(gpu, request)


def _lack_whole(gpu: GPU) -> Lack | None:
    if gpu.tenants:
        return Lack("tenants")
    return Lack("foreign", gpu.foreign) if gpu.used_by_strangers else _lack_mode(gpu)


def _lack_share(gpu: GPU, request: Request) -> Lack | None:
    if gpu.sharing not in (None, request.sharing):
        return Lack("sharing")
    if request.sharing == "mps" and gpu.refusals and gpu.refusal(DAEMON):
        return Lack("refused")
    if request.sharing == "time_slice" and len(gpu.tenants) >= gpu.info.replicas:
        return Lack("replicas", gpu.info.replicas, gpu.info.replicas + 1)
    need = slice_of(gpu, request)
    if request.share is not None and need.share > gpu.share_free:
        return Lack("share", gpu.share_free, need.share)
    if need.memory > gpu.memory_free:
        return Lack("memory", gpu.memory_free, need.memory)
    if need.share > gpu.share_free:
        return Lack("share", gpu.share_free, need.share)
    return _lack_mode(gpu)


def _lack_mode(gpu: GPU) -> Lack | None:
    """What keeps a GPU in MIG mode from being used without it."""
    if not gpu.info.layout.enabled:
        return None
    if gpu.info.mig is None or not gpu.info.mig.switchable:
        return Lack("mode")
    if gpu.used_by_strangers:
        return Lack("foreign", gpu.foreign)
    refused = gpu.refusal(None, *(instance.cut for instance in gpu.info.layout.instances))
    return Lack("refused") if refused else None


def _lack_instance(gpu: GPU, request: Request) -> Lack | None:
    if gpu.sharing not in (None, "mig"):
        return Lack("sharing")
    if not gpu.info.layout.enabled:
        if gpu.info.mig is None or not gpu.info.mig.switchable:
            return Lack("mode")
        if gpu.used_by_strangers:
            return Lack("foreign", gpu.foreign)
    if next(cuts.choices(gpu, _profile(gpu, request)), None) is None:
        return Lack("refused" if gpu.refusals else "slices")
    return None


def slice_of(gpu: GPU, request: Request) -> Slice:
    """What the request would hold of this GPU, by any way of sharing but MIG: a share without memory gets
    that part of the memory, memory without a share that part of the compute, and a time-slice its turn."""
    uuid, total = gpu.info.uuid, gpu.info.memory
    if request.sharing == "exclusive":
        return Slice(uuid, WHOLE, max(total, request.memory or 0), total=total)
    if request.sharing == "time_slice":
        return Slice(uuid, WHOLE // gpu.info.replicas, _turn_memory(gpu.info, request), total=total)
    if request.memory is None:
        share = request.share or WHOLE
        return Slice(uuid, share, memory_of_share(share, total), total=total)
    share = request.share if request.share is not None else share_of_memory(request.memory, total)
    return Slice(uuid, share, request.memory, total=total)


def _turn_memory(info: GPUInfo, request: Request) -> int:
    """The memory of a tenant that takes turns: as asked, else an equal part for each that there can be."""
    if request.memory is not None:
        return request.memory
    return (
        info.memory // info.replicas if request.share is None else memory_of_share(request.share, info.memory)
    )


def profile_for(info: GPUInfo, request: Request) -> Profile | None:
    """The MIG profile that a request gets on a GPU, or None where it has none that will do."""
    if info.mig is None:
        return None
    if request.mig_profile is not None:
        return profile_named(info.mig, request.mig_profile)
    share = request.share or 0
    memory = request.memory if request.memory is not None else memory_of_share(share, info.memory)
    return smallest_profile(info.mig, memory, share)


def _profile(gpu: GPU, request: Request) -> Profile:
    """The profile of a GPU that is known to have one."""
    profile = profile_for(gpu.info, request)
    assert profile is not None, f"{gpu.info.uuid} has no profile for {request}"
    return profile


# ---------------------------------------------------------------- what is nearest


def nearest(state: State, request: Request, kept: Kept = NOTHING_KEPT) -> Iterator[GPU]:
    """The GPUs that the request would take soonest: those of the places it would have with nothing else
    running, the ones first that lack nothing or the least. A site's are its own to choose."""
    way = possible(state, request) or request
    for backend in backends(state, way):
        if site_of(state, backend):
            continue
        nodes = open_nodes(state, backend, way)
        order = sorted(nodes, key=lambda node: -len(room(node, way, kept).offers))
        places = _places([emptied(node) for node in order], way, kept)
        if not places:
            continue
        for place in _freest(order, way, places, kept):
            gpus = state.nodes[place.node].gpus.values()
            fitting = [gpu for gpu in gpus if _worth_waiting(lack(gpu, way, kept))]
            fitting.sort(key=lambda gpu: (_distance(gpu, way, kept), gpu.info.index))
            yield from fitting[: len({slice.gpu for slice in place.slices})]
        return


def _freest(order: list[Node], request: Request, places: tuple[Place, ...], kept: Kept) -> tuple[Place, ...]:
    """For a request of one node the node where most of it is free now; else the places as they are."""
    if len(places) > 1:
        return places
    for node in order:
        single = _places([emptied(node)], request, kept)
        if single:
            return single
    return places


def _worth_waiting(lack: Lack | None) -> bool:
    """Whether waiting for this GPU can help: never for another type or a card that is too small."""
    return lack is None or (lack.kind not in LASTING and lack.kind != "kept")


def _distance(gpu: GPU, request: Request, kept: Kept) -> int:
    """How far a GPU is from serving the request: 0 now, else more the less is free, and most where no end of
    a tenant brings it nearer."""
    missing = lack(gpu, request, kept)
    if missing is None:
        return 0
    stuck = missing.kind in ("outside", "fault", "refused")
    return 1 + WHOLE - gpu.share_free + (2 * WHOLE if stuck else 0)
