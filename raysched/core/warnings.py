"""What is wrong with the GPUs that a job runs on: its owner is told, and the job goes on."""

from __future__ import annotations

from raysched.core.lease import Lease
from raysched.core.node import NodeInfo
from raysched.core.state import State


def warning(state: State, lease: Lease, seen: NodeInfo) -> str:
    """The first thing that is wrong with a GPU of the lease, with one node being as `seen` says; empty if
    all are well."""
    for place in lease.places:
        info = seen if place.node == seen.name else state.nodes[place.node].info
        gpus = {gpu.uuid: gpu for gpu in info.gpus}
        for slice in place.slices:
            found = gpus.get(slice.gpu)
            if found is None:
                return f"{slice.gpu} is no longer there on {place.node}"
            if found.fault:
                return f"{slice.gpu} on {place.node} is faulty: {found.fault}"
    return ""
