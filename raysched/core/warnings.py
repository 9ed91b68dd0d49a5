"""What is wrong with what a job runs on, or with what it uses: its owner is told, and the job goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from raysched.core.lease import Lease
from raysched.core.measured import Over
from raysched.core.node import NodeInfo
from raysched.core.state import State
from raysched.core.words import short, stamp

Overs = Mapping[str, tuple[Over, ...]]


def warning(state: State, lease: Lease, seen: NodeInfo | None = None, over: Overs | None = None) -> str:
    """The first thing that is wrong with a GPU of the lease, or with what it uses; empty if all is well. One
    node is as `seen` says, and who is over their share of some GPUs as `over` does."""
    return next(_faults(state, lease, seen), "") or next(_excesses(state, lease, over or {}), "")


def _faults(state: State, lease: Lease, seen: NodeInfo | None) -> Iterator[str]:
    for place in lease.places:
        info = seen if seen is not None and place.node == seen.name else state.nodes[place.node].info
        gpus = {gpu.uuid: gpu for gpu in info.gpus}
        for slice in place.slices:
            found = gpus.get(slice.gpu)
            if found is None:
                yield f"{slice.gpu} is no longer there on {place.node}"
            elif found.fault:
                yield f"{slice.gpu} on {place.node} is faulty: {found.fault}"


def _excesses(state: State, lease: Lease, news: Overs) -> Iterator[str]:
    """What it uses beyond its share, on whatever GPU of its nodes."""
    for place in lease.places:
        for uuid, gpu in state.nodes[place.node].gpus.items():
            for over in news.get(uuid, gpu.over):
                if over.lease == lease.id and over.action != "report":
                    end = f"; unless it uses less it is ended at {stamp(over.until)}" if over.until else ""
                    yield f"uses {excess(over.used, over, place.node)}{end}"


def excess(used: int, over: Over, node: str) -> str:
    """How much is used of what, and how much of it was given."""
    had = f"has {over.held} MiB of it" if over.held else "has no part of it"
    return f"{used} MiB of {short(over.device)} on {node} and {had}"
