"""The names of raysched's actors in Ray, as the dashboard shows them."""

from __future__ import annotations

NAMESPACE = "raysched"
NODE_LABEL = "raysched.io/node"
"""A Ray node label that names the node; without it the host's name does."""
SIMULATE_LABEL = "raysched.io/simulate"
"""A Ray node label that gives the node simulated GPUs, such as `2xA100-80GB`."""
LEASE_LABEL = "raysched.io/lease"
"""A Ray node label that names the lease under which a site lends the node."""

LEDGER = "ledger"
GATEWAY = "gateway"


def node_agent(node: str) -> str:
    """The name of the agent on a node."""
    return f"node/{node}"


def backend(name: str) -> str:
    """The name of a backend's actor."""
    return f"backend/{name}"
