"""Nodes that are called alike and are of different clusters: the name is the other's, and that of a site has
its site's behind it. What holds a lease goes on meanwhile."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace

from raysched.core import facts, hosts
from raysched.core.facts import Fact
from raysched.core.node import Node, NodeInfo
from raysched.core.state import State


def own_name(name: str, backend: str, taken: Mapping[str, Sequence[str]]) -> str:
    """What a site's node is called; `taken` are the names of all nodes, and by which backends each is."""
    return name if backend in taken.get(name, (backend,)) else _aside(name, backend)


def gone(backend: str, taken: Mapping[str, Sequence[str]], there: Container[str]) -> list[str]:
    """The names of a site's nodes that it has no more, of those that are `taken`."""
    return [name for name, backends in taken.items() if backend in backends and name not in there]


def _aside(name: str, backend: str) -> str:
    return f"{name}@{backend}"


def of_site(node: Node, backend: str) -> bool:
    """Whether a node is of that backend's site."""
    return node.info.site and backend in node.info.backends


def are(known: NodeInfo, info: NodeInfo) -> bool:
    """Whether these two, of one name, are of different clusters, one of them a site."""
    return (known.site or info.site) and (known.site, known.backends) != (info.site, info.backends)


def apart(state: State, known: Node, info: NodeInfo, now: int) -> Iterator[Fact]:
    """A node that is described has the name of one of another cluster. A site's own look at the nodes gives
    it another; one that was there first is renamed, unless somebody holds something on an earlier one that
    was: its site will say where that is now."""
    if info.site:
        return
    name = _aside(info.name, known.info.backends[0])
    if name in state.nodes:
        if hosts.taken(state, name):
            return
        yield facts.NodeRemoved(now, name)
    yield facts.NodeRenamed(now, info.name, name)
    gpus = tuple(gpu for gpu in info.gpus if gpu.uuid not in known.gpus)
    yield facts.NodeJoined(now, replace(info, gpus=gpus))
