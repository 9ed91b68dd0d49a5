"""Why a job waits, what is nearest, and what would let it start: words for what `placement` found.

Nothing here searches by rules of its own: each answer comes from `lack`, `place` or `survey`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from raysched.core.impossible import impossible
from raysched.core.node import GPU, Node
from raysched.core.placement import (
    LASTING,
    NOTHING_KEPT,
    Kept,
    backends,
    lack,
    matches,
    nearest,
    place,
    possible,
    profile_for,
    reaches,
    room,
    site_of,
    slice_of,
)
from raysched.core.queue import Look
from raysched.core.request import WHOLE, Request
from raysched.core.state import State
from raysched.core.words import at_least, cores, listing, number, short

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
    if site_of(state, backends(state, job.request)[0]):
        known = f" ({job.reason})" if job.reason else ""
        return Explanation(f"can't be given as things are: {impossible(state, job.request)}{known}", "gpus")
    request = possible(state, job.request) or job.request
    kind, why = _shortage(state, request, look.kept)
    if job.reason:
        why = f"{why} ({job.reason})"
    fit = next(iter(nearest(state, request)), None)
    return Explanation(
        why,
        kind,
        None if fit is None else _described(fit),
        next(_changes(state, request, look.kept), None) if change else None,
    )


def _described(gpu: GPU) -> str:
    free = f"{number(gpu.share_free)} of its share and {gpu.memory_free} MiB free"
    return f"{short(gpu.info.uuid)} ({gpu.info.model}) on {gpu.node}: {gpu.mode}, {free}"


def _shortage(state: State, request: Request, kept: Kept) -> tuple[str, str]:
    """What is short, and the line that says so."""
    there = [node for node in _reached(state, request) if node.lost is None]
    nodes = [node for node in there if not node.draining]
    if not nodes:
        return "node", _no_node(state, request, there)
    gpus = [
        gpu
        for node in nodes
        for gpu in node.gpus.values()
        if (missing := lack(gpu, request, kept)) is None or missing.kind not in LASTING
    ]
    fitting = sum(len(room(node, request, kept).offers) for node in nodes)
    if request.gpus and fitting < request.gpus:
        kind, why = _gpu_shortage(state, request, kept, gpus, fitting)
        unused = [part for part in _out_of_use(request, there, gpus) if part not in why]
        return kind, "; ".join([why, *unused])
    return _host_shortage(nodes, request, kept)


def _no_node(state: State, request: Request, there: list[Node]) -> str:
    if there:
        names = sorted(node.info.name for node in there)
        lent = all(node.info.lease for node in there)
        until = "about to leave, as lent" if lent else f"cordoned until `raysched node uncordon {names[0]}`"
        return f"nothing new starts on {listing(names)}: {until}"
    gone = sorted(node.info.name for node in _reached(state, request))
    return f"no node that could run it answers: {listing(gone)}" if gone else "no node has joined yet"


def _out_of_use(request: Request, nodes: list[Node], gpus: list[GPU]) -> Iterator[str]:
    """What else would serve the request now: nodes that are cordoned, and GPUs that failed."""
    drained = [node for node in nodes if node.draining and room(node, request, NOTHING_KEPT).offers]
    if drained:
        yield f"nothing new starts on {listing(sorted(node.info.name for node in drained))}, cordoned"
    for gpu in gpus:
        missing = lack(gpu, request)
        if missing is not None and missing.kind == "fault":
            yield _faulty(gpu)
            break


def _faulty(gpu: GPU) -> str:
    return f"{short(gpu.info.uuid)} is faulty: {gpu.info.fault}"


def _reached(state: State, request: Request) -> list[Node]:
    nodes = state.nodes.values()
    return [node for node in nodes if any(reaches(backend, node, request) for backend in request.backends)]


def _gpu_shortage(
    state: State, request: Request, kept: Kept, gpus: list[GPU], fitting: int
) -> tuple[str, str]:
    if request.sharing == "exclusive":
        ready = "no whole GPU is free" if not fitting else f"{fitting} of {request.gpus} whole GPUs free"
        return "gpus", f"{ready}; {_blockers(state, request, kept, gpus)}"
    if request.sharing == "mig":
        ready = f"no MIG slice is free for {_part(request)}"
        if fitting:
            ready = f"{fitting} of {request.gpus} MIG instances of {_part(request)} can be had"
        return "slices", f"{ready}; {_blockers(state, request, kept, gpus)}"
    if request.gpus > 1:
        ready = f"{fitting} of {request.gpus} GPUs have room for {_part(request)} each"
        return "gpus", f"{ready}; {_blockers(state, request, kept, gpus)}"
    kinds = {gpu.info.uuid: missing.kind for gpu in gpus if (missing := lack(gpu, request, kept))}
    open = [gpu for gpu in gpus if kinds.get(gpu.info.uuid) in ("share", "memory")]
    if "share" in kinds.values():
        return "share", _share_shortage(request, open)
    if "memory" in kinds.values() and "replicas" not in kinds.values():
        return "memory", _memory_shortage(request, open)
    return "gpus", f"no GPU has room for {_part(request)}; {_blockers(state, request, kept, gpus)}"


def _part(request: Request) -> str:
    if request.mig_profile is not None:
        return request.mig_profile
    if request.sharing == "mig":
        return at_least(request)
    if request.sharing == "time_slice":
        return "a time-slice"
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
            return f"{name} is used by {_strangers(gpu)}"
        case "kept":
            return (
                f"{name} is kept for {_name(state, kept.gpus[gpu.node, gpu.info.uuid])}, which waits longer"
            )
        case "fault":
            return _faulty(gpu)
        case "daemon":
            return f"{name} waits until its MPS daemon has ended"
        case "refused" if request.sharing == "mps":
            return f"{name} can't be shared by MPS: {gpu.refusals[0].reason}"
        case "refused":
            return f"{name} can't be cut for it: {gpu.refusals[0].reason}"
        case "replicas":
            return f"{name} has its {gpu.info.replicas} turns taken, by {listing(tenants)}"
        case "slices":
            return f"{name} is cut for {listing(tenants) if tenants else _strangers(gpu)}"
        case _ if not tenants:
            return f"{name} is used by {_strangers(gpu)}"
        case "taken":
            return f"{name} is held whole (exclusive) by {listing(tenants)}"
        case _:
            return f"{name} is {_mode_words(gpu)} until {listing(tenants)} {_end(tenants)}"


def _end(tenants: list[str]) -> str:
    return "ends" if len(tenants) == 1 else "end"


def _mode_words(gpu: GPU) -> str:
    words = {"mig": "cut into MIG instances", "time_slice": "shared by time-slice", "mps": "shared by MPS"}
    return words.get(gpu.sharing or "", "shared")


def _strangers(gpu: GPU) -> str:
    return f"processes without a lease ({gpu.foreign} MiB)"


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
            f"needs {cores(request.cpus)} on one node; {best.info.name} has {number(best.cpus_free)} free",
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
    if request.sharing == "mig":
        yield from _smaller_instances(request, gpus)
    elif request.sharing != "exclusive":
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


def _smaller_instances(request: Request, gpus: list[GPU]) -> Iterator[tuple[str, Request]]:
    """The profiles that are smaller than the one that a GPU has for the request, the largest first."""
    smaller: dict[str, int] = {}
    for gpu in gpus:
        asked = profile_for(gpu.info, request)
        for profile in gpu.info.mig.profiles if gpu.info.mig and asked else ():
            if asked and (profile.memory, profile.slices) < (asked.memory, asked.slices):
                smaller[profile.name] = profile.memory * 100 + profile.slices
    for name in sorted(smaller, key=lambda name: (-smaller[name], name)):
        changed = replace(request, mig_profile=name, memory=None, share=None)
        yield f"mig_profile: {name} would start now", changed


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
