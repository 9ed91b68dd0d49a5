"""The actors of a running system: each made once, found again ever after."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysched.actors import names
from raysched.actors.names import NODE_LABEL, SIMULATE_LABEL
from raysched.actors.settings import Settings

MAKE_S = 30.0
"""How long somebody else may take to make the actor that we want too."""


def ensure(settings: Settings) -> None:
    """Make every actor that is not there yet."""
    from raysched.actors.backend import BackendActor
    from raysched.actors.gateway.actor import Gateway
    from raysched.actors.ledger import Ledger

    ledger = _ensure(Ledger, names.LEDGER, settings)
    ray.get(ledger.ping.remote())
    ensure_agents(settings, alive_nodes())
    for name in settings.backends:
        _ensure(BackendActor, names.backend(name), name, settings)
    _ensure(Gateway, names.GATEWAY, settings)


def _ensure(cls: type, name: str, *args: Any) -> Any:
    """The detached actor `name` on the head node, made if it is not there."""
    return _make(cls, _options(name) | {"resources": {"node:__internal_head__": 0.001}}, *args)


def _make(cls: type, options: dict[str, Any], *args: Any) -> Any:
    """The actor with these options, made if it is not there. `up` and the ledger may make the same one at
    once: Ray refuses it to the slower, who for a moment can't look it up either."""
    deadline = time.monotonic() + MAKE_S
    while True:
        try:
            return ray.remote(cls).options(**options).remote(*args)
        except ValueError as error:
            if "Failed to look up actor" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


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
    """A node's name in the ledger: its label, else its host's name. A further Ray node on the head's host
    gets the start of Ray's id behind it; several on another host need labels."""
    label = node.get("Labels", {}).get(NODE_LABEL)
    if label:
        return label
    host = node["NodeManagerHostname"]
    beside_head = any(_is_head(other) and other["NodeManagerHostname"] == host for other in alive)
    return f"{host}-{node['NodeID'][:6]}" if beside_head and not _is_head(node) else host


def _is_head(node: dict[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]


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
        _make(NodeAgent, options, settings, name, node["NodeID"], simulate)


def dismiss_agents(nodes: list[str]) -> None:
    """End the agents of nodes that are gone, so that one of the same name can have its own again."""
    for node in nodes:
        with suppress(ValueError):  # it is not there
            ray.kill(ray.get_actor(names.node_agent(node), namespace=names.NAMESPACE), no_restart=True)
