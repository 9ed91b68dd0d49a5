"""A machine that Ray and SSH both reach is one node, Ray's: the vm backend starts work on it by its host, and
Ray holds what of it is granted. A GPU is known by its UUID, whoever finds it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from raysched.core import facts, hosts
from raysched.core.facts import Fact
from raysched.core.lease import Lease
from raysched.core.node import NodeInfo
from raysched.core.state import State


def ways(state: State) -> dict[str, str]:
    """For each node of Ray that is a host of the inventory as well, the name of that host."""
    return {known.node: name for name, known in reversed(state.hosts.items()) if known.node}


def uncleared(lease: Lease, node: str, ways: dict[str, str]) -> bool:
    """Whether something of a lease may be left on a node of Ray that only its host can end: what the vm
    backend has started, or is about to."""
    return lease.backend == "vm" and node in ways and node not in lease.cleared


def hosts_of(state: State, info: NodeInfo) -> list[str]:
    """The hosts that are nodes so far, and are the machine that Ray describes now. A machine whose jobs of
    the vm backend need no SSH has none."""
    if info.ray_id is None or "vm" in info.backends:
        return []
    homes = {state.homes.get(gpu.uuid) for gpu in info.gpus}
    return [name for name in state.hosts if _is_own(state, name) and _is_this(state, name, info, homes)]


def stands_in_the_way(state: State, info: NodeInfo, same: Sequence[str]) -> bool:
    """Whether another machine, a host, is the node of that name."""
    if info.name not in state.hosts or info.name in same:
        return False
    return info.site or "vm" in info.backends or _is_own(state, info.name)


def _is_own(state: State, name: str) -> bool:
    """Whether a host is a node of its own."""
    return name in state.nodes and state.nodes[name].info.ray_id is None


def _is_this(state: State, name: str, info: NodeInfo, homes: Collection[str | None]) -> bool:
    return _same(state.nodes[name].info, info) if name == info.name else name in homes


def _same(one: NodeInfo, other: NodeInfo) -> bool:
    """Whether two that are named alike are one machine: they have a GPU in common, or none at all."""
    mine, others = ({gpu.uuid for gpu in info.gpus} for info in (one, other))
    return bool(mine & others) or not (mine or others)


def taken_over(state: State, info: NodeInfo, same: Sequence[str], now: int) -> Iterator[Fact]:
    """The nodes of these hosts are no more, as they are what `info` describes; one on which somebody holds
    something gets nothing new until it is free."""
    for name in same:
        if name == info.name:
            continue
        if not hosts.held(state, name):
            yield facts.NodeRemoved(now, name)
        elif state.nodes[name].info.backends:
            yield facts.NodeJoined(now, replace(state.nodes[name].info, backends=()))


def known_as(state: State, node: str, same: Sequence[str], now: int) -> Iterator[Fact]:
    """These hosts are that node."""
    for name in same:
        if state.hosts[name].node != node:
            yield facts.HostIs(now, name, node)


def of_host(state: State, info: NodeInfo) -> tuple[str, str]:
    """The node of Ray that a host is (empty: it is one of its own), and why it can't be used (empty: it
    can)."""
    others = sorted({state.homes[gpu.uuid] for gpu in info.gpus if _elsewhere(state, gpu.uuid, info.name)})
    if others:
        other = state.nodes[others[0]].info
        if len(others) == 1 and other.ray_id is not None and "vm" not in other.backends:
            return other.name, ""
        return "", f"its GPUs are those of {others[0]}, which is in use already: take one of the two out"
    named = state.nodes.get(info.name)
    if named is not None and named.info.ray_id is not None:
        return _named_alike(state, info, named.info, named.lost is not None)
    before = state.hosts[info.name].node
    if before in state.nodes and state.nodes[before].lost is None and named is not None:
        return before, ""  # its jobs end first
    return (before, "") if hosts.held(state, info.name) and named is None else ("", "")


def _named_alike(state: State, info: NodeInfo, ray: NodeInfo, lost: bool) -> tuple[str, str]:
    if lost and not hosts.taken(state, info.name):
        return "", ""
    if not _same(info, ray):
        return "", "a node of Ray is called so too, and has other GPUs: give the host another name"
    if "vm" in ray.backends:
        return "", "jobs run on this machine without SSH: take it out"
    return info.name, ""


def without_foreign_gpus(state: State, info: NodeInfo, same: Sequence[str] = ()) -> NodeInfo:
    """A GPU that another node has is one GPU, and stays there until that node is lost, or is `same` as this
    one, and nobody holds it."""
    free = [name for name in same if not hosts.held(state, name)]
    gpus = tuple(
        gpu
        for gpu in info.gpus
        if state.homes.get(gpu.uuid) in free or not _elsewhere(state, gpu.uuid, info.name)
    )
    return info if len(gpus) == len(info.gpus) else replace(info, gpus=gpus)


def _elsewhere(state: State, uuid: str, name: str) -> bool:
    home = state.homes.get(uuid, name)
    node = state.nodes.get(home)
    gpu = node.gpus.get(uuid) if node else None
    if node is None or gpu is None or home == name:
        return False
    return node.lost is None or bool(gpu.tenants)


def cut_off(state: State, lease: Lease, ways: dict[str, str], before: int) -> Iterator[str]:
    """The nodes of Ray where the vm backend has work of a lease, and has not reached their hosts since then
    (ms since 1970)."""
    for place in lease.places:
        if uncleared(lease, place.node, ways):
            since = state.hosts[ways[place.node]].since
            if since is not None and since <= before:
                yield place.node
