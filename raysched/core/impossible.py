"""Why a request can never be granted here: words for what `placement` found on empty nodes."""

from __future__ import annotations

from raysched.core import site
from raysched.core.node import GPU, Node
from raysched.core.placement import (
    NOTHING_KEPT,
    backends,
    demand,
    emptied,
    has_host_room,
    lack,
    matches,
    profile_for,
    room,
    selected,
    site_of,
    ways,
)
from raysched.core.request import Request
from raysched.core.state import State
from raysched.core.words import asks, at_least, listing, number


def impossible(state: State, request: Request) -> str:
    """Why no node could ever serve the request, naming the most there is and what to ask for instead."""
    meant = backends(state, request)
    reached = [node for node in state.nodes.values() if set(meant) & set(node.backends)]
    if not reached:
        return _no_backend(state, request)
    if refusals := {name: _no_site(there, request) for name in meant if (there := site_of(state, name))}:
        several = len(refusals) > 1
        return "; ".join(f"{name}: {why}" if several else why for name, why in sorted(refusals.items()))
    if request.backends == ("vm",) and request.node_selector:
        reached = [node for node in reached if selected(node, request)]
        if not reached:
            labels = [f"{name}={value}" for name, value in request.node_selector]
            return f"vm.node_selector: no host has {listing(labels)}: `raysched vm list` shows their labels"
    nodes = [emptied(node) for node in reached if node.info.containers or not request.container]
    if not nodes:
        names = listing(sorted(node.info.name for node in reached))
        return f"image: nothing runs containers on {names}: install docker, podman or nerdctl there"
    gpus = [gpu for node in nodes for gpu in node.gpus.values()]
    if request.gpus and not gpus:
        return f"asks for {asks(request)}, and no node has a GPU"
    right = [gpu for gpu in gpus if matches(gpu.info.model, request.gpu_types)]
    if request.gpus and not right:
        models = sorted({gpu.info.model for gpu in gpus})
        return f"gpu_type: asks for {' or '.join(request.gpu_types)}, and there is only {listing(models)}"
    way = next((way for way in ways(request) if any(lack(gpu, way) is None for gpu in right)), None)
    if request.gpus and way is None:
        return _on_none(right, request)
    way = way or request
    if not any(has_host_room(node, way, NOTHING_KEPT) for node in nodes):
        return _host_impossible(nodes, way)
    return _count_impossible(nodes, way)


def _no_site(there: site.Site, request: Request) -> str:
    """Why the site can never give it, as it was asked."""
    try:
        demand(there, ways(request)[-1])
    except site.Unfit as unfit:
        return str(unfit)
    return f"asks for {asks(request)}, and the site has none"


def _no_backend(state: State, request: Request) -> str:
    reached = sorted({backend for node in state.nodes.values() for backend in node.backends})
    have = f"the nodes here have {', '.join(reached)}" if reached else "no node has joined yet"
    silent = "; `raysched doctor` says whether Slurm answers" if "slurm" in request.backends else ""
    return f"backend: no node is reached by {' or '.join(request.backends)}; {have}{silent}"


def _host_impossible(nodes: list[Node], request: Request) -> str:
    cpus = max(node.info.cpus for node in nodes)
    if request.cpus > cpus:
        return f"cpus: asks for {number(request.cpus)}, and the largest node has {number(cpus)}"
    memory = max(node.info.memory for node in nodes)
    if request.host_memory > memory:
        return f"memory: asks for {request.host_memory} MiB, and the largest node has {memory} MiB"
    return "asks for CPUs and memory that no single node has together"


def _count_impossible(nodes: list[Node], request: Request) -> str:
    counts = sorted((len(room(node, request, NOTHING_KEPT).offers) for node in nodes), reverse=True)
    most = sum(counts) if request.nodes is None else counts[0]
    where = "all nodes together have" if request.nodes is None else "the largest node has"
    if request.nodes is not None and request.nodes > len(nodes):
        return f"nodes: asks for {request.nodes}, and there are {len(nodes)}"
    thing = "instance" if request.sharing == "mig" else "GPU"
    return f"gpus: asks for {asks(request)}, and {where} {most} such {thing}{'' if most == 1 else 's'}"


