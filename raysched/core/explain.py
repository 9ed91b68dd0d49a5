"""Why a job waits, what is nearest, and what would let it start: words for what `placement` found.

Nothing here searches by rules of its own: each answer comes from `lack`, `place` or `survey`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from raysched.core.jobs import Job
from raysched.core.node import GPU, Node
from raysched.core.placement import (
    NOTHING_KEPT,
    Kept,
    emptied,
    has_host_room,
    lack,
    matches,
    nearest,
    place,
    slice_of,
)
from raysched.core.queue import Look
from raysched.core.request import WHOLE, Request
from raysched.core.state import State

# ---------------------------------------------------------------- words


def number(ten_thousandths: int) -> str:
    """Ten-thousandths as people write them: 2500 is `0.25`, 10000 is `1`."""
    return f"{ten_thousandths / WHOLE:.4f}".rstrip("0").rstrip(".")


def asks(request: Request) -> str:
    """What a request asks for, in a few words: `0.25 GPU`, `2 GPUs`, `3 x 2000 MiB of a GPU`."""
    parts = [_asks_gpus(request)]
    if request.cpus:
        parts.append(_cores(request.cpus))
    if request.host_memory:
        parts.append(f"{request.host_memory} MiB of memory")
    if request.nodes and request.nodes > 1:
        parts.append(f"on {request.nodes} nodes")
    return ", ".join(part for part in parts if part) or "nothing"


def _asks_gpus(request: Request) -> str:
    if not request.gpus:
        return "no GPU"
    kind = f" ({' or '.join(request.gpu_types)})" if request.gpu_types else ""
    if request.sharing == "exclusive":
        return f"{request.gpus} GPU{'s' if request.gpus > 1 else ''}{kind}"
    times = f"{request.gpus} x " if request.gpus > 1 else ""
    part = number(request.share) + " GPU" if request.share is not None else f"{request.memory} MiB of a GPU"
    return f"{times}{part}{kind}"


def _cores(count: int) -> str:
    return f"{number(count)} CPU{'' if count == WHOLE else 's'}"


def mechanism(request: Request) -> str:
    """What holds the tenant to its share."""
    return "exclusive" if request.sharing == "exclusive" or not request.gpus else "variables"


def short(uuid: str) -> str:
    """A GPU's UUID, short enough to read: `GPU-3f2a8c1d`."""
    return uuid[:12]


def too_long(job: Job) -> str:
    """The reason of a job that ran into its max_runtime."""
    return f"ran longer than its max_runtime of {(job.max_runtime or 0) / 1000:g} s"


def _listing(names: list[str], most: int = 3) -> str:
    shown = names[:most] + ([f"{len(names) - most} more"] if len(names) > most else [])
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


# ---------------------------------------------------------------- what can never be


def never(state: State, request: Request) -> str | None:
    """Why a request is refused whatever is free, or None."""
    if request.isolation == "hard" and mechanism(request) == "variables":
        return (
            "isolation: hard can't be kept for a part of a GPU here: it needs MIG, MPS, HAMi or a kernel "
            "memory limit, and this version enforces none of them; ask for a whole GPU or isolation: soft"
        )
    if not any(set(request.backends) & set(node.info.backends) for node in state.nodes.values()):
        reached = sorted({backend for node in state.nodes.values() for backend in node.info.backends})
        have = f"the nodes here have {', '.join(reached)}" if reached else "no node has joined yet"
        return f"backend: no node is reached by {' or '.join(request.backends)}; {have}"
    return None


def impossible(state: State, request: Request) -> str:
    """Why no node could ever serve the request, naming the most there is."""
    nodes = [
        emptied(node) for node in state.nodes.values() if set(request.backends) & set(node.info.backends)
    ]
    gpus = [gpu for node in nodes for gpu in node.gpus.values()]
    if request.gpus and not gpus:
        return f"asks for {asks(request)}, and no node has a GPU"
    right = [gpu for gpu in gpus if matches(gpu.info.model, request.gpu_types)]
    if request.gpus and not right:
        models = sorted({gpu.info.model for gpu in gpus})
        return f"gpu_type: asks for {' or '.join(request.gpu_types)}, and there is only {_listing(models)}"
    fitting = [gpu for gpu in right if lack(gpu, request) is None]
    if request.gpus and not fitting:
        largest = max(gpu.info.memory for gpu in right)
        return f"gpu_memory: asks for {request.memory} MiB of one GPU, and the largest has {largest} MiB"
    if not any(has_host_room(node, request, NOTHING_KEPT) for node in nodes):
        return _host_impossible(nodes, request)
    return _count_impossible(nodes, request)


def _host_impossible(nodes: list[Node], request: Request) -> str:
    cpus = max(node.info.cpus for node in nodes)
    if request.cpus > cpus:
        return f"cpus: asks for {number(request.cpus)}, and the largest node has {number(cpus)}"
    memory = max(node.info.memory for node in nodes)
    if request.host_memory > memory:
        return f"memory: asks for {request.host_memory} MiB, and the largest node has {memory} MiB"
    return "asks for CPUs and memory that no single node has together"


