"""Where one request goes: best fit, and for a gang all places or none.

The rules in the order they are applied:
1. a GPU serves a request if `lack` finds nothing missing on it, a node if enough of its GPUs do and its CPUs
   and host memory suffice;
2. a request goes to one node if one can serve it, else (unless it says how many nodes) to as few as can;
3. shares go to the GPU with the least that is left, so that whole GPUs stay whole; whole GPUs come from the
   node with the fewest free ones; ties go to the lower index and the node's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from raysched.core.lease import Place, Slice
from raysched.core.node import GPU, Node
from raysched.core.request import WHOLE, Request, memory_of_share, share_of_memory
from raysched.core.state import State

LackKind = Literal["type", "outside", "taken", "tenants", "foreign", "share", "memory", "kept", "sharing"]


@dataclass(frozen=True, slots=True)
class Lack:
    """What one GPU lacks for a request: `have` and `need` in the unit of the kind (share, MiB)."""

    kind: LackKind
    have: int = 0
    need: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request fits now, and the backend that would launch it."""

    backend: str
    places: tuple[Place, ...]


@dataclass(slots=True)
class Kept:
    """What is kept for jobs that wait longer: later ones may not have it.

    `gpus` maps (node, GPU) to the job that it is kept for, `nodes` a node whose CPUs or memory
    are waited for.
    """

    gpus: dict[tuple[str, str], str] = field(default_factory=dict["tuple[str, str]", str])
    nodes: dict[str, str] = field(default_factory=dict[str, str])


NOTHING_KEPT = Kept()


def place(state: State, request: Request, kept: Kept = NOTHING_KEPT) -> Placement | None:
    """The best place for `request` now, or None where there is none."""
    for backend in request.backends:
        nodes = [node for node in state.nodes.values() if node.lost is None and backend in node.info.backends]
        places = _places(nodes, request, kept)
        if places:
            return Placement(backend, places)
    return None


def possible(state: State, request: Request) -> bool:
    """Whether `request` would fit if nothing else ran, on the nodes that are known."""
    for backend in request.backends:
        nodes = [emptied(node) for node in state.nodes.values() if backend in node.info.backends]
        if _places(nodes, request, NOTHING_KEPT):
            return True
    return False


def emptied(node: Node) -> Node:
    """The node as it would be with no tenant and no stranger on it."""
    gpus = {uuid: GPU(gpu.info, gpu.node) for uuid, gpu in node.gpus.items() if gpu.present}
    return Node(node.info, gpus)


def _places(nodes: list[Node], request: Request, kept: Kept) -> tuple[Place, ...]:
    if request.nodes is not None and request.nodes > 1:
        return _spread(nodes, request, kept, request.nodes)
    best = min(
        (fit for node in nodes if (fit := _fit(node, request, request.gpus, kept))),
        key=lambda fit: fit[0],
        default=None,
    )
    if best is not None:
        return (best[1],)
    return _few(nodes, request, kept) if request.nodes is None and request.gpus > 1 else ()


def _spread(nodes: list[Node], request: Request, kept: Kept, count: int) -> tuple[Place, ...]:
    """Equal parts on exactly `count` nodes, or nothing."""
    part = request.gpus // count
    fits = sorted((fit for node in nodes if (fit := _fit(node, request, part, kept))), key=lambda fit: fit[0])
    return tuple(fit[1] for fit in fits[:count]) if len(fits) >= count else ()


def _few(nodes: list[Node], request: Request, kept: Kept) -> tuple[Place, ...]:
    """As few nodes as can serve the request together: those that serve most of it first."""
    room = [(len(usable(node, request, kept)), node) for node in nodes if has_host_room(node, request, kept)]
    room.sort(key=lambda pair: (-pair[0], pair[1].info.name))
    places: list[Place] = []
    missing = request.gpus
    for count, node in room:
        part = min(count, missing)
        fit = _fit(node, request, part, kept) if part else None
        if fit:
            places.append(fit[1])
            missing -= part
        if not missing:
            return tuple(places)
    return ()


Score = tuple[int, int, str]


def _fit(node: Node, request: Request, count: int, kept: Kept) -> tuple[Score, Place] | None:
    """The best `count` GPUs of one node, and how good that is (less is better)."""
    if not has_host_room(node, request, kept):
        return None
    gpus = usable(node, request, kept)
    if len(gpus) < count:
        return None
    chosen = sorted(gpus, key=lambda gpu: (_left(gpu, request), gpu.info.index))[:count]
    slices = tuple(slice_of(gpu, request) for gpu in chosen)
    left = sum(_left(gpu, request) for gpu in chosen)
    free = sum(gpu.untouched for gpu in node.gpus.values())
    place = Place(node.info.name, slices, request.cpus, request.host_memory)
    return (left, free, node.info.name), place


