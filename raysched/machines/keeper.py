"""Looks after the machines that were made: has those join raysched's Ray that are to be nodes of it, and ends
those that nobody used for as long as their cluster's file says (`idle_timeout_minutes`)."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from raysched.core.host import Host
from raysched.core.node import NodeInfo
from raysched.errors import Conflict, NotFound, RayschedError, Unreachable
from raysched.machines import joining, record
from raysched.machines.record import Cluster, Json
from raysched.machines.tenants import tenants

LOOK_S = 5.0
"""Seconds between two looks."""
REFUSED_S = 60.0
"""Seconds before a machine that could not join is tried again."""
LEFT_S = 60.0
"""How long the ledger may take to notice that a node has left Ray."""
PAUSE_S = 0.5

log = logging.getLogger(__name__)


class Ledger(Protocol):
    """What is asked of the ledger."""

    async def view(self, what: str) -> Json:
        """One of the views of docs/api.md."""
        ...

    async def nodes(self) -> dict[str, NodeInfo]:
        """The nodes that are there, by name."""
        ...

    async def hosts(self, version: int, timeout: float) -> tuple[int, tuple[Host, ...]]:
        """The inventory and its version."""
        ...

    async def cordon(self, key: str, node: str, on: bool) -> Json:
        """Start nothing new on a node, or use it again. Raises NotFound."""
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
    """Looks after the clusters whose records lie in `home`; `entrance` says how raysched's Ray is joined. How
    long a machine was idle is counted from the first look that saw it so, and anew after a restart: it is
    ended late, never early."""

    def __init__(
        self,
        home: Path,
        ledger: Ledger,
        entrance: Callable[[], Mapping[str, str]],
        end: Callable[[Path, str, str], None] = end_machine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = home
        self._ledger = ledger
        self._entrance = entrance
        self._end = end
        self._clock = clock
        self._idle: dict[tuple[str, str], float] = {}
        self._tried: dict[str, float] = {}

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("made machines can't be looked after, and it is tried again")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Have join what is to join, and end what was idle for long enough."""
        for name in await asyncio.to_thread(record.names, self._home):
            try:
                with record.exclusive(self._home, name):
                    cluster = record.read(self._home, name)
                    if cluster.ray:
                        cluster = await self._join(cluster)
                    if cluster.idle_s is not None:
                        await self._look_at(cluster, cluster.idle_s)
            except Conflict:
                continue  # `cluster up` or `down` is at work

    # ------------------------------------------------------------ nodes of Ray

    async def _join(self, cluster: Cluster) -> Cluster:
        """Have join every machine that is no node of Ray, and note why one can't. A new `up` forgets that,
        and so it is tried at once."""
        there = {name for name, info in (await self._ledger.nodes()).items() if info.ray_id is not None}
        known = await self._inventory()
        due = {name for name in cluster.hosts.values() if self._due(cluster, name)}
        missing = [known[name] for name in sorted(due & known.keys() - there - set(cluster.leaving))]
        refused = {name: why for name, why in cluster.refused.items() if name not in there}
        for host, why in zip(missing, await self._outcomes(missing), strict=True):
            self._tried[host.name] = self._clock()
            refused.pop(host.name, None)
            if why:
                log.warning("cluster %s: a machine does not join Ray: %s", cluster.name, why)
                refused[host.name] = why
        if refused != cluster.refused:
            cluster = replace(cluster, refused=refused).write(self._home)
        return cluster

    def _due(self, cluster: Cluster, host: str) -> bool:
        return host not in cluster.refused or self._clock() - self._tried.get(host, 0) >= REFUSED_S

    async def _outcomes(self, hosts: list[Host]) -> list[str]:
        """Have these join; why each could not, empty where it did."""

        async def one(host: Host) -> str:
            try:
                await joining.join(host, self._entrance())
            except RayschedError as error:
                return str(error)
            return ""

        return await asyncio.gather(*(one(host) for host in hosts))

    async def _inventory(self) -> dict[str, Host]:
        return {host.name: host for host in (await self._ledger.hosts(-1, 0))[1]}

    async def _leave(self, name: str) -> None:
        """Have a machine leave Ray; one that is away has left."""
        known = await self._inventory()
        if name in known:
            with suppress(Unreachable):
                await joining.leave(known[name])
        deadline = self._clock() + LEFT_S
        while (info := (await self._ledger.nodes()).get(name)) is not None and info.ray_id is not None:
            if self._clock() > deadline:
                raise RayschedError(f"{name} has left Ray, and is still a node of it")
            await asyncio.sleep(PAUSE_S)

    # ------------------------------------------------------------ idle machines

    async def _look_at(self, cluster: Cluster, limit: float) -> None:
        view = await self._ledger.view("hosts")
        known: dict[str, Any] = {host["name"]: host for host in view["hosts"]}
        used = await self._used(cluster, known)
        for machine, host in cluster.hosts.items():
            leaves = host in cluster.leaving or (host in known and known[host]["state"] == "leaving")
            if host in used and not leaves:
                self._idle.pop((cluster.name, machine), None)
                continue
            since = self._idle.setdefault((cluster.name, machine), self._clock())
            if leaves or self._clock() - since >= limit:
                cluster = await self._end_idle(cluster, machine, host, known)

    async def _used(self, cluster: Cluster, known: dict[str, Any]) -> set[str]:
        """The hosts that somebody uses: by jobs over SSH, or, of a node of Ray, by whatever has a lease
        there, or holds a GPU without one."""
        if not cluster.ray:
            return {name for name, host in known.items() if host["jobs"]}
        jobs, nodes = await self._ledger.view("jobs"), await self._ledger.view("gpus")
        outside = {node["name"] for node in nodes["nodes"] if any(gpu["outside"] for gpu in node["gpus"])}
        return outside | {name for name in cluster.hosts.values() if tenants(jobs["jobs"], {name})}

    async def _end_idle(self, cluster: Cluster, machine: str, host: str, known: dict[str, Any]) -> Cluster:
        """The ledger gives nothing of the host away any more; then the machine ends. In between, and where
        this dies there, a later look goes on. A job that came first is waited for."""
        if cluster.ray:
            if host not in cluster.leaving:
                cluster = replace(cluster, leaving=[*cluster.leaving, host]).write(self._home)
            with suppress(NotFound):
                await self._ledger.cordon(_key(), host, True)
            if host in await self._used(cluster, known):
                return cluster
            await self._leave(host)
        if host in known and known[host]["state"] != "leaving":
            left = await self._ledger.remove_host(_key(), host)
            known = {each["name"]: each for each in left["hosts"]}
        if host not in known:
            log.warning("cluster %s: the machine %s was idle and is ended", cluster.name, machine)
            await asyncio.to_thread(self._end, self._home, cluster.name, machine)
            self._idle.pop((cluster.name, machine), None)
            return record.read(self._home, cluster.name)
        return cluster


def _key() -> str:
    return f"idle-{secrets.token_hex(8)}"
