"""Gets exactly the GPUs that the ledger granted, although Ray picks the index itself.

Ray gives the lowest free GPU of a node first. So whoever wants another one takes GPUs one by one until
the wanted ones are among them, and gives the others back once it has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from ray._private.state import available_resources_per_node
from ray.util.placement_group import PlacementGroup

from raysched.backends.ray import groups
from raysched.backends.ray.groups import Bundle
from raysched.core.node import GPUInfo


class Unavailable(Exception):
    """Ray can't give what a lease was granted; the message says what, for people."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is wanted of the node that people call `node`: a bundle, and which GPUs it must hold."""

    node: str
    bundle: Bundle
    gpus: tuple[GPUInfo, ...] = ()

    @property
    def indices(self) -> frozenset[int]:
        """The GPUs as Ray numbers them."""
        return frozenset(gpu.index for gpu in self.gpus)

    def only(self, gpu: GPUInfo) -> Ask:
        """One of the GPUs, and nothing else."""
        return Ask(self.node, Bundle(self.bundle.ray_id, gpus=1), (gpu,))

    def held_elsewhere(self) -> Unavailable:
        """The answer where somebody else has the GPUs."""
        numbers = " and ".join(map(str, sorted(self.indices)))
        gpus, are = ("GPU", "is") if len(self.indices) == 1 else ("GPUs", "are")
        return Unavailable(f"{gpus} {numbers} of {self.node} {are} held by other work in Ray")


class Exact:
    """Takes GPUs in Ray. Whoever takes on a node must have it locked, as takers get in each other's way."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def locked(self, ray_ids: Iterable[str]) -> AsyncGenerator[None]:
        """Keep other takers off these nodes."""
        async with AsyncExitStack() as stack:
            for id in sorted(set(ray_ids)):  # in one order everywhere, so that two takers never deadlock
                await stack.enter_async_context(self._locks.setdefault(id, asyncio.Lock()))
            yield

    async def one(self, name: str, ask: Ask) -> PlacementGroup:
        """A group of one GPU, the one asked for. Raises Unavailable."""
        (wanted,) = ask.indices
        made = await self._singles(name, ask)
        group = made.pop(wanted)
        await _remove(made.values())
        return group

    async def all(self, name: str, asks: Sequence[Ask]) -> PlacementGroup:
        """One group with a bundle an ask, each with its GPUs. Raises Unavailable."""
        group, wrong = await self._try(name, asks)
        if not wrong:
            return group
        blockers: list[PlacementGroup] = []
        try:
            await groups.remove(group)
            for ask in wrong:
                blockers += await self._blockers(name, ask)
            group, wrong = await self._try(name, asks)
        finally:
            await _remove(blockers)
        if wrong:
            await groups.remove(group)
            raise wrong[0].held_elsewhere()
        return group

    async def free(self, ask: Ask, count: int) -> frozenset[int]:
        """Which GPUs of the node nobody holds, of which there may be `count`: takes them for a moment.
        Raises Unavailable where the node does not answer."""
        made: dict[int, PlacementGroup] = {}
        try:
            while len(made) < count and (single := await self._single("looking", ask)):
                made[single[0]] = single[1]
            return frozenset(made)
        finally:
            await _remove(made.values())

    async def _try(self, name: str, asks: Sequence[Ask]) -> tuple[PlacementGroup, list[Ask]]:
        """A group of the right size, and the asks whose GPUs it missed."""
        group = await groups.make(name, [ask.bundle for ask in asks])
        if group is None:
            raise await _lacking(asks)
        if not any(ask.bundle.gpus for ask in asks):
            return group, []
        held = await _probed(group, asks)
        return group, [ask for ask, indices in zip(asks, held, strict=True) if ask.indices != indices]

    async def _blockers(self, name: str, ask: Ask) -> list[PlacementGroup]:
        """Take all GPUs that Ray would give before those asked for, and leave those free."""
        made = await self._singles(name, ask)
        await _remove(made.pop(index) for index in ask.indices)
        return list(made.values())

    async def _singles(self, name: str, ask: Ask) -> dict[int, PlacementGroup]:
        """Groups of one GPU each, by index, those asked for among them."""
        made: dict[int, PlacementGroup] = {}
        try:
            while not ask.indices <= made.keys():
                single = await self._single(name, ask)
                if single is None:
                    raise ask.held_elsewhere()
                made[single[0]] = single[1]
        except BaseException:
            await _remove(made.values())
            raise
        return made

    async def _single(self, name: str, ask: Ask) -> tuple[int, PlacementGroup] | None:
        """Any free GPU of the node, None where there is none."""
        single = Ask(ask.node, Bundle(ask.bundle.ray_id, gpus=1))
        group = await groups.make(name, [single.bundle])
        if group is None:
            return None
        (index,) = (await _probed(group, [single]))[0]
        return index, group


async def _probed(group: PlacementGroup, asks: Sequence[Ask]) -> list[frozenset[int]]:
    """The GPUs of each bundle; the group is gone again where no answer comes."""
    held = await groups.probe(group, [ask.bundle for ask in asks])
    if held is None:
        await groups.remove(group)
        raise Unavailable(f"{' and '.join(ask.node for ask in asks)} did not answer in time")
    return held


async def _remove(made: Iterable[PlacementGroup]) -> None:
    for group in list(made):
        await groups.remove(group)


async def _lacking(asks: Sequence[Ask]) -> Unavailable:
    """Why Ray did not make a group of these bundles."""
    available = await asyncio.to_thread(available_resources_per_node)
    for ask in asks:
        there = available.get(ask.bundle.ray_id)
        if there is None:
            return Unavailable(f"{ask.node} is not in Ray")
        for resource, amount in ask.bundle.resources().items():
            if there.get(resource, 0) >= amount:
                continue
            if resource == "GPU":
                return ask.held_elsewhere()
            what = "CPUs are" if resource == "CPU" else "memory is"
            return Unavailable(f"{ask.node}'s {what} held by other work in Ray")
    return Unavailable(f"Ray did not make room on {asks[0].node} in time")
