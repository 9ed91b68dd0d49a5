"""Ends the machines of a cluster, and what was made around them. It may die anywhere and be asked again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from raysched.errors import Conflict, RayschedError
from raysched.machines import aws, record
from raysched.machines.launcher import Launcher
from raysched.machines.record import Cluster, Json
from raysched.machines.up import Hosts, host_name

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
    with record.exclusive(home, name):
        cluster = record.read(home, name)
        launcher = Launcher(cluster)
        ids = [machine.id for machine in launcher.found()]
        if system is None and ids and not cancel:
            raise Conflict(
                f"raysched is not up, and jobs may run on the machines of {name}: run `raysched up` first, "
                "or end them with --cancel"
            )
        if system is not None:
            names = {host_name(name, id) for id in ids} | set(cluster.hosts.values())
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


def _free(name: str, hosts: set[str], system: System, cancel: bool, tell: Callable[[str], None]) -> None:
    """Take the hosts out of the inventory, once no job runs there."""
    busy = _busy(system, hosts)
    if busy and not cancel:
        jobs = "1 job runs" if len(busy) == 1 else f"{len(busy)} jobs run"
        raise Conflict(
            f"{jobs} on machines of {name} ({', '.join(sorted(busy))}): wait for the end, or end them with "
            "--cancel"
        )
    # First nothing new starts there, then what runs is ended.
    for host in system.hosts():
        if host["name"] in hosts:
            system.remove_host(host["name"])
    deadline = time.monotonic() + FREE_S
    while left := {host["name"] for host in system.hosts()} & hosts:
        for job in _busy(system, hosts) if cancel else ():
            tell(f"cancelling {job}")
            system.cancel(job)
        if time.monotonic() > deadline:
            raise RayschedError(f"{', '.join(sorted(left))} of {name} did not get free: try again")
        time.sleep(PAUSE_S)


def _busy(system: System, hosts: set[str]) -> set[str]:
    """The jobs that have a lease on one of the hosts and are not being ended yet."""
    return {
        job["id"]
        for job in system.jobs()
        if job["lease"]
        and job["lease"]["state"] not in ("releasing", "released")
        and hosts & {place["node"] for place in job["lease"]["places"]}
    }
