"""Kubernetes clusters: what of one a request asks for, in pods that are all alike, or why it can't be.

A cluster is a site (`core/site.py`): its own scheduler chooses the nodes. What it gives out `core/offers.py`
knows, and how that is said to Kubernetes `core/asking.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from raysched.core.node import NodeInfo
from raysched.core.offers import Offer, offer, share_needed, suitable
from raysched.core.request import WHOLE, Request, memory_of_share
from raysched.core.site import UNTYPED, Demand, Site, Unfit, too_large
from raysched.core.words import asks


@lru_cache(maxsize=1024)
def demand(site: Site, request: Request) -> Demand:
    """What `request` (one way of sharing) asks of a cluster. Raises Unfit."""
    room = [node for node in site.nodes if request.cpus <= node.cpus and request.host_memory <= node.memory]
    if not room:
        raise Unfit(too_large(site.nodes, request, "cluster"))
    if not request.gpus:
        return Demand("", "", 0, request.nodes or 1, False, request.cpus, request.host_memory, WHOLE)
    gpus = sorted((gpu for node in site.nodes for gpu in node.gpus), key=lambda gpu: gpu.memory)
    often = Counter(map(offer, gpus))  # each with the least memory that one of it has
    last: Unfit | None = None
    for one in suitable(often, request):
        try:
            return _counted(room, often, one, request)
        except Unfit as unfit:
            last = last or unfit
    raise last or Unfit(f"asks for {asks(request)}, and the cluster has none")


def _counted(room: Sequence[NodeInfo], often: Counter[Offer], one: Offer, request: Request) -> Demand:
    """Spread the request over pods that have the same count each, as few as will do."""
    have = [sum(offer(gpu) == one for gpu in node.gpus) for node in room]
    pods = request.nodes or next(
        (
            pods
            for pods in range(1, min(request.gpus, len(room)) + 1)
            if request.gpus % pods == 0 and sum(count >= request.gpus // pods for count in have) >= pods
        ),
        0,
    )
    if pods and request.gpus % pods:
        raise Unfit(f"nodes: {request.gpus} GPUs are not the same number on each of {pods} nodes")
    if not pods or not any(count >= request.gpus // pods for count in have):
        raise Unfit(
            f"gpus: asks for {asks(request)}, and the cluster has {sum(have)} such "
            f"GPU{'s' * (sum(have) != 1)}, {max(have)} on one node at most"
        )
    if one.parts and request.gpus // pods > 1:
        raise Unfit(
            f"gpus: asks for {asks(request)}; the GPUs here are shared by {one.parts} replicas each, two of "
            "which may be of one GPU, so a pod can have one: submit an array instead"
        )
    only = one.model == UNTYPED or (len(often) == 1 and not (one.way == "dra" and one.profile))
    return Demand(
        "gpu",
        "" if only else one.model,
        request.gpus // pods,
        pods,
        False,
        request.cpus,
        request.host_memory,
        _share(one, request),
        one.resource,
        one.way,
        _memory(one, request),
    )


def _share(one: Offer, request: Request) -> int:
    """The share of each GPU that a pod then has."""
    part = request.sharing not in ("exclusive", "mig") and not one.parts
    return max(1, share_needed(one, request)) if part else one.share


def _memory(one: Offer, request: Request) -> int:
    """The MiB of each GPU that a pod says it needs, 0 where it says its share alone."""
    if request.sharing in ("exclusive", "mig") or one.parts:
        return 0
    if one.way == "kai" and request.share is not None:
        return 0  # it takes either, and a share brings its memory along
    by_share = memory_of_share(share_needed(one, request), one.memory) if request.share is not None else 0
    return max(request.memory or 0, by_share)
