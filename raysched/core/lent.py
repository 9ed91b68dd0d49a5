"""Nodes that are lent: a job at a site may bring Ray nodes (`slurm: {ray: join}`), which are there as long as
it runs and leave before its time is over. Their GPUs are those that the site gave to the job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from raysched.core import facts
from raysched.core.facts import Fact
from raysched.core.jobs import Job
from raysched.core.node import Node
from raysched.core.state import State

LEAVE = 60_000
"""Milliseconds before its time is over at which a lent node takes nothing new; after half of them what still
runs there is ended. Of a short time it is a quarter (`ray_nodes.py` leaves by the same rule)."""


def sweep(state: State, now: int) -> Iterator[Fact]:
    """Nothing new starts on a node that is about to leave, and one that has left is no more."""
    for name, node in state.nodes.items():
        if has_left(state, node) and not _tenants(state, node):
            yield facts.NodeLeft(now, name)
        elif node.lost is None and not node.draining and _leaves(state, node, now, 1):
            yield facts.Drained(now, name, True)


def overdue(state: State, now: int) -> Iterator[tuple[str, str]]:
    """The leases that have to go from nodes that leave, each with the reason."""
    for name, node in state.nodes.items():
        if node.lost is None and _leaves(state, node, now, 2):
            for lease in _tenants(state, node):
                yield lease, f"{name} leaves: its lease {node.info.lease} is over"


def has_left(state: State, node: Node) -> bool:
    """Whether a lent node is gone for good, with all that ran on it: the site ends it with its job."""
    return node.lost is not None and bool(node.info.lease) and node.info.lease not in state.leases


def brought(state: State, job: Job) -> list[str]:
    """The names of the nodes that are there by this job."""
    nodes = state.nodes.values()
    return sorted(node.info.name for node in nodes if job.lease and node.info.lease == job.lease)


def counted_twice(state: State) -> frozenset[str]:
    """The GPUs of sites that lent nodes have as well."""
    there: Counter[str] = Counter()
    for node in state.nodes.values():
        if node.lost is None and node.info.lease in state.leases:
            there[node.info.lease] += len(node.gpus)
    given = {id: (slice.gpu for place in state.leases[id].places for slice in place.slices) for id in there}
    return frozenset(gpu for id, gpus in given.items() for gpu in islice(gpus, there[id]))


def _leaves(state: State, node: Node, now: int, part: int) -> bool:
    """Whether a node is lent, and less than this part of `LEAVE` is left of its time."""
    if not node.info.lease:
        return False
    lease = state.leases.get(node.info.lease)
    job = state.jobs.get(lease.job) if lease else None
    if job is None or job.state not in ("starting", "running"):
        return True
    limit = job.max_runtime
    return limit is not None and now >= (job.started or now) + limit - min(LEAVE, limit // 4) // part


def _tenants(state: State, node: Node) -> list[str]:
    """The leases on a node."""
    name = node.info.name
    return [lease.id for lease in state.leases.values() if any(place.node == name for place in lease.places)]
