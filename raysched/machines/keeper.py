"""Ends machines that nobody used for as long as their cluster's file says (`idle_timeout_minutes`)."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from raysched.errors import Conflict
from raysched.machines import record
from raysched.machines.record import Cluster, Json

LOOK_S = 10.0
"""Seconds between two looks."""

log = logging.getLogger(__name__)


class Ledger(Protocol):
    """What is asked of the ledger."""

    async def view(self, what: str) -> Json:
        """One of the views of docs/api.md."""
        ...

    async def remove_host(self, key: str, name: str) -> Json:
        """Use a host no more, once nothing runs there."""
        ...


def end_machine(home: Path, name: str, machine: str) -> None:
    """End one machine of a cluster, and note that it has no host any more."""
    from raysched.machines.down import end
    from raysched.machines.launcher import Launcher

    cluster = record.read(home, name)
    launcher = Launcher(cluster)
    if machine in {each.id for each in launcher.found()}:
        end(cluster, launcher, [machine])
    cluster.without(machine).write(home)


class Keeper:
    """Looks after the clusters whose records lie in `home`. How long a machine was idle is counted from the
    first look that saw it so, and anew after a restart: it is ended late, never early."""

    def __init__(
        self,
        home: Path,
        ledger: Ledger,
        end: Callable[[Path, str, str], None] = end_machine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = home
        self._ledger = ledger
        self._end = end
        self._clock = clock
        self._idle: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("idle machines can't be ended, and it is tried again")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """End what was idle for long enough."""
        for name in await asyncio.to_thread(record.names, self._home):
            try:
                with record.exclusive(self._home, name):
                    cluster = record.read(self._home, name)
                    if cluster.idle_s is not None:
                        await self._look_at(cluster, cluster.idle_s)
            except Conflict:
                continue  # `cluster up` or `down` is at work

    async def _look_at(self, cluster: Cluster, limit: float) -> None:
        view = await self._ledger.view("hosts")
        known: dict[str, Any] = {host["name"]: host for host in view["hosts"]}
        for machine, host in cluster.hosts.items():
            if host in known and known[host]["jobs"] and known[host]["state"] != "leaving":
                self._idle.pop((cluster.name, machine), None)
                continue
            since = self._idle.setdefault((cluster.name, machine), self._clock())
            if self._clock() - since >= limit:
                await self._end_idle(cluster.name, machine, host, known)

    async def _end_idle(self, cluster: str, machine: str, host: str, known: dict[str, Any]) -> None:
        """The ledger gives nothing of the host away any more; then the machine ends. In between, and where
        this dies there, a later look goes on. A job that came first is waited for."""
        if host in known and known[host]["state"] != "leaving":
            left = await self._ledger.remove_host(f"idle-{secrets.token_hex(8)}", host)
            known = {each["name"]: each for each in left["hosts"]}
        if host not in known:
            log.warning("cluster %s: the machine %s was idle and is ended", cluster, machine)
            await asyncio.to_thread(self._end, self._home, cluster, machine)
            self._idle.pop((cluster, machine), None)
