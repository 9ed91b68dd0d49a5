"""Ends the machines of a cluster, and what was made around them. It may die anywhere and be asked again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from raysched.core.host import Host
from raysched.errors import Conflict, NotFound, RayschedError, Unreachable
from raysched.machines import aws, joining, record
from raysched.machines.launcher import Launcher
from raysched.machines.record import Cluster, Json
from raysched.machines.tenants import tenants
from raysched.machines.up import PATIENCE_S, Hosts, host_name, host_of, in_ray

FREE_S = 120.0
"""How long a host may take to be free once its jobs were cancelled."""
ENDED_S = 600.0
"""How long machines may take to be gone."""
PAUSE_S = 1.0


class System(Hosts, Protocol):
    """A running raysched (`client.Client`)."""

    def jobs(self) -> list[Json]:
        """All jobs."""
        ...

    def cancel(self, job: str) -> list[Json]:
        """End a job."""
        ...


def down(home: Path, name: str, system: System | None, cancel: bool, tell: Callable[[str], None]) -> int:
    """End all machines of a cluster; how many there were. `system` is None where raysched is not up. Raises
    Conflict where jobs run there, or may do so, unless they are to be cancelled; then nothing was changed."""
    with record.exclusive(home, name, PATIENCE_S):
        cluster = record.read(home, name)
        launcher = Launcher(cluster)
        machines = launcher.found()
        ids = [machine.id for machine in machines]
        if system is None and ids and not cancel:
            raise Conflict(
                f"raysched is not up, and jobs may run on the machines of {name}: run `raysched up` first, "
                "or end them with --cancel"
            )
        names = {host_name(name, id) for id in ids} | set(cluster.hosts.values())
        if system is not None:
            _check_free(name, names, system, cancel)
            if cluster.ray:
                replace(cluster, leaving=sorted(names)).write(home)
                _drain(name, names, system, cancel, tell)
        if cluster.ray:
            asyncio.run(_leave([host_of(launcher, cluster, machine) for machine in machines], tell))
        if system is not None:
            _wait_left(names, system)
            _free(name, names, system, cancel, tell)
        end(cluster, launcher, ids)
        aws.sweep(launcher, name)
        record.delete(home, name)
        return len(ids)


def end(cluster: Cluster, launcher: Launcher, ids: Sequence[str]) -> None:
    """End machines, and return when the provider knows them no more. Raises RayschedError."""
    if ids:
        launcher.end(ids)
    deadline = time.monotonic() + ENDED_S
    while left := {machine.id for machine in launcher.found()} & set(ids):
        if time.monotonic() > deadline:
            raise RayschedError(f"{', '.join(sorted(left))} of {cluster.name} did not end: try again")
        time.sleep(PAUSE_S)


def _check_free(name: str, hosts: set[str], system: System, cancel: bool) -> None:
    """Raise Conflict where jobs run there that nobody wants to be ended."""
    busy = _busy(system, hosts)
    if busy and not cancel:
        jobs = "1 job runs" if len(busy) == 1 else f"{len(busy)} jobs run"
        raise Conflict(
            f"{jobs} on machines of {name} ({', '.join(sorted(busy))}): wait for the end, or end them with "
            "--cancel"
        )


def _drain(name: str, nodes: set[str], system: System, cancel: bool, tell: Callable[[str], None]) -> None:
    """Start nothing new on nodes of Ray, and return when nobody has anything there."""
    for node in nodes:
        with suppress(NotFound):
            system.cordon(node)
    deadline = time.monotonic() + FREE_S
    while left := tenants(system.jobs(), nodes):
        _cancel(system, nodes, cancel, tell)
        if time.monotonic() > deadline:
            raise RayschedError(f"{', '.join(sorted(left))} on {name} did not end: try again")
        time.sleep(PAUSE_S)


async def _leave(hosts: Sequence[Host], tell: Callable[[str], None]) -> None:
    """Have machines leave Ray; what is away has left. Raises the first error once all have come to an end."""

    async def one(host: Host) -> None:
        try:
            await joining.leave(host)
        except Unreachable as error:
            tell(str(error))

    for outcome in await asyncio.gather(*(one(host) for host in hosts), return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _wait_left(hosts: set[str], system: System) -> None:
    """Return when none of these is a node of Ray."""
    deadline = time.monotonic() + FREE_S
    while left := hosts & in_ray(system.gpus()):
        if time.monotonic() > deadline:
            raise RayschedError(f"{', '.join(sorted(left))} did not leave Ray: try again")
        time.sleep(PAUSE_S)


def _free(name: str, hosts: set[str], system: System, cancel: bool, tell: Callable[[str], None]) -> None:
    """Take the hosts out of the inventory, once no job runs there."""
    # First nothing new starts there, then what runs is ended.
    for host in system.hosts():
        if host["name"] in hosts:
            system.remove_host(host["name"])
    deadline = time.monotonic() + FREE_S
    while left := {host["name"] for host in system.hosts()} & hosts:
        _cancel(system, hosts, cancel, tell)
        if time.monotonic() > deadline:
            raise RayschedError(f"{', '.join(sorted(left))} of {name} did not get free: try again")
        time.sleep(PAUSE_S)


def _cancel(system: System, nodes: set[str], wanted: bool, tell: Callable[[str], None]) -> None:
    for job in _busy(system, nodes) if wanted else ():
        tell(f"cancelling {job}")
        system.cancel(job)


def _busy(system: System, hosts: set[str]) -> set[str]:
    """The jobs that have a lease on one of the hosts and are not being ended yet."""
    return tenants(system.jobs(), hosts, ending=False)
