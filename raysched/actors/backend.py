"""The backend actor: closes the difference between what the ledger wants and what a backend has, for ever.

It decides nothing. Each round asks the ledger what must exist, looks at what does, starts and stops what
differs, and reports; it may die between any two lines and be started again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Hashable
from pathlib import Path
from typing import Any

import ray

from raysched.actors import names
from raysched.actors.settings import Settings
from raysched.backends.base import Backend, EngineRefused, Holding
from raysched.backends.difference import difference
from raysched.core.commands import Command, Denied, Gone, Held, Outside, Report
from raysched.core.work import Hold, Launch, Run, Seen, Stop, Wanted

LOOK_S = 5.0
"""Longest time between two looks at a backend in which nothing seems to change."""
RETRY_S = 1.0
"""Time before a round, a release or a hold that failed is tried again."""
OUTSIDE_S = 3.0
FORGET_S = 60.0

log = logging.getLogger(__name__)


class BackendActor:
    """Drives one backend. Detached, on the head node, restarted for ever."""

    async def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.ledger = ray.get_actor(names.LEDGER, namespace=names.NAMESPACE)
        self.backend = _open(name, settings, self.ledger)
        self.wanted = Wanted(-1)
        self.news = asyncio.Event()
        self.told: dict[Run, Seen] = {}
        self.held: dict[str, Held] = {}
        self.busy: dict[Hashable, asyncio.Task[None]] = {}
        self.tasks = [asyncio.create_task(self._for_ever(step)) for step in self._steps()]

    def __repr__(self) -> str:
        return f"Backend({self.name})"

    async def ping(self) -> str:
        """Whether the backend actor answers."""
        return self.name

    async def logs(self, run: str, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`."""
        return await self.backend.logs(Run.parse(run), offset, limit)

    def _steps(self) -> list[Any]:
        steps = [self._listen, self._round, self._look, self._forget]
        return [*steps, self._outside] if isinstance(self.backend, Holding) else steps

    async def _for_ever(self, step: Any) -> None:
        while True:
            try:
                await step()
            except Exception:
                log.exception("backend %s: a step failed and is tried again", self.name)
                await asyncio.sleep(RETRY_S)

    # ------------------------------------------------------------ what leads to a round

    async def _listen(self) -> None:
        """Wait until the ledger wants something else."""
        self.wanted = await self.ledger.wanted.remote(self.name, self.wanted.version, LOOK_S)
        self.news.set()

    async def _look(self) -> None:
        """Wait until the backend seems to have changed."""
        await self.backend.changed(LOOK_S)
        self.news.set()
        await asyncio.sleep(0.02)

    # ------------------------------------------------------------ one round

    async def _round(self) -> None:
        await self.news.wait()
        self.news.clear()
        if self.wanted.version == -1:
            return
        wanted = self.wanted
        seen = await self.backend.observe()
        actions = difference(wanted, seen, self.told.values())
        for launch in actions.start:
            self._do(launch.run, self._start(launch))
        for stop in actions.stop:
            self._do(stop.run, self._stop(stop))
        if isinstance(self.backend, Holding):
            self._close_holds(wanted, self.backend)
        await self._report(actions.report)

    def _do(self, key: Hashable, step: Coroutine[Any, Any, None]) -> None:
        """Do one thing for a run or a lease, unless something is being done for it already."""
        if key in self.busy:
            step.close()
            return
        self.busy[key] = asyncio.create_task(self._finish(key, step))

    async def _finish(self, key: Hashable, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
        except Exception:
            log.exception("backend %s: %s failed and is tried again", self.name, key)
            await asyncio.sleep(RETRY_S)
        finally:
            del self.busy[key]
            self.news.set()

    async def _start(self, launch: Launch) -> None:
        try:
            await self.backend.start(launch)
        except EngineRefused as refused:
            await self._tell(Denied(launch.lease, refused.reason, refused.final))

    async def _stop(self, stop: Stop) -> None:
        await self.backend.stop(stop.run, stop.grace)

    async def _report(self, seen: tuple[Seen, ...]) -> None:
        if seen:
            await self._tell(*(Report(each) for each in seen))
            self.told.update({each.run: each for each in seen})

    async def _tell(self, *told: Command) -> None:
        await self.ledger.tell.remote(told)

    # ------------------------------------------------------------ holds

    def _close_holds(self, wanted: Wanted, holding: Holding) -> None:
        leases = {hold.lease for hold in wanted.holds}
        for gone in self.held.keys() - leases:
            del self.held[gone]
        # One at a time for a lease, so that none is let go while it is being made; and no lease waits for
        # another that is slow to be held or to be refused.
        for hold in wanted.holds:
            if hold.lease not in self.held:
                self._do(hold.lease, self._hold(holding, hold))
        for hold in wanted.releases:
            self._do(hold.lease, self._release(holding, hold))

    async def _hold(self, holding: Holding, hold: Hold) -> None:
        for answer in await holding.hold([hold]):
            if answer.refused is not None:
                await self._tell(Denied(answer.lease, answer.refused))
            else:
                held = Held(answer.lease, answer.groups)
                await self._tell(held)
                self.held[answer.lease] = held

    async def _release(self, holding: Holding, hold: Hold) -> None:
        await holding.release(hold)
        await self._tell(Gone(hold.lease))

    async def _outside(self) -> None:
        await asyncio.sleep(OUTSIDE_S)
        assert isinstance(self.backend, Holding)
        outside = await self.backend.outside()
        nodes = await self.ledger.nodes.remote()
        await self._tell(*(Outside(node, outside.get(node, ())) for node in nodes))

    async def _forget(self) -> None:
        await asyncio.sleep(FORGET_S)
        known = await self.ledger.known.remote(self.name)
        await self.backend.forget(known)
        self.told = {run: seen for run, seen in self.told.items() if run in known}


def _open(name: str, settings: Settings, ledger: Any) -> Backend:
    """The backend of that name, on this machine."""
    if name == "vm":
        from raysched.backends.vm import VMBackend

        return VMBackend(Path(settings.folder) / "runs", settings.environment, settings.packages)
    from raysched.backends.ray.backend import RayBackend

    return RayBackend(settings.packages, ledger.nodes.remote)
