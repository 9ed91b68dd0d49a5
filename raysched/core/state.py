"""All that the ledger knows. Changed by `evolve` alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from raysched.core.jobs import Job
from raysched.core.lease import Lease
from raysched.core.node import GPU, Node


@dataclass(slots=True)
class State:
    """The folded journal.

    `waiting` holds the ids of waiting jobs in the order they came; `keys` the answers of submissions by
    idempotency key; `ended` the ids of ended jobs, oldest first; `owned` the ids of jobs by owner.
    """

    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    leases: dict[str, Lease] = field(default_factory=dict[str, Lease])
    waiting: dict[str, None] = field(default_factory=dict[str, None])
    ended: dict[str, None] = field(default_factory=dict[str, None])
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    owned: dict[str, dict[str, None]] = field(default_factory=dict[str, dict[str, None]])
    version: int = 0

    def gpu(self, uuid: str, node: str) -> GPU:
        """The GPU `uuid` of `node`. Raises KeyError where there is none."""
        return self.nodes[node].gpus[uuid]
