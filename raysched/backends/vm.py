"""The `vm` backend: runs on this machine, without any engine in between."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from raysched.backends.exits import Exits
from raysched.backends.runs import Runs
from raysched.core.work import Launch, Run, Seen


class VMBackend:
    """Runs commands on this machine. `folder` gets a folder a run, `base_env` are the variables that jobs
    inherit, `packages` holds packed working directories as `DIGEST.tar.gz`."""

    name = "vm"

    def __init__(self, folder: Path, base_env: Mapping[str, str], packages: Path) -> None:
        self._runs = Runs(folder, base_env)
        self._packages = packages
        self._exits = Exits()

    async def observe(self) -> list[Seen]:
        """All runs of this machine."""
        return await asyncio.to_thread(self._runs.observe)

    async def start(self, launch: Launch) -> None:
        """Start a run; silent where it was started before. Raises EngineRefused: final where its package
        can't be used, not final where the disk is full or no process can be started."""
        package = self._packages / f"{launch.package}.tar.gz" if launch.package else None
        await asyncio.to_thread(self._runs.start, launch, package)
        self._exits.wake()

    async def stop(self, run: Run, grace: float) -> None:
        """Begin to end a run. One that was not started never will be, and is then seen as ended."""
        if await asyncio.to_thread(self._runs.stop, run, grace):
            self._exits.wake()

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`."""
        return await asyncio.to_thread(self._runs.logs, run, offset, limit)

    async def forget(self, runs: frozenset[Run]) -> None:
        """Delete the files of these runs, but of one that has not ended."""
        await asyncio.to_thread(self._runs.forget, runs)

    async def changed(self, timeout: float) -> None:
        """Return when a run was started or has ended, at the latest after `timeout` seconds."""
        await self._exits.wait(self._runs.runners(), timeout)

    async def close(self) -> None:
        """Nothing to let go of: what runs goes on, and all that is known of it is on disk."""
