"""What it leads to that a site says where it put a lease."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from raysched.core import commands, facts, warnings
from raysched.core.facts import Fact
from raysched.core.lease import Lease, Place, Slice
from raysched.core.node import Node
from raysched.core.request import WHOLE
from raysched.core.state import State


def placed(state: State, command: commands.Placed, now: int) -> Iterator[Fact]:
    """The lease has these places from now on. One that was put where the ledger still has another is heard
    again: a site may give a GPU to the next job before the ledger has heard that the last one ended."""
    lease = state.leases.get(command.lease)
    if lease is None or lease.state != "bound" or lease.places == command.places:
        return
    job = state.jobs[lease.job]
    if not job.single or not all(_has_room(state, lease, place) for place in command.places):
        return
    yield facts.Placed(now, lease.id, command.places)
    warning = warnings.warning(state, replace(lease, places=command.places))
    if warning != job.warning:
        yield facts.Warned(now, job.id, warning)


def _has_room(state: State, lease: Lease, place: Place) -> bool:
    """Whether a site can have put a lease there: on its own nodes, beside whoever the ledger has there."""
    node = state.nodes.get(place.node)
    if node is None or not node.info.site:
        return False
    return all(_has_slice(node, lease, slice) for slice in place.slices)


def _has_slice(node: Node, lease: Lease, slice: Slice) -> bool:
    gpu = node.gpus.get(slice.gpu)
    if gpu is None or not gpu.present:
        return False
    others = [held for id, held in gpu.tenants.items() if id != lease.id]
    shared = lease.sharing != "exclusive" and gpu.sharing in (None, lease.sharing)
    used = sum(slice.share for held in others for slice in held)
    return not others or (shared and used + slice.share <= WHOLE)
