"""The actors of a running system: each made once, found again ever after."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysched.actors import names
from raysched.actors.settings import Settings

NODE_LABEL = "raysched.io/node"
"""A Ray node label that names the node; without it the host's name does."""
SIMULATE_LABEL = "raysched.io/simulate"
"""A Ray node label that gives the node simulated GPUs, such as `2xA100-80GB`."""


def ensure(settings: Settings) -> None:
    """Make every actor that is not there yet."""
    from raysched.actors.backend import BackendActor
    from raysched.actors.gateway import Gateway
    from raysched.actors.ledger import Ledger

    ledger = _ensure(Ledger, names.LEDGER, settings)
    ray.get(ledger.ping.remote())
    ensure_agents(settings, alive_nodes())
    for name in settings.backends:
        _ensure(BackendActor, names.backend(name), name, settings)
    _ensure(Gateway, names.GATEWAY, settings)


def _ensure(cls: type, name: str, *args: Any) -> Any:
    """The detached actor `name` on the head node, made if it is not there."""
    options = _options(name) | {"resources": {"node:__internal_head__": 0.001}}
    return ray.remote(cls).options(**options).remote(*args)


def _options(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": names.NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_concurrency": 1000,
    }


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's description of each node that is alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_name(node: dict[str, Any], alive: list[dict[str, Any]]) -> str:
    """A node's name in the ledger: its label, or its host's name; a further Ray node of the same host gets
    its own address's port behind it, so that names stay unique."""
    label = node.get("Labels", {}).get(NODE_LABEL)
    if label:
        return label
    host = node["NodeManagerHostname"]
    same = [other for other in alive if other["NodeManagerHostname"] == host and not _is_head(other)]
    first = _is_head(node) or (not _head_on(host, alive) and same[0]["NodeID"] == node["NodeID"])
    return host if first else f"{host}-{node['NodeID'][:6]}"


def _is_head(node: dict[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]


def _head_on(host: str, alive: list[dict[str, Any]]) -> bool:
    return any(_is_head(node) and node["NodeManagerHostname"] == host for node in alive)


def ensure_agents(settings: Settings, alive: list[dict[str, Any]]) -> None:
    """Make the agent of each node that has none."""
    from raysched.actors.node_agent import NodeAgent

    for node in alive:
        name = node_name(node, alive)
        pin = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        simulate = node.get("Labels", {}).get(SIMULATE_LABEL) or (
            settings.simulate if _is_head(node) else None
        )
        options = _options(names.node_agent(name)) | {"scheduling_strategy": pin}
        ray.remote(NodeAgent).options(**options).remote(settings, name, node["NodeID"], simulate)
