"""Whose the processes on a GPU are.

A process belongs to the lease that its own environment names, else to that of its nearest ancestor which has
one, else to that of its container: the other processes in it, if all that are marked name the same lease. A
container, or a job of a batch system, is known by its cgroup. Linux only: everything is read from /proc.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from raysched.gpu.processes import Process, find, mark

_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])|/job_\d+(?![^/\n])")
"""What in a cgroup's path names a container (its id, whichever engine made it) or a job of Slurm."""
_LOOKS = 30
"""How often a process without a lease is seen until it is looked at anew."""


@dataclass(frozen=True, slots=True)
class User:
    """A process on a GPU, the lease that it belongs to, if any, and the name of the account that runs it."""

    process: Process
    lease: str | None
    account: str


class Owners:
    """Remembers what it found: a look costs two files a process, however many others the node has."""

    def __init__(self) -> None:
        self._known: dict[Process, User] = {}
        self._looks: dict[Process, int] = {}

    def of(self, pids: Iterable[int]) -> dict[int, User]:
        """Whose each of these processes is; those that are gone are left out."""
        found = {pid: process for pid in pids if (process := find(pid)) is not None}
        self._known = {process: self._user(process) for process in found.values()}
        self._looks = {process: self._looks.get(process, 0) for process in self._known}
        return {pid: self._known[process] for pid, process in found.items()}

    def _user(self, process: Process) -> User:
        known = self._known.get(process)
        if known is not None and (known.lease is not None or self._looks[process] % _LOOKS):
            self._looks[process] += 1
            return known
        self._looks[process] = self._looks.get(process, 0) + 1
        lease = _marked(process) or _of_container(process)
        return User(process, lease, _account(process.pid))


def _marked(process: Process) -> str | None:
    """The lease that a process or its nearest marked ancestor names."""
    return next((lease for each in _lineage(process) if (lease := mark(each.pid))), None)


def _lineage(process: Process) -> Iterator[Process]:
    """A process and its ancestors, the nearest first."""
    seen: set[int] = set()  # a parent's id may have been taken again meanwhile
    each: Process | None = process
    while each is not None and each.pid not in seen:
        yield each
        seen.add(each.pid)
        each = find(each.parent)


def _of_container(process: Process) -> str | None:
    """The one lease that is named in the container of a process; none where this node itself is in it."""
    container = _container(process.pid)
    if container is None or container == _container(os.getpid()):
        return None
    inside = (
        pid
        for entry in os.listdir("/proc")
        if entry.isdecimal() and _container(pid := int(entry)) == container
    )
    leases = {lease for pid in inside if (lease := mark(pid))}
    return leases.pop() if len(leases) == 1 else None


def _container(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
    except OSError:
        return None
    named = _CONTAINER.search(text)
    return named[0] if named else None


def _account(pid: int) -> str:
    """The name of a process's account, or its number; empty if the process is gone."""
    try:
        number = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return ""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
