"""Reaches the node agents: one actor a node, named after it."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, RayActorError, RayTaskError

from raysched.errors import Unreachable

NAMESPACE = "raysched"
"""The namespace of all actors of ours."""


def agent_name(node: str) -> str:
    """The name of the agent actor of a node."""
    return f"node/{node}"


class Agents:
    """Asks node agents, each with its own time-out, so that a slow node delays no other."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    async def ask(self, node: str, timeout: float, method: str, *arguments: object) -> Any:
        """What the agent of `node` answers. Raises Unreachable where none comes within `timeout` seconds,
        and whatever the method raises."""
        try:
            agent = await asyncio.to_thread(self._agent, node)
            return await asyncio.wait_for(getattr(agent, method).remote(*arguments), timeout)
        except RayTaskError as error:
            raise error.cause from None
        except (ValueError, RayActorError, ActorUnschedulableError, asyncio.TimeoutError) as error:
            # Unschedulable: the node has left; it may be back, with another agent of that name.
            self._handles.pop(node, None)
            raise Unreachable(f"The raysched agent of {node} does not answer") from error

    def _agent(self, node: str) -> Any:
        if node not in self._handles:
            self._handles[node] = ray.get_actor(agent_name(node), namespace=NAMESPACE)
        return self._handles[node]
