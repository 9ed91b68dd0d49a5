"""What a site (Slurm) of the model can ever give: whoever has its GPUs now, its own queue is to wait in."""

from __future__ import annotations

import re
from collections.abc import Sequence

from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import Request
from tests.core.model_asked import alike, enough, is_of

_CUT = re.compile(r"\d+g\.\d+gb\S*$")


def gives(nodes: Sequence[NodeInfo], request: Request) -> bool:
    """Whether a site with these nodes can give a request what it asks for."""
    room = [node for node in nodes if request.cpus <= node.cpus and request.host_memory <= node.memory]
    if not request.gpus:
        return len(room) >= (request.nodes or 1)
    if request.sharing in ("fraction", "mps") and (request.gpus > 1 or request.isolation == "hard"):
        return False
    types = {gpu.model for node in room for gpu in node.gpus if _serves(gpu, request)}
    return any(enough(request, [_count(node, type) for node in room]) for type in types)


def sharing_at(request: Request) -> str:
    """How a lease at a site shares its devices: a MIG instance is a device that it has for itself."""
    return "exclusive" if request.sharing == "mig" else request.sharing


def _count(node: NodeInfo, type: str) -> int:
    return sum(gpu.model == type for gpu in node.gpus)


def _serves(gpu: GPUInfo, request: Request) -> bool:
    """Whether a device can serve a request. A MIG instance is one whose type ends with a profile."""
    cut = _CUT.search(gpu.model.lower())
    if not is_of(gpu.model, request.gpu_types) or bool(cut) != (request.sharing == "mig"):
        return False
    if cut and request.mig_profile is not None:
        return alike(cut[0], request.mig_profile)
    if cut:
        return request.memory is not None and request.memory <= gpu.memory
    if request.sharing == "exclusive":
        return True
    parts = {"fraction": gpu.parts, "mps": "mps" in gpu.mechanisms}.get(request.sharing, 0)
    return bool(parts) and (request.memory or 0) <= gpu.memory
