"""What holds a tenant to its share of a GPU."""

from __future__ import annotations

from collections.abc import Iterable

from raysched.core.node import GPUInfo, Mechanism
from raysched.core.request import Request

LIMITS: tuple[Mechanism, ...] = ("memory_limit", "hami")
"""What can hold a tenant to a fraction or a time-slice, the strongest first."""
SOFT = "variables"
"""Nothing holds the tenant; variables tell it its share."""


def mechanism(info: GPUInfo, request: Request) -> str | None:
    """What would hold a tenant to its share of this GPU; None where nothing does, and something has to."""
    if request.sharing in ("exclusive", "mig"):
        return request.sharing
    if request.sharing == "mps":
        return "mps" if "mps" in info.mechanisms else None
    if request.isolation == "soft":
        return SOFT
    limits = LIMITS if request.limitable else LIMITS[1:]
    return next((limit for limit in limits if limit in info.mechanisms), None)


def mechanism_of(infos: Iterable[GPUInfo], request: Request) -> str:
    """What holds a lease to its share of all these GPUs: the weakest where they differ."""
    found = {mechanism(info, request) or SOFT for info in infos} or {"exclusive"}
    return max(found, key=lambda name: (*LIMITS, SOFT).index(name) if name in (*LIMITS, SOFT) else -1)


def expected(request: Request) -> str:
    """What will hold a tenant that has no GPU yet; empty where that depends on the GPU."""
    if not request.gpus:
        return "exclusive"
    if request.sharing in ("exclusive", "mig", "mps"):
        return request.sharing
    return SOFT if request.isolation == "soft" else ""