def _count_impossible(nodes: list[Node], request: Request) -> str:
    counts = sorted(
        (sum(lack(gpu, request) is None for gpu in node.gpus.values()) for node in nodes), reverse=True
    )
    most = sum(counts) if request.nodes is None else counts[0]
    where = "all nodes together have" if request.nodes is None else "the largest node has"
    if request.nodes is not None and request.nodes > len(nodes):
        return f"nodes: asks for {request.nodes}, and there are {len(nodes)}"
    return f"gpus: asks for {asks(request)}, and {where} {most} such GPU{'' if most == 1 else 's'}"


# ---------------------------------------------------------------- why one waits


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job waits: one line, what is short, the nearest fit, the smallest change that would start it."""

    why: str
    short_of: str | None = None
    nearest: str | None = None
    change: str | None = None


def waiting(state: State, look: Look, *, change: bool = False) -> Explanation:
    """Explain one look of a survey; `change` also searches the smallest change that would start the job."""
    job = look.job
    if look.resting:
        return Explanation(f"looked at again in a moment: {job.reason}", "engine")
    if look.placement is not None:
        return Explanation("starts now")
    kind, why = _shortage(state, job.request, look.kept)
    if job.reason:
        why = f"{why} ({job.reason})"
    fit = next(iter(nearest(state, job.request)), None)
    return Explanation(
        why,
        kind,
        None if fit is None else _described(fit),
        next(_changes(state, job.request, look.kept), None) if change else None,
    )


def _described(gpu: GPU) -> str:
    free = f"{number(gpu.share_free)} of its share and {gpu.memory_free} MiB free"
    return f"{short(gpu.info.uuid)} ({gpu.info.model}) on {gpu.node}: {gpu.mode}, {free}"


def _shortage(state: State, request: Request, kept: Kept) -> tuple[str, str]:
    """What is short, and the line that says so."""
    nodes = [node for node in _reached(state, request) if node.lost is None]
    if not nodes:
        gone = sorted(node.info.name for node in _reached(state, request))
        return (
            "node",
            f"no node that could run it answers: {_listing(gone)}" if gone else "no node has joined yet",
        )
    gpus = [
        gpu
        for node in nodes
        for gpu in node.gpus.values()
        if (missing := lack(gpu, request, kept)) is None or missing.kind != "type"
    ]
    fitting = [gpu for gpu in gpus if lack(gpu, request, kept) is None]
    if request.gpus and len(fitting) < request.gpus:
        return _gpu_shortage(state, request, kept, gpus, len(fitting))
    return _host_shortage(nodes, request, kept)


def _reached(state: State, request: Request) -> list[Node]:
    return [node for node in state.nodes.values() if set(request.backends) & set(node.info.backends)]


def _gpu_shortage(
    state: State, request: Request, kept: Kept, gpus: list[GPU], fitting: int
) -> tuple[str, str]:
    if request.sharing == "exclusive":
        ready = "no whole GPU is free" if not fitting else f"{fitting} of {request.gpus} whole GPUs free"
        return "gpus", f"{ready}; {_blockers(state, request, kept, gpus)}"
    if request.gpus > 1:
        ready = f"{fitting} of {request.gpus} GPUs have room for {_part(request)} each"
        return "gpus", f"{ready}; {_blockers(state, request, kept, gpus)}"
    kinds = {missing.kind for gpu in gpus if (missing := lack(gpu, request, kept))}
    if "share" in kinds:
        return "share", _share_shortage(request, gpus)
    if "memory" in kinds:
        return "memory", _memory_shortage(request, gpus)
    return "gpus", f"no GPU has room for {_part(request)}; {_blockers(state, request, kept, gpus)}"


def _part(request: Request) -> str:
    return f"{number(request.share)} GPU" if request.share is not None else f"{request.memory} MiB"


def _share_shortage(request: Request, gpus: list[GPU]) -> str:
    best = max(gpus, key=lambda gpu: gpu.share_free)
    need = slice_of(best, request).share
    return (
        f"needs {number(need)} of one GPU; the largest free share is {number(best.share_free)} "
        f"({short(best.info.uuid)} on {best.node})"
    )


def _memory_shortage(request: Request, gpus: list[GPU]) -> str:
    best = max(gpus, key=lambda gpu: gpu.memory_free)
    need = slice_of(best, request)
    share = f"needs {number(request.share)} of one GPU and " if request.share is not None else "needs "
    most = f"{best.memory_free} MiB is the most that is free ({short(best.info.uuid)} on {best.node}"
    if request.share is not None:
        most += f", {number(best.share_free)} of its share"
    return f"{share}{need.memory} MiB of its memory; {most})"


def _blockers(state: State, request: Request, kept: Kept, gpus: list[GPU]) -> str:
    """What stands in the way on the GPU that would be free soonest."""
    blocked = [(missing, gpu) for gpu in gpus if (missing := lack(gpu, request, kept))]
    if not blocked:
        return "there are no more"
    _, gpu = min(blocked, key=lambda pair: (pair[0].kind == "kept", len(pair[1].tenants), pair[1].info.index))
    return _blocked_by(state, request, kept, gpu)


def _blocked_by(state: State, request: Request, kept: Kept, gpu: GPU) -> str:
    missing = lack(gpu, request, kept)
    name = short(gpu.info.uuid)
    tenants = [_tenant(state, lease) for lease in gpu.tenants]
    match missing.kind if missing else "":
        case "outside":
            return f"{name} is held in Ray by work that did not ask raysched"
        case "foreign":
            return f"{name} is used by processes without a lease ({gpu.foreign} MiB)"
        case "kept":
            return (
                f"{name} is kept for {_name(state, kept.gpus[gpu.node, gpu.info.uuid])}, which waits longer"
            )
        case "taken":
            return f"{name} is held whole (exclusive) by {_listing(tenants)}"
        case _:
            ends = "ends" if len(tenants) == 1 else "end"
            return f"{name} is shared until {_listing(tenants)} {ends}"


def _tenant(state: State, lease: str) -> str:
    held = state.leases[lease]
    ending = " (ending)" if held.state == "releasing" else ""
    return _name(state, held.job) + ending


def _name(state: State, job: str) -> str:
    return state.jobs[job].display if job in state.jobs else job


def _host_shortage(nodes: list[Node], request: Request, kept: Kept) -> tuple[str, str]:
    best = max(nodes, key=lambda node: node.cpus_free)
    if request.cpus > best.cpus_free:
        return (
            "cpus",
            f"needs {_cores(request.cpus)} on one node; {best.info.name} has {number(best.cpus_free)} free",
        )
    roomy = max(nodes, key=lambda node: node.memory_free)
    if request.host_memory > roomy.memory_free:
        return (
            "host_memory",
            f"needs {request.host_memory} MiB of memory; {roomy.info.name} has {roomy.memory_free} MiB free",
        )
    if any(node.info.name in kept.nodes for node in nodes):
        return "kept", "the CPUs and memory that are free are kept for a job that waits longer"
    return "nodes", "no single node has GPUs, CPUs and memory free together"


# ---------------------------------------------------------------- the smallest change


def _changes(state: State, request: Request, kept: Kept) -> Iterator[str]:
    """Changes of one field under which the request would start now, the smallest first."""
    for words, changed in _alternatives(state, request, kept):
        if place(state, changed, kept):
            yield words


def _alternatives(state: State, request: Request, kept: Kept) -> Iterator[tuple[str, Request]]:
    gpus = [
        gpu
        for node in _reached(state, request)
        if node.lost is None
        for gpu in node.gpus.values()
        if matches(gpu.info.model, request.gpu_types) and (gpu.node, gpu.info.uuid) not in kept.gpus
    ]
    if request.sharing != "exclusive":
        yield from _smaller_shares(request, gpus)
    for count in range(request.gpus - 1, 0, -1):
        yield f"gpus: {count} would start now", replace(request, gpus=count, nodes=None)
    if request.sharing == "exclusive" and request.gpus == 1:
        largest = max((gpu.share_free for gpu in gpus), default=0)
        if largest:
            share = replace(request, sharing="fraction", share=largest, memory=None)
            yield f"gpu_fraction: {number(largest)} would start now", share
    if request.gpu_types:
        yield "without gpu_type it would start now", replace(request, gpu_types=())
    if request.cpus or request.host_memory:
        yield from _smaller_host(state, request)


def _smaller_shares(request: Request, gpus: list[GPU]) -> Iterator[tuple[str, Request]]:
    if request.share is not None and request.memory is None:
        shares = {min(gpu.share_free, gpu.memory_free * WHOLE // gpu.info.memory) for gpu in gpus}
        for share in sorted((share for share in shares if 0 < share < request.share), reverse=True):
            yield f"gpu_fraction: {number(share)} would start now", replace(request, share=share)
    if request.memory is not None:
        for memory in sorted(
            {gpu.memory_free for gpu in gpus if 0 < gpu.memory_free < request.memory}, reverse=True
        ):
            yield f"gpu_memory: {memory}MiB would start now", replace(request, memory=memory)


def _smaller_host(state: State, request: Request) -> Iterator[tuple[str, Request]]:
    nodes = [node for node in _reached(state, request) if node.lost is None]
    cpus = max((node.cpus_free for node in nodes), default=0)
    memory = max((node.memory_free for node in nodes), default=0)
    if request.cpus > cpus:
        yield f"cpus: {number(cpus)} would start now", replace(request, cpus=cpus)
    if request.host_memory > memory:
        yield f"memory: {memory}MiB would start now", replace(request, host_memory=memory)
