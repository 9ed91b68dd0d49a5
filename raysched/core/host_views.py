"""What the API shows of the hosts of the inventory, as plain JSON values: the shapes of docs/api.md."""

from __future__ import annotations

from typing import Any

from raysched.core.host import KnownHost
from raysched.core.state import State
from raysched.errors import NotFound

View = dict[str, Any]


def hosts_view(state: State) -> View:
    """All hosts, by name."""
    return {"hosts": [_host_view(state, known) for _, known in sorted(state.hosts.items())]}


def host_view(state: State, name: str) -> View:
    """One host. Raises NotFound."""
    if name not in state.hosts:
        raise NotFound(f"no host {name}: `raysched vm list` shows those that there are")
    return _host_view(state, state.hosts[name])


def _host_view(state: State, known: KnownHost) -> View:
    host, name = known.host, known.node or known.host.name
    node = state.nodes.get(name)
    own = [lease for lease in state.leases.values() if not known.node or lease.backend == "vm"]
    leases = [lease for lease in own if any(place.node == name for place in lease.places)]
    return {
        "name": host.name,
        "address": host.address,
        "user": host.user,
        "port": host.port,
        "jump": host.jump,
        "labels": dict(host.labels),
        "origin": known.origin,
        "state": _state(state, known),
        "reason": known.reason or "",
        "node": name,
        "gpus": [gpu.info.model for gpu in node.gpus.values()] if node else [],
        "jobs": len({lease.job for lease in leases}),
    }


def _state(state: State, known: KnownHost) -> str:
    node = state.nodes.get(known.node or known.host.name)
    if known.leaving:
        return "leaving"
    if known.reason:
        return "out"
    if node is None or node.lost is not None:
        return "new"
    return "cordoned" if node.draining else "ready"
