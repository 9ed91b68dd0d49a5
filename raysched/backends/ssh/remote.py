"""A host of the inventory as the vm backend and the watch of its GPUs use it: keeps one link to it up."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysched.backends.base import EngineRefused
from raysched.backends.ssh.connection import resolved
from raysched.backends.ssh.link import Link
from raysched.core.host import Host
from raysched.core.node import NodeInfo
from raysched.core.work import Launch, Partition, Run, Seen
from raysched.errors import Unreachable
from raysched.gpu.driver import Sample
from raysched.gpu.processes import Process
from raysched.tasks import stop

FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 15.0
"""The pause after the first connection that could not be made, doubled for each one up to the last."""
START_S = 120.0
"""How long a start may take, which unpacks a working directory."""
PIECE = 1 << 20
"""Bytes of a working directory that are sent at a time."""
END_SLACK_S = 40.0
"""How much longer than its grace the end of a lease's processes may take."""

log = logging.getLogger(__name__)


class Remote:
    """A host. `system` names the ledger that uses it; `turns` bounds how many connect at once; `changed` is
    called when a run may have changed. `told`, where it is set, is awaited with "" when the host is there,
    and with the reason when it is not."""

    def __init__(
        self,
        host: Host,
        system: str,
        turns: asyncio.Semaphore,
        changed: Callable[[], None],
    ) -> None:
        self.host = host
        self.told: Callable[[str], Awaitable[None]] | None = None
        self.reason = "not connected yet"
        self._system = system
        self._turns = turns
        self._changed = changed
        self._link: Link | None = None
        self._tried = asyncio.Event()
        self._hurry = asyncio.Event()
        self._address = host.address
        self._sights: list[Seen] | None = None
        self._changes = 0
        self._keeping: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ the link

    def keep(self) -> None:
        """Keep the host connected from now on."""
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Hang up; what runs there goes on."""
        await stop(self._keeping)
        self._keeping = None

    async def _keep(self) -> None:
        pause = FIRST_PAUSE_S
        try:
            while True:
                try:
                    await self.connect()
                    pause = FIRST_PAUSE_S
                    assert self._link is not None
                    await self._link.ended()
                    await self._lost("the connection broke")
                except Unreachable as error:
                    await self._lost(str(error))
                except Exception as error:
                    log.exception("host %s: connecting failed", self.host.name)
                    await self._lost(f"{self.host.name} can't be used: {error}")
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), pause * random.uniform(0.7, 1.0))
                self._hurry.clear()
                pause = min(2 * pause, LAST_PAUSE_S)
        finally:
            await self.hang_up()

    async def connect(self, accept_new: bool = False) -> None:
        """Connect now. Raises Unreachable, in words."""
        async with self._turns:
            link = await Link.open(self.host, self._system, self._news, accept_new)
        self._address = resolved(self.host.address)
        self._link, self.reason = link, ""
        self._tried.set()
        self._news()
        await self._tell("")

    async def _lost(self, reason: str) -> None:
        self._link, self._sights, self.reason = None, None, reason
        self._tried.set()
        await self._tell(reason)

    async def _tell(self, reason: str) -> None:
        """Say that the host is there, or why it is not; whoever is told may be away."""
        if self.told is not None:
            try:
                await self.told(reason)
            except Exception:
                log.exception("host %s: the ledger could not be told", self.host.name)

    async def hang_up(self) -> None:
        """End the link, where there is one."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    def hurry(self) -> None:
        """Try to connect again at once."""
        self._hurry.set()

    async def tried(self) -> None:
        """Return when the first connection was made, or could not be."""
        await self._tried.wait()

    def _news(self) -> None:
        self._sights = None
        self._changes += 1
        self._changed()

    @property
    def connected(self) -> bool:
        """Whether there is a link now."""
        return self._link is not None

    async def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        if self._link is None:
            raise Unreachable(f"{self.host.name} is out: {self.reason}")
        return await self._link.call(name, *arguments, **options)

    # ------------------------------------------------------------ runs

    async def observe(self) -> list[Seen]:
        """All runs there, from memory where nothing changed. Raises Unreachable."""
        if self._sights is not None and self._link is not None:
            return self._sights
        changes = self._changes
        seen: list[Seen] = await self._call("observe")
        if changes == self._changes:
            self._sights = seen
        return seen

    async def start(self, launch: Launch, packages: Path) -> None:
        """Start a run; silent where it was started before. Raises EngineRefused, Unreachable."""
        try:
            seen = await self._call("start", launch, timeout=START_S)
            if seen is None:
                await self._bring(launch, packages)
                seen = await self._call("start", launch, timeout=START_S)
        except BaseException:
            self._news()
            raise
        self._learn(launch.run, seen or ())

    def _learn(self, run: Run, seen: Sequence[Seen]) -> None:
        """Know of a run what its start has told; a look under way may have begun before."""
        known = self._sights
        self._news()
        if known is not None:
            self._sights = [each for each in known if each.run != run] + list(seen)

    async def _bring(self, launch: Launch, packages: Path) -> None:
        """Send the packed working directory of a launch."""
        digest = launch.package or ""
        try:
            data = await asyncio.to_thread((packages / f"{digest}.tar.gz").read_bytes)
        except OSError as error:
            raise EngineRefused(f"The packed working directory can't be read: {error}", final=True) from error
        for offset in range(0, max(len(data), 1), PIECE):
            last = offset + PIECE >= len(data)
            await self._call("put_package", digest, offset, data[offset : offset + PIECE], last)

    async def stop(self, run: Run, grace: float) -> None:
        """Begin to end a run. Raises Unreachable."""
        try:
            await self._call("stop", run, grace)
        finally:
            self._news()

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output. Raises Unreachable."""
        return await self._call("logs", run, offset, limit)

    async def forget(self, runs: frozenset[Run]) -> None:
        """Delete what is left of these runs, but of one that has not ended. Raises Unreachable."""
        try:
            await self._call("forget", tuple(sorted(runs)))
        finally:
            self._news()

    async def end_processes(self, lease: str, grace: float) -> None:
        """End all that runs under a lease. Raises Unreachable, and RayschedError where something stays."""
        await self._call("end_processes", lease, grace, timeout=grace + END_SLACK_S)

    # ------------------------------------------------------------ the machine, for its watch

    async def describe(self) -> NodeInfo:
        """The host, with no more of it than the inventory gives away."""
        info: NodeInfo = await self._call("describe")
        cpus = info.cpus if self.host.cpus is None else self.host.cpus
        memory = info.memory if self.host.memory is None else self.host.memory
        return replace(info, cpus=cpus, memory=memory, address=self._address, labels=self.host.labels)

    async def sample(self) -> Sample:
        """Who uses its GPUs now."""
        return await self._call("sample")

    async def partition(self, change: Partition) -> None:
        """Cut a GPU. Raises PartitionRefused."""
        await self._call("partition", change, timeout=START_S)

    async def end_strays(self, processes: tuple[Process, ...], kill: bool) -> None:
        """Send SIGTERM to exactly these processes, or with `kill` SIGKILL. Raises Unreachable."""
        await self._call("end_strays", processes, kill)
