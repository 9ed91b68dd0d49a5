"""What a backend saw reaches the ledger, though the ledger is away for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from raysched.backends import reconciler
from raysched.backends.reconciler import Reconciler
from raysched.core.commands import Command, NodeGone, NodeSeen, Outside, Report
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


class Site(MemoryBackend):
    """Its nodes are what a test says, look by look; it stays as it was last."""

    def __init__(self, *looks: Sequence[Command]) -> None:
        super().__init__()
        self._looks = list(looks)

    async def mirror(self) -> Sequence[Command]:
        return self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]


class LedgerOfSite(LedgerThatWasAway):
    """Keeps what it is told; the first time is one at which it is away."""

    def __init__(self) -> None:
        super().__init__(new_launch("true"))
        self.away = 1
        self.rounds: list[list[Command]] = []

    async def wanted(self, backend: str, version: int, timeout: float) -> Change:
        return await asyncio.Event().wait() or Change(1, None, {})

    async def tell(self, told: Sequence[Command]) -> None:
        await super().tell(told)
        self.rounds.append(list(told))


def _seen(name: str) -> NodeSeen:
    return NodeSeen(NodeInfo(name, ("k8s",), (), 0, 0, site=True))


def _told(ledger: LedgerOfSite, rounds: int, *looks: Sequence[Command]) -> list[list[Command]]:
    """What the ledger is told of a site in so many rounds."""

    async def scenario() -> None:
        task = asyncio.create_task(Reconciler(Site(*looks), ledger).run())
        while len(ledger.rounds) < rounds:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(scenario(), 60))
    return ledger.rounds[:rounds]


def test_of_the_nodes_of_a_site_the_ledger_is_told_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it once it is back; a node that comes back as it was is new as well."""
    monkeypatch.setattr(reconciler, "RETRY_S", 0)
    monkeypatch.setattr(reconciler, "MIRROR_S", 0)
    monkeypatch.setattr(reconciler, "MIRROR_ALL_S", 1e9)
    one, two = map(_seen, "ab")
    used, free, gone = Outside("a", ("GPU-1",)), Outside("a", ()), NodeGone("b", "k8s")
    looks = [[one, two, used]] * 2 + [
        [one, two, free],
        [one, gone, free],
        [one, gone, free],
        [one, two, free],
    ]
    told = _told(LedgerOfSite(), 6, *looks)
    assert told == [[one, two, used], [free], [gone], [], [two], []]


def test_all_of_a_site_is_told_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "RETRY_S", 0)
    monkeypatch.setattr(reconciler, "MIRROR_S", 0)
    monkeypatch.setattr(reconciler, "MIRROR_ALL_S", 0)
    seen = _seen("a")
    assert _told(LedgerOfSite(), 2, [seen]) == [[seen], [seen]]
