"""What commands about the inventory of machines behind SSH lead to."""

from __future__ import annotations

from collections.abc import Iterator

from raysched.core import commands, facts
from raysched.core.facts import Fact
from raysched.core.host import Host, Origin
from raysched.core.node import Node, NodeInfo
from raysched.core.state import State
from raysched.errors import Conflict, NotFound


def inventory(state: State, command: commands.Inventory, now: int) -> Iterator[Fact]:
    """Take over the hosts of the configuration. One that another node is named like is left out."""
    named = {host.name: host for host in command.hosts}
    for name, known in state.hosts.items():
        if known.origin == "file" and name not in named and not known.leaving:
            yield from _leave(state, name, now)
    for host in named.values():
        if not _is_node(state, host.name):
            yield from _put(state, host, "file", now)


def add(state: State, command: commands.AddHost, now: int) -> Iterator[Fact]:
    """Raises Conflict for a name or an address that is taken, and for a change of a host that somebody holds
    part of."""
    name = command.host.name
    known = state.hosts.get(name)
    if _is_node(state, name):
        raise Conflict(f"{name} is the name of a node already: give the host another with --name")
    if known is not None and known.origin == "file" and known.host != command.host:
        raise Conflict(f"{name} is in the configuration: change it there, and run `raysched up` again")
    if known is not None and known.host != command.host and held(state, name):
        raise Conflict(f"{name} is in use: `raysched vm remove {name}`, and add it again once it is gone")
    for other in state.hosts.values():
        if other.host.name != name and not other.leaving and _way(other.host) == _way(command.host):
            raise Conflict(f"{other.host.name} has this address already: a machine is one host")
    yield from _put(state, command.host, known.origin if known else "command", now)


def _way(host: Host) -> tuple[object, ...]:
    """What leads to a host: nothing else leads there that is the same."""
    return host.address, host.port, host.jump


def remove(state: State, command: commands.RemoveHost, now: int) -> Iterator[Fact]:
    """Raises NotFound, and Conflict for a host that the configuration names."""
    known = state.hosts.get(command.name)
    if known is None:
        raise NotFound(f"no host {command.name}: `raysched vm list` shows those that there are")
    if known.origin == "file":
        raise Conflict(
            f"{command.name} is in the configuration: take it out there, and run `raysched up` again; "
            f"`raysched node cordon {command.name}` starts nothing new on it"
        )
    if not known.leaving:
        yield from _leave(state, command.name, now)


def out_of_reach(state: State, command: commands.HostOut, now: int) -> Iterator[Fact]:
    """The reason is noted, and the node that the host was is lost."""
    known = state.hosts.get(command.name)
    if known is None:
        return
    if known.reason != command.reason:
        yield facts.HostObserved(now, command.name, command.reason)
    yield from _lost(state, command.name, now)


def _lost(state: State, name: str, now: int) -> Iterator[Fact]:
    """The node that a host is, if it is one, is lost."""
    node = state.nodes.get(name)
    if node is not None and node.lost is None and node.info.ray_id is None:
        yield facts.NodeLost(now, name)


def back(state: State, name: str, now: int) -> Iterator[Fact]:
    """The host can be used."""
    if state.hosts[name].reason != "":
        yield facts.HostObserved(now, name, "")


def make_way(state: State, info: NodeInfo, now: int) -> Iterator[Fact]:
    """A node that is no host has the name of one. A node of Ray takes its place, once nobody holds anything
    there, as it does in a configuration that is read later; a site's is told under another name."""
    if not info.site and not state.hosts[info.name].leaving:
        yield from _leave(state, info.name, now)


def cordon(state: State, command: commands.Cordon, now: int) -> Iterator[Fact]:
    """Start nothing new on a node, or use it again. Raises NotFound, and Conflict for a node of a site."""
    node = find_node(state, command.node)
    if node.info.site:
        raise Conflict(
            f"{command.node} is a node of {' and '.join(node.info.backends)}, which has to be told: "
            f"`raysched node cordon {command.node}` does"
        )
    if node.draining != command.on:
        yield facts.Drained(now, node.info.name, command.on)


def find_node(state: State, name: str) -> Node:
    """The node of that name, or that the host of that name is. Raises NotFound."""
    host = state.hosts.get(name)
    node = state.nodes.get(host.node if host is not None and host.node else name)
    if node is None:
        raise NotFound(f"no node {name}: `raysched gpus` lists those that are known")
    return node


def sweep(state: State, now: int) -> Iterator[Fact]:
    """Take out the hosts that are to go and are free."""
    for name, known in state.hosts.items():
        if known.leaving and not held(state, name):
            yield from _gone(state, name, now)


def out(state: State) -> str:
    """Words for the hosts that can't be used, to stand behind another reason; empty where all can."""
    parts = [f"{name} is out: {known.reason}" for name, known in state.hosts.items() if known.reason]
    return "".join(f"; {part}" for part in parts)


def held(state: State, name: str) -> bool:
    """Whether anybody holds anything that is reached by a host: on its node, or, where that is a node of Ray,
    by the vm backend."""
    known, own = state.hosts.get(name), state.nodes.get(name)
    if own is not None and own.info.ray_id is None and taken(state, name):
        return True
    return known is not None and bool(known.node) and taken(state, known.node, "vm")


def taken(state: State, node: str, backend: str | None = None) -> bool:
    """Whether anybody holds anything on a node, by that backend or by any."""
    return any(
        place.node == node
        for lease in state.leases.values()
        if backend in (None, lease.backend)
        for place in lease.places
    )


def _is_node(state: State, name: str) -> bool:
    """Whether a node has this name that is no host, and can't be one: of a site, or this machine."""
    node = state.nodes.get(name)
    if node is None or name in state.hosts:
        return False
    return node.info.ray_id is None or "vm" in node.info.backends


def _put(state: State, host: Host, origin: Origin, now: int) -> Iterator[Fact]:
    known = state.hosts.get(host.name)
    if known is None or known.leaving or (known.host, known.origin) != (host, origin):
        yield facts.HostAdded(now, host, origin)
        if known is not None and known.leaving and _own_node(state, host.name):
            yield facts.Drained(now, host.name, False)
        if known is not None and known.host != host:
            yield from _lost(state, host.name, now)  # nobody has reached it there yet


def _leave(state: State, name: str, now: int) -> Iterator[Fact]:
    if not held(state, name):
        yield from _gone(state, name, now)
        return
    yield facts.HostLeaving(now, name)
    if _own_node(state, name) and not state.nodes[name].draining:
        yield facts.Drained(now, name, True)


def _gone(state: State, name: str, now: int) -> Iterator[Fact]:
    """A host is no more, nor is the node of Ray that it was, where that is lost too."""
    yield facts.HostRemoved(now, name)
    node = state.nodes.get(state.hosts[name].node)
    if node is not None and node.lost is not None and not taken(state, node.info.name):
        yield facts.NodeRemoved(now, node.info.name)


def _own_node(state: State, name: str) -> bool:
    """Whether a host is a node of its own, and none of Ray's."""
    node = state.nodes.get(name)
    return node is not None and node.info.ray_id is None
