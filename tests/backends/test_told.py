"""What a backend saw reaches the ledger, though the ledger is away for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from raysched.backends import reconciler
from raysched.backends.reconciler import Reconciler
from raysched.core.commands import Command, Report
from raysched.core.node import NodeInfo
from raysched.core.work import Change, Launch, Part, Run, Seen
from raysched.testing.conformance import new_launch
from raysched.testing.memory import MemoryBackend


class LedgerThatWasAway:
    """Wants one run, and hears of a sight of it only when it is told for the third time."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.heard: list[Seen] = []
        self.away = 2

    async def wanted(self, backend: str, version: int, timeout: float) -> Change:
        if version == 1:
            await asyncio.Event().wait()
        return Change(1, None, {self.launch.lease: Part((self.launch,))})

    async def tell(self, told: Sequence[Command]) -> None:
        if self.away:
            self.away -= 1
            raise ConnectionError("the ledger is away")
        self.heard += [command.seen for command in told if isinstance(command, Report)]

    async def nodes(self) -> dict[str, NodeInfo]:
        return {}

    async def known(self, backend: str) -> frozenset[Run]:
        return frozenset({self.launch.run})


def test_what_was_seen_is_told_until_the_ledger_has_it_and_then_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconciler, "RETRY_S", 0)

    async def scenario() -> None:
        launch = new_launch("true")
        ledger, backend = LedgerThatWasAway(launch), MemoryBackend()
        task = asyncio.create_task(Reconciler(backend, ledger).run())
        while not ledger.heard:
            await asyncio.sleep(0)
        backend.finish(launch.run, 3)
        while len(ledger.heard) < 2:
            await asyncio.sleep(0)
        assert [seen.state for seen in ledger.heard] == ["running", "exited"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(scenario(), 60))
