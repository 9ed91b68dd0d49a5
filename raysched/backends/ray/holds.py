"""Keeps leases in Ray: which placement groups and residents each needs, on exactly its GPUs.

| lease | is held by |
|---|---|
| whole GPUs | one group of its own with a bundle a node: its GPUs, CPUs and memory |
| parts of GPUs, MIG instances | the group of each GPU, which its tenants share; kept a while after the last |
| CPUs and memory, beside parts of GPUs or alone | one group of its own with a bundle a node |

A **resident** is an actor that keeps a share inside a group; without it the client puts actors of its own
there. The ledger learns one group a place. For a lease with parts of several GPUs on one node that is the
group of the first GPU; residents keep its other shares in any case. A MIG instance need not exist yet: that
its GPU is held lets it be made, so residents know nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from raysched.backends.ray import residents
from raysched.backends.ray.exact import Ask, Exact, Unavailable
from raysched.backends.ray.groups import Bundle, alive, of_id
from raysched.backends.ray.records import Record, Records
from raysched.backends.ray.residents import Seat
from raysched.core.lease import Group, Place
from raysched.core.node import NodeInfo
from raysched.core.request import WHOLE
from raysched.core.work import Hold

IDLE_S = 5.0
"""How long the group of a shared GPU is kept for the next tenant after the last one left."""


class Holds:
    """All that raysched keeps in Ray. An object that is made anew finds everything again."""

    def __init__(self, records: Records, exact: Exact) -> None:
        self._records = records
        self._exact = exact

    async def hold(self, hold: Hold, nodes: Mapping[str, NodeInfo]) -> tuple[Group, ...]:
        """Make what is not there yet of a hold: one group a place, none where it takes nothing in Ray.
        `nodes` are those that live in Ray.

        Raises Unavailable. Nothing of the hold is then left behind, but where one of its nodes died: its
        other nodes keep what they have until it is released.
        """
        asks = [_ask(place, nodes) for place in hold.places]
        try:
            async with self._exact.locked(ask.bundle.ray_id for ask in asks):
                for record in self._records.of_lease(hold.lease):
                    await self._whole_still(record)
                seats = await self._seats(hold, asks)
            await self._occupy(hold, seats)
        except Unavailable:
            await self.let_go(hold.lease)
            raise
        return tuple(place[0].group for place in seats if place)

    async def let_go(self, lease: str) -> None:
        """Give back all that a lease has in Ray, and return once it is gone."""
        for record in self._records.of_lease(lease):
            await residents.end(record.tenants[lease])
            if record.purpose == "lease":
                await self._records.remove(record)
            else:
                record.leave(lease)
                await self._records.save(record)

    async def sweep(self) -> None:
        """Give back the groups of shared GPUs that nobody has used for a while."""
        for record in self._records.idle(IDLE_S):
            async with self._exact.locked(record.ray_ids):
                if not record.tenants:  # nobody came meanwhile
                    await self._records.remove(record)

    async def _seats(self, hold: Hold, asks: Sequence[Ask]) -> list[list[Seat]]:
        """The seats of each place, the first one being the client's."""
        if hold.sharing == "exclusive" or not any(ask.gpus for ask in asks):
            return await self._whole(hold, asks)
        beside = [Ask(ask.node, replace(ask.bundle, gpus=0)) for ask in asks]
        if taking := [ask for ask in beside if ask.bundle.resources()]:
            await self._own(hold, taking)
        return [await self._parts(hold, place, ask) for place, ask in zip(hold.places, asks, strict=True)]

    async def _whole(self, hold: Hold, asks: Sequence[Ask]) -> list[list[Seat]]:
        """Seats for whole GPUs, or for none at all."""
        if not all(ask.bundle.resources() for ask in asks):
            return [[] for _ in asks]
        record = await self._own(hold, asks)
        return [[Seat.whole(record.group, number, ask)] for number, ask in enumerate(asks)]

    async def _parts(self, hold: Hold, place: Place, ask: Ask) -> list[Seat]:
        """Seats for parts of the GPUs of one node."""
        seats: list[Seat] = []
        for part, gpu in zip(place.slices, ask.gpus, strict=True):
            only = ask.only(gpu)
            record = await self._of_gpu(only)
            await self._join(record, hold.lease)
            seats.append(Seat(record.group, 0, only, part.share / WHOLE))
        return seats

    async def _own(self, hold: Hold, asks: Sequence[Ask]) -> Record:
        """The group that belongs to the lease alone."""
        for record in self._records.of_lease(hold.lease):
            if record.purpose == "lease":
                return record
        await self._make_way(asks)
        group = await self._exact.all(hold.label, asks)
        nodes, gpus = [ask.bundle.ray_id for ask in asks], [sorted(ask.indices) for ask in asks]
        record = Record(group.id.hex(), "lease", nodes, gpus, {hold.lease: []})
        await self._records.save(record)
        return record

    async def _of_gpu(self, ask: Ask) -> Record:
        """The group of a shared GPU."""
        (gpu,) = ask.gpus
        there = self._records.of_gpu(ask.bundle.ray_id, gpu.index)
        if there and await self._whole_still(there):
            return there
        group = await self._exact.one(f"gpu {ask.node}:{gpu.index} {gpu.model}", ask)
        record = Record(group.id.hex(), "gpu", [ask.bundle.ray_id], [[gpu.index]])
        await self._records.save(record)
        return record

    async def _whole_still(self, record: Record) -> bool:
        """Whether Ray still holds a group. It does not once a node died, or somebody removed it: then what
        is left of it is cleared away."""
        if await alive(of_id(record.group)):
            return True
        for names in record.tenants.values():
            await residents.end(names)
        await self._records.remove(record)
        return False

    async def _make_way(self, asks: Sequence[Ask]) -> None:
        """Give back the groups of shared GPUs that nobody uses and that are wanted whole."""
        for record in self._records.idle():
            if any(ask.indices & record.indices(ask.bundle.ray_id) for ask in asks):
                await self._records.remove(record)

    async def _join(self, record: Record, lease: str) -> None:
        if lease not in record.tenants:
            record.tenants[lease] = []
            await self._records.save(record)

    async def _occupy(self, hold: Hold, places: Sequence[Sequence[Seat]]) -> None:
        """Start the residents that are missing, all at once. Their names are written down before."""
        seats = [seat for place in places for seat in place[0 if hold.resident else 1 :] if seat.gpus]
        names = [residents.name(hold, number) for number in range(len(seats))]
        for seat, name in zip(seats, names, strict=True):
            record = self._records[seat.group_id]
            if name not in record.tenants[hold.lease]:
                record.tenants[hold.lease].append(name)
                await self._records.save(record)
        starts = [residents.start(hold, seat, name) for seat, name in zip(seats, names, strict=True)]
        for outcome in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome


def _ask(place: Place, nodes: Mapping[str, NodeInfo]) -> Ask:
    """What a place takes in Ray."""
    node = nodes.get(place.node)
    if node is None or node.ray_id is None:
        raise Unavailable(f"{place.node} is not in Ray")
    gpus = {gpu.uuid: gpu for gpu in node.gpus}
    missing = [part.gpu for part in place.slices if part.gpu not in gpus]
    if missing:
        raise Unavailable(f"{place.node} no longer has {' and '.join(missing)}")
    bundle = Bundle(node.ray_id, len(place.slices), place.cpus, place.memory)
    return Ask(place.node, bundle, tuple(gpus[part.gpu] for part in place.slices))
