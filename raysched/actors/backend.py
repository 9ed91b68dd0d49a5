"""The backend actor: opens one backend and drives it, for ever (`backends/reconciler.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from raysched.actors import names
from raysched.actors.settings import Settings
from raysched.backends.base import Backend
from raysched.backends.reconciler import Reconciler
from raysched.core.commands import Command
from raysched.core.node import NodeInfo
from raysched.core.work import Run, Wanted


class BackendActor:
    """Drives one backend. Detached, on the head node, restarted for ever."""

    async def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        ledger = RemoteLedger(ray.get_actor(names.LEDGER, namespace=names.NAMESPACE))
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


class RemoteLedger:
    """The ledger actor as a reconciler sees it (`reconciler.Ledger`)."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def wanted(self, backend: str, version: int, timeout: float) -> Wanted:
        """See `Ledger.wanted`."""
        return await self._handle.wanted.remote(backend, version, timeout)

    async def tell(self, told: Sequence[Command]) -> None:
        """See `Ledger.tell`."""
        await self._handle.tell.remote(told)

    async def nodes(self) -> dict[str, NodeInfo]:
        """See `Ledger.nodes`."""
        return await self._handle.nodes.remote()

    async def known(self, backend: str) -> frozenset[Run]:
        """See `Ledger.known`."""
        return await self._handle.known.remote(backend)


def _open(name: str, settings: Settings, ledger: RemoteLedger) -> Backend:
    """The backend of that name, on this machine."""
    if name == "vm":
        from raysched.backends.vm import VMBackend

        return VMBackend(Path(settings.folder) / "runs", settings.environment, settings.packages)
    from raysched.backends.ray.backend import RayBackend

    return RayBackend(settings.packages, ledger.nodes)