# ---------------------------------------------------------------- no GPU of the right type serves it


def _on_none(gpus: list[GPU], request: Request) -> str:
    """Why none of these GPUs, which are of the right type, could ever serve the request."""
    if request.sharing == "mig":
        return _no_instance(gpus, request)
    lacks = {missing.kind for gpu in gpus if (missing := lack(gpu, ways(request)[-1])) is not None}
    if "mode" in lacks:
        models = listing(sorted({gpu.info.model for gpu in gpus if gpu.info.layout.enabled}))
        return (
            f"asks for {asks(request)}, and {models} is in MIG mode, which raysched may not switch off here; "
            "ask for a mig_profile, or switch it off as root: nvidia-smi -mig 0"
        )
    if "mechanism" in lacks:
        return _not_held(gpus, request)
    largest = max(gpu.info.memory for gpu in gpus)
    return f"gpu_memory: asks for {request.memory} MiB of one GPU, and the largest has {largest} MiB"


def _not_held(gpus: list[GPU], request: Request) -> str:
    """What is missing to hold a tenant to its share, and what could be asked for instead."""
    models = listing(sorted({gpu.info.model for gpu in gpus}))
    if request.sharing == "mps":
        return (
            f"sharing: mps needs an MPS daemon on the node, and none holds {models}; "
            "ask for gpu_fraction or gpu_memory without it"
        )
    cut = [gpu for gpu in gpus if gpu.info.mig is not None]
    have = f"none of these is to be had on {models}"
    if cut and request.or_mig:
        have = f"no MIG instance of {listing(_models(cut))} has {at_least(request)}, and there is none other"
    if request.or_mps:
        instead = "install MPS there (nvidia-cuda-mps-control; `raysched doctor` says more), or "
    elif any("mps" in gpu.info.mechanisms for gpu in gpus):
        instead = "ask for sharing: mps, or "
    else:
        instead = "ask for a mig_profile, or " if cut and not request.or_mig else ""
    return (
        f"isolation: hard can't be kept for {asks(request)}: it needs MIG, MPS, HAMi or a kernel memory "
        f"limit, and {have}; {instead}ask for isolation: soft or a whole GPU"
    )


def _no_instance(gpus: list[GPU], request: Request) -> str:
    """Why no MIG instance can be had, with the profiles that there are."""
    field = "use_mig" if request.mig_profile is None else "mig_profile"
    what = request.mig_profile or at_least(request)
    cut = [gpu for gpu in gpus if gpu.info.mig is not None]
    if not cut:
        models = listing(_models(gpus))
        return f"{field}: asks for {what}, and {models} can't be cut by MIG; ask for gpu_memory without MIG"
    right = [gpu for gpu in cut if profile_for(gpu.info, request) is not None]
    if right:
        return (
            f"{field}: asks for {what}, and the MIG mode of {listing(_models(right))} is off and raysched "
            "may not switch it on here; switch it on as root: nvidia-smi -mig 1"
        )
    have = "; ".join(f"{model} has {_profiles(cut, model)}" for model in _models(cut))
    return f"{field}: asks for {what}, and {have}"


def _models(gpus: list[GPU]) -> list[str]:
    return sorted({gpu.info.model for gpu in gpus})


def _profiles(gpus: list[GPU], model: str) -> str:
    """The names of the profiles of a model, the smallest first."""
    geometry = next(gpu.info.mig for gpu in gpus if gpu.info.model == model)
    profiles = list(geometry.profiles) if geometry else []
    profiles.sort(key=lambda profile: (profile.slices, profile.memory, profile.name))
    return ", ".join(profile.name for profile in profiles)
