"""Objects that calls wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import ray

from raysched.actors.calls.claims import apart
from raysched.actors.calls.signals import settle

LOOK_S = 0.005


class Arrivals:
    """Looks at all of them together and opens none: a worker that waited for an argument would hold up the
    very call that makes it."""

    def __init__(self) -> None:
        self._waited: dict[ray.ObjectRef, asyncio.Future[None]] = {}
        self._looking = False

    async def of(self, refs: Sequence[ray.ObjectRef]) -> None:
        """Return when every one of these is there, be it with a value or an error."""
        loop = asyncio.get_running_loop()
        futures = [self._waited.setdefault(ref, loop.create_future()) for ref in refs]
        if not self._looking:
            self._looking = True
            apart(self._look())
        await asyncio.gather(*(asyncio.shield(future) for future in futures))

    async def _look(self) -> None:
        while self._waited:
            refs = list(self._waited)
            there, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
            for ref in there:
                settle(self._waited.pop(ref), None)
            await asyncio.sleep(LOOK_S)
        self._looking = False
