"""A driver in an event loop: one call at a time, in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from raysched.gpu.driver import Driver, Sample
from raysched.gpu.owners import Owners

T = TypeVar("T")


class Driving:
    """Drives `driver`."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._owners = Owners()
        self._lock = asyncio.Lock()

    async def do(self, call: Callable[..., T], *arguments: object) -> T:
        """Let the driver do one thing, in a thread, and nothing else meanwhile: what it knows of a GPU is
        stale once that is cut."""
        async with self._lock:
            return await asyncio.to_thread(call, *arguments)

    async def sample(self) -> Sample:
        """Who uses the GPUs now."""
        uses = await self.do(self.driver.sample)
        pids = [process.pid for use in uses.values() for process in use.processes]
        users = await asyncio.to_thread(self._owners.of, pids) if pids else {}
        return Sample(uses, users)
