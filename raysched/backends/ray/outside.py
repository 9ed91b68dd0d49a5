"""Finds the GPUs that somebody holds in Ray without a lease of ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from ray._private.state import available_resources_per_node, total_resources_per_node

from raysched.backends.ray.exact import Ask, Exact, Unavailable
from raysched.backends.ray.groups import Bundle
from raysched.backends.ray.records import Records
from raysched.core.node import NodeInfo
from raysched.core.request import WHOLE

SETTLE_S = 1.0
"""How long a node's numbers must stand still before they count: what was freed or taken shows up in them
after up to 0.8 s."""


@dataclass(slots=True)
class Sight:
    """What is known of a node: the share (in ten-thousandths) that others hold, None where that is in doubt,
    and the GPUs it lies on. `last` are the share of others and our GPUs as last seen, so since `since`."""

    taken: int | None = 0
    gpus: tuple[str, ...] = ()
    last: tuple[int, frozenset[int]] = (0, frozenset())
    since: float = 0.0


class Outside:
    """Compares what Ray gave away with what is ours. Ray tells only how much of a node is taken, so where
    that changed, all free GPUs are taken for a moment: those that are neither free nor ours are others'."""

    def __init__(self, records: Records, exact: Exact) -> None:
        self._records = records
        self._exact = exact
        self._sights: dict[str, Sight] = {}

    async def look(self, nodes: dict[str, NodeInfo]) -> dict[str, tuple[str, ...]]:
        """For each node the UUIDs of the GPUs that others hold. A change counts once two calls, SETTLE_S
        apart, saw it."""
        total = await asyncio.to_thread(total_resources_per_node)
        available = await asyncio.to_thread(available_resources_per_node)
        present = [(node, node.ray_id) for node in nodes.values() if node.ray_id]
        present = [(node, id) for node, id in present if id in available and id in total]
        looks = [
            self._look(node, id, total[id].get("GPU", 0), available[id].get("GPU", 0)) for node, id in present
        ]
        found = await asyncio.gather(*looks)
        return {node.name: gpus for (node, _), gpus in zip(present, found, strict=True)}

    def doubt(self, nodes: Iterable[str]) -> None:
        """GPUs that should have been free there were not: look again at where others are."""
        for node in nodes:
            if node in self._sights:
                self._sights[node].taken = None

    async def _look(self, node: NodeInfo, id: str, total: float, available: float) -> tuple[str, ...]:
        sight = self._sights.setdefault(node.name, Sight())
        ours = frozenset(self._records.on_node(id))
        taken = round((total - available) * WHOLE) - len(ours) * WHOLE
        if sight.last != (taken, ours):
            sight.last, sight.since = (taken, ours), time.monotonic()
        elif taken != sight.taken and time.monotonic() - sight.since >= SETTLE_S:
            if taken > 0:
                await self._find(node, id, sight, int(total) - ceil(taken / WHOLE))
            else:
                sight.taken, sight.gpus = taken, ()
        return sight.gpus

    async def _find(self, node: NodeInfo, id: str, sight: Sight, not_taken: int) -> None:
        """Learn which GPUs are others', where `not_taken` whole ones may be free or ours."""
        async with self._exact.locked([id]):
            taken, ours = sight.last
            if ours != frozenset(self._records.on_node(id)):
                return
            try:
                free = await self._exact.free(Ask(node.name, Bundle(id)), not_taken - len(ours))
            except Unavailable:
                return
        sight.taken = taken
        sight.gpus = tuple(gpu.uuid for gpu in node.gpus if gpu.index not in ours | free)
