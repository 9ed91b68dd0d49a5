"""A Kubernetes cluster as people see it: what its groups of nodes offer, and what each kind of request would
become there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import Any

from raysched.core import pods
from raysched.core.asking import pod_ask
from raysched.core.compile import compile_resources
from raysched.core.node import NodeInfo
from raysched.core.offers import Offer, offer, sharing_of
from raysched.core.placement import ways
from raysched.core.request import Request
from raysched.core.site import Demand, Site, Unfit, profile_of
from raysched.errors import NotFound
from raysched.specs.resources import Resources

View = dict[str, Any]

PLAIN: tuple[dict[str, Any], ...] = (
    {"gpus": 1},
    {"gpu_fraction": 0.25},
    {"gpu_memory": "10GiB"},
    {"gpu_fraction": 0.25, "isolation": "hard"},
    {"gpu_fraction": 0.25, "sharing": "time_slice"},
    {"gpu_fraction": 0.25, "sharing": "mps"},
)
"""Kinds of requests that make sense for any cluster; those for its MIG profiles come in addition."""
USUAL_PROFILE = "1g.10gb"


def cluster_view(site: Site | None, lost: Container[str] = ()) -> View:
    """What was found, by groups of nodes that offer the same, and what requests would become. Nodes that are
    `lost` are told apart; what they offered may come again. Raises NotFound where there is no cluster, or it
    was not heard of yet."""
    if site is None:
        raise NotFound("no Kubernetes cluster is known: name one under backends.k8s in raysched.yaml")
    profiles = sorted({profile_of(gpu.model) for node in site.nodes for gpu in node.gpus} - {""})
    kinds = [*PLAIN, *({"mig_profile": profile} for profile in profiles or [USUAL_PROFILE])]
    return {"groups": list(_groups(site.nodes, lost)), "requests": [becomes(site, kind) for kind in kinds]}


def _groups(nodes: Sequence[NodeInfo], lost: Container[str]) -> Iterator[View]:
    alike: dict[frozenset[tuple[Offer, int]], list[str]] = {}
    for node in nodes:
        offers = frozenset(Counter(map(offer, node.gpus)).items())
        alike.setdefault(offers, []).append(node.name)
    for offers, names in sorted(alike.items(), key=lambda item: min(item[1])):
        rows = [_offered(one, count) for one, count in offers]
        rows.sort(key=lambda row: (row["resource"], row["model"]))
        there = sorted(name for name in names if name not in lost)
        yield {"nodes": there, "lost": sorted(set(names) - set(there)), "offers": rows}


def _offered(one: Offer, count: int) -> View:
    """One of what each node of a group offers: `shares` says in which way it is shared, `held_by` what holds
    a pod to its share (null: nothing does)."""
    mig = "MIG" if one.profile else None
    return {
        "count": count,
        "model": one.model,
        "memory_mib": one.memory or None,
        "resource": one.resource,
        "by": "claim" if one.way == "dra" else "scheduler" if one.way else "device plugin",
        "shares": sharing_of(one) if one.shared else mig,
        "parts": one.parts or None,
        "held_by": one.held if one.shared else "mig" if mig else "exclusive",
    }


def group_words(node: NodeInfo) -> str:
    """What a node offers, in a few words: `4 x A100 whole`, `7 x A100 MIG 1g.10gb`."""
    counted = sorted(Counter(map(offer, node.gpus)).items(), key=lambda item: item[0].model)
    return ", ".join(f"{count} x {_offer_words(one)}" for one, count in counted)


def _offer_words(one: Offer) -> str:
    if one.profile:
        return f"{one.model}, a MIG instance each"
    if not one.shared:
        return f"{one.model}, whole"
    parts = f"{one.parts} replicas each by " if one.parts else "shared by "
    return f"{one.model}, {parts}{sharing_of(one)}"


def becomes(site: Site, kind: dict[str, Any]) -> View:
    """What a request for these resources becomes: `pod` is what each pod then says, null where `refused` says
    why it can't be."""
    row: View = {"asks": ", ".join(f"{name}: {value}" for name, value in kind.items())}
    try:
        demand = _demand(site, compile_resources(Resources(**kind), "k8s"))
    except Unfit as unfit:
        return {**row, "pod": None, "refused": str(unfit)}
    return {**row, "pod": pod_ask(demand).words(), "refused": None}


def _demand(site: Site, request: Request) -> Demand:
    """What it asks of the cluster, in the first way that will do. Raises Unfit, as it was asked."""
    *others, plain = ways(request)
    for way in others:
        try:
            return pods.demand(site, way)
        except Unfit:
            continue
    return pods.demand(site, plain)
