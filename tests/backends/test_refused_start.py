"""A start that an engine refused, while the ledger's next word is late."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from raysched.backends.reconciler import Reconciler
from raysched.core.commands import Command, Denied
from raysched.core.node import NodeInfo
from raysched.core.work import Change, Launch, Part, Run, Seen
from raysched.testing.conformance import new_launch
from raysched.testing.memory import MemoryBackend


class LateLedger:
    """Wants one run; what it wants after a refusal is known only once `word` comes."""

    def __init__(self, launch: Launch, then: tuple[Launch, ...]) -> None:
        self.launch = launch
        self.then = then
        self.denied = asyncio.Event()
        self.word = asyncio.Event()

    async def wanted(self, backend: str, version: int, timeout: float) -> Change:
        if version == -1:
            return Change(1, None, {self.launch.lease: Part((self.launch,))})
        await self.word.wait()
        await asyncio.sleep(0)
        return Change(2, 1, {self.launch.lease: Part(self.then)})

    async def tell(self, told: Sequence[Command]) -> None:
        if any(isinstance(command, Denied) for command in told):
            self.denied.set()

    async def nodes(self) -> dict[str, NodeInfo]:
        return {}

    async def known(self, backend: str) -> frozenset[Run]:
        return frozenset({self.launch.run})


class Watched(MemoryBackend):
    """Counts the looks at it, each of which is a round."""

    looks = 0

    async def observe(self) -> list[Seen]:
        self.looks += 1
        return await super().observe()

    async def round(self) -> None:
        """Return once one more round has begun and the one before it is over."""
        before = self.looks
        while self.looks < before + 2:
            self._changed.set()
            await asyncio.sleep(0)


@pytest.mark.parametrize("still_wanted", [False, True])
def test_a_refused_run_starts_only_if_the_ledger_wants_it_after_it_heard_of_the_refusal(
    still_wanted: bool,
) -> None:
    """By then its GPUs may be another's: the refusal gave the lease back."""

    async def scenario() -> None:
        launch = new_launch("true")
        ledger = LateLedger(launch, (launch,) if still_wanted else ())
        backend = Watched()
        backend.refuse("the disk is full")
        task = asyncio.create_task(Reconciler(backend, ledger).run())
        await ledger.denied.wait()
        backend.refuse(None)
        await backend.round()
        assert launch.run not in backend.runs
        ledger.word.set()
        await backend.round()
        await backend.round()
        if still_wanted:
            while launch.run not in backend.runs:
                await backend.round()
        assert (launch.run in backend.runs) == still_wanted
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(scenario(), 60))
