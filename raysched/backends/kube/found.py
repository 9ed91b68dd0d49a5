"""What shares GPUs in a cluster beside what its nodes tell: KAI Scheduler's settings, and DRA's devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysched.backends.kube.cluster import Answered, Cluster
from raysched.core.node import Mechanism

Object = dict[str, Any]

KAI = "/apis/kai.scheduler/v1/configs"
SLICES = "/apis/resource.k8s.io/v1/resourceslices"
CLAIMS = "/apis/resource.k8s.io/v1/resourceclaims"
DRIVER = "gpu.nvidia.com"
"""NVIDIA's DRA driver of GPUs."""

HELD: dict[str, tuple[Mechanism, ...]] = {
    "NonMemoryEnforced": (),
    "HamiCore": ("hami",),
    "NvFractions": ("nvfractions",),
}
"""What holds a pod to its share, by KAI Scheduler's `global.gpuSharingMode`."""


@dataclass(frozen=True, slots=True)
class Found:
    """`kai`: what holds the shares that KAI Scheduler gives, None where it gives none. `slices` are DRA's
    devices of each node, whole or as MIG instances."""

    kai: tuple[Mechanism, ...] | None = None
    slices: dict[str, list[Object]] = field(default_factory=dict[str, list[Object]])


async def find(cluster: Cluster, *, kai: bool) -> Found:
    """Look what there is; `kai`: whether KAI Scheduler may be used. What we may not see is not there."""
    configs = await listed(cluster, KAI) if kai else []
    return Found(kai_mode(configs), by_node(await listed(cluster, SLICES)))


async def listed(cluster: Cluster, path: str) -> list[Object]:
    """All objects of a kind; none where the cluster does not know the kind, or we may not see them."""
    try:
        found, _ = await cluster.list(path, {})
    except Answered:
        return []
    return found


def kai_mode(configs: Iterable[Object]) -> tuple[Mechanism, ...] | None:
    """What holds the shares of KAI Scheduler, as its settings say; None where they turn sharing off."""
    for config in configs:
        spec = config.get("spec") or {}
        mode = (spec.get("global") or {}).get("gpuSharingMode")
        if mode is not None:
            return HELD.get(mode)
        if (spec.get("admission") or {}).get("gpuSharing"):
            return ()
    return None


def by_node(slices: Sequence[Object]) -> dict[str, list[Object]]:
    """The devices of each node, of the newest generation of its pool."""
    newest: dict[str, int] = {}
    ours = [one["spec"] for one in slices if one["spec"]["driver"] == DRIVER and one["spec"].get("nodeName")]
    for spec in ours:
        pool = spec["pool"]
        newest[pool["name"]] = max(newest.get(pool["name"], 0), pool["generation"])
    found: dict[str, list[Object]] = {}
    for spec in ours:
        if spec["pool"]["generation"] == newest[spec["pool"]["name"]]:
            found.setdefault(spec["nodeName"], []).extend(spec.get("devices") or [])
    return found
