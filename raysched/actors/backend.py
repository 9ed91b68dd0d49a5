"""The backend actor: opens one backend and drives it, for ever (`backends/reconciler.py`)."""

from __future__ import annotations

import asyncio
from pathlib import Path

from raysched.actors.remote_ledger import RemoteLedger
from raysched.actors.settings import Settings
from raysched.backends.base import Backend
from raysched.backends.reconciler import Reconciler
from raysched.core.work import Run


class BackendActor:
    """Drives one backend. Detached, on the head node, restarted for ever."""

    async def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        ledger = RemoteLedger()
        self.backend = _open(name, settings, ledger)
        self.task = asyncio.create_task(Reconciler(self.backend, ledger).run())

    def __repr__(self) -> str:
        return f"Backend({self.name})"

    async def ping(self) -> str:
        """Whether the backend actor answers."""
        return self.name

    async def logs(self, run: str, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`."""
        return await self.backend.logs(Run.parse(run), offset, limit)


def _open(name: str, settings: Settings, ledger: RemoteLedger) -> Backend:
    """The backend of that name, on this machine."""
    if name == "vm":
        from raysched.backends.vm import VMBackend

        return VMBackend(Path(settings.folder) / "runs", settings.environment, settings.packages)
    from raysched.backends.ray.backend import RayBackend

    return RayBackend(settings.packages, ledger.nodes)