def _left(gpu: GPU, request: Request) -> int:
    """What is left of a GPU after the request; a fresh one counts as more than any that is shared."""
    if request.sharing == "exclusive":
        return 0
    fresh = WHOLE if gpu.sharing is None else 0
    return fresh + gpu.share_free - slice_of(gpu, request).share


def has_host_room(node: Node, request: Request, kept: Kept) -> bool:
    """Whether the node's CPUs and host memory suffice for one place of the request."""
    if (request.cpus or request.host_memory) and node.info.name in kept.nodes:
        return False
    return request.cpus <= node.cpus_free and request.host_memory <= node.memory_free


def usable(node: Node, request: Request, kept: Kept) -> list[GPU]:
    """The GPUs of a node that lack nothing."""
    return [gpu for gpu in node.gpus.values() if lack(gpu, request, kept) is None]


def lack(gpu: GPU, request: Request, kept: Kept = NOTHING_KEPT) -> Lack | None:
    """The first thing that a GPU lacks for a request, or None where it serves it."""
    if not matches(gpu.info.model, request.gpu_types):
        return Lack("type")
    need = slice_of(gpu, request)
    if need.memory > gpu.info.memory:
        return Lack("memory", gpu.info.memory, need.memory)
    if gpu.outside or not gpu.present:
        return Lack("outside")
    if gpu.sharing == "exclusive":
        return Lack("taken")
    if (gpu.node, gpu.info.uuid) in kept.gpus:
        return Lack("kept")
    return _lack_whole(gpu) if request.sharing == "exclusive" else _lack_share(gpu, request, need)


def _lack_whole(gpu: GPU) -> Lack | None:
    if gpu.tenants:
        return Lack("tenants")
    return Lack("foreign", gpu.foreign) if gpu.foreign else None


def _lack_share(gpu: GPU, request: Request, need: Slice) -> Lack | None:
    if gpu.sharing not in (None, request.sharing):
        return Lack("sharing")
    if request.share is not None and need.share > gpu.share_free:
        return Lack("share", gpu.share_free, need.share)
    if need.memory > gpu.memory_free:
        return Lack("memory", gpu.memory_free, need.memory)
    return Lack("share", gpu.share_free, need.share) if need.share > gpu.share_free else None


def slice_of(gpu: GPU, request: Request) -> Slice:
    """What the request would hold of this GPU: a share without memory gets that part of the memory, memory
    without a share gets that part of the compute."""
    total = gpu.info.memory
    if request.sharing == "exclusive":
        return Slice(gpu.info.uuid, WHOLE, max(total, request.memory or 0))
    if request.memory is None:
        share = request.share or WHOLE
        return Slice(gpu.info.uuid, share, memory_of_share(share, total))
    share = request.share if request.share is not None else share_of_memory(request.memory, total)
    return Slice(gpu.info.uuid, share, request.memory)


def matches(model: str, types: Iterable[str]) -> bool:
    """Whether a product name is of one of the types: whole words, whatever the case. No types: any is."""
    types = tuple(types)
    if not types:
        return True
    words = _words(model)
    return any(_contains(words, _words(kind)) for kind in types)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _contains(words: list[str], part: list[str]) -> bool:
    return (
        any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1)) if part else False
    )


def nearest(state: State, request: Request, kept: Kept = NOTHING_KEPT) -> Iterator[GPU]:
    """The GPUs that the request would take soonest: those of the places it would have with nothing else
    running, the ones first that lack nothing or the least."""
    for backend in request.backends:
        nodes = [node for node in state.nodes.values() if node.lost is None and backend in node.info.backends]
        empty = {node.info.name: emptied(node) for node in nodes}
        order = sorted(nodes, key=lambda node: -len(usable(node, request, kept)))
        places = _places([empty[node.info.name] for node in order], request, kept)
        if not places:
            continue
        wanted = [(state.nodes[p.node], len(p.slices)) for p in _freest(order, empty, request, places, kept)]
        for node, count in wanted:
            fitting = [gpu for gpu in node.gpus.values() if _lasting(lack(gpu, request, kept))]
            fitting.sort(key=lambda gpu: (_distance(gpu, request, kept), gpu.info.index))
            yield from fitting[:count]
        return


def _freest(
    order: list[Node], empty: dict[str, Node], request: Request, places: tuple[Place, ...], kept: Kept
) -> tuple[Place, ...]:
    """For a request of one node the node where most of it is free now; else the places as they are."""
    if len(places) > 1:
        return places
    for node in order:
        single = _places([empty[node.info.name]], request, kept)
        if single:
            return single
    return places


def _lasting(lack: Lack | None) -> bool:
    """Whether waiting for this GPU can help: never for another type or a card that is too small."""
    return lack is None or lack.kind not in ("type", "kept")


def _distance(gpu: GPU, request: Request, kept: Kept) -> int:
    """How far a GPU is from serving the request: 0 now, else more the less is free."""
    return 0 if lack(gpu, request, kept) is None else 1 + WHOLE - gpu.share_free
