"""Launches that ask something of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kube_cluster import KubeCluster
from running import wait_until

from raysched.backends.base import Backend
from raysched.core.environment import rank_variables
from raysched.core.site import NOWHERE, Demand
from raysched.core.work import Launch, Order, Run, Seen
from raysched.testing.conformance import LIMIT, Hands, new_launch

NOTHING = Demand("", "", 0, 1, False, 0, 0, 0)
IMAGE = "docker.io/library/busybox:1"
UNREACHABLE = "node.kubernetes.io/unreachable"
SOON = {"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": "1"}
"""The toleration of a pod that leaves a node that can't be reached within a second."""
NAMESPACE = "work"
"""Where jobs of tests run."""


def ordered(launch: Launch, *, limit: int | None = None, image: str | None = IMAGE, **fields: Any) -> Launch:
    """A launch that asks for these fields of a demand; what is none is said to Kubernetes alone."""
    names = Demand.__slots__
    demand = replace(NOTHING, **{name: value for name, value in fields.items() if name in names})
    options = tuple((name, value) for name, value in fields.items() if name not in names)
    addresses = [f"@{rank}@" for rank in range(demand.nodes)]
    ranks = tuple(tuple(rank_variables(rank, addresses, 1234, 1).items()) for rank in range(demand.nodes))
    order = Order(demand, limit, options, ranks if demand.nodes > 1 else ())
    return replace(launch, image=image, order=order)


class KubeHands(Hands):
    """A k8s backend in the hands of a test. Old backends go on beside the new one, as if they did not know
    that they are dead."""

    def __init__(self, make: Callable[[], Backend], cluster: KubeCluster) -> None:
        super().__init__(make, NOWHERE)
        self.cluster = cluster
        self._former: list[Backend] = []

    def restart(self) -> None:
        self._former.append(self.backend)
        super().restart()

    def close(self) -> None:
        for former in self._former:
            self.do(former.close())
        self.do(self._closed())
        super().close()

    async def _closed(self) -> None:
        """Let the last backend's connections be gone when it is closed: a loop that is closed at once would
        leave them open."""
        close, loop = self.backend.close, asyncio.get_running_loop()

        async def close_all() -> None:
            await close()
            limit = loop.time() + LIMIT
            while len(loop._selector.get_map()) > 1:  # type: ignore[attr-defined]  # one wakes the loop itself
                assert loop.time() < limit, "connections are left open"
                await asyncio.sleep(0.01)

        self.backend.close = close_all  # type: ignore[method-assign]

    def pods(self, run: Run) -> list[Any]:
        """The pods of a run."""
        found = self.cluster.pods(NAMESPACE)
        return [pod for pod in found if pod["metadata"]["annotations"]["raysched.io/run"] == str(run)]

    def until_pod(self, run: Run) -> Any:
        """The one pod of a run, once it runs."""
        self.until(run, "running")
        (pod,) = self.pods(run)
        return pod

    def until_node_is_lost(self, run: Run, node: str) -> Seen:
        """How a run is seen once it was taken away, as Kubernetes does on nodes that it can't reach. It finds
        that this one answers, and takes the taint away again: then it is put there anew."""
        gone = {"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}

        def told() -> Seen | None:
            self.cluster.patch(f"/api/v1/nodes/{node}", {"spec": {"taints": [gone]}})
            self.do(self.backend.changed(0.2))
            seen = self.seen(run)
            return seen if seen and seen.state == "taken" else None

        return wait_until(told, f"{run} is taken away", LIMIT)

    def until_reason(self, run: Run, *words: str) -> Seen:
        """How a run is seen once it says all of these words."""
        last: list[Seen | None] = []

        def told() -> Seen | None:
            self.do(self.backend.changed(0.2))
            last[:] = [seen := self.seen(run)]
            return seen if seen and all(word in seen.reason for word in words) else None

        try:
            return wait_until(told, f"{run} says {words}", LIMIT)
        except AssertionError:
            raise AssertionError(f"{run} does not say {words} but is {last}") from None

    def launch(
        self,
        entrypoint: str | Sequence[str],
        env: Mapping[str, str] | None = None,
        package: str | None = None,
    ) -> Launch:
        return ordered(new_launch(entrypoint, NOWHERE, env, package))
