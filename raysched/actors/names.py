"""The names of raysched's actors in Ray, as the dashboard shows them."""

from __future__ import annotations

NAMESPACE = "raysched"
LEDGER = "ledger"
GATEWAY = "gateway"


def node_agent(node: str) -> str:
    """The name of the agent on a node."""
    return f"node/{node}"


def backend(name: str) -> str:
    """The name of a backend's actor."""
    return f"backend/{name}"
