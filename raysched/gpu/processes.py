"""The processes of a lease on this node: found by their marker, and ended.

A process belongs to the lease that `RAYSCHED_LEASE` in its environment names; children inherit it, through
fork, exec and setsid alike. A process whose environment lacks it (`env -i`) or can't be read belongs to the
lease of its nearest ancestor that has one. Linux only: everything is read from /proc.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path

from raysched.errors import RayschedError

MARKER = "RAYSCHED_LEASE"
"""The environment variable that names the lease of a process."""

WORKER_START_S = 60.0
"""How long Ray waits for a worker that it started (`worker_register_timeout_seconds`)."""

LISTEN = "0A"
"""The state of a socket that waits for connections, in /proc/net/tcp."""

_STUBBORN_S = 10.0
"""Seconds after SIGKILL in which a process has to be gone; only one that hangs in the kernel is not."""

_PAUSES_S = (0.01, 0.02, 0.05, 0.1)
"""Seconds between two looks, the last one again and again: most processes end at once."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that runs. `started`, in clock ticks since the machine's start, tells it from a later one
    with the same id. `parent` and `name` are as they were when it was seen."""

    pid: int
    started: int
    parent: int = field(compare=False)
    name: str = field(compare=False)


def tree(pid: int) -> frozenset[Process]:
    """The process `pid` and all its descendants, as they are now; empty if it is gone."""
    processes = _running()
    return frozenset(
        process
        for process in processes.values()
        if any(ancestor.pid == pid for ancestor in _lineage(process, processes))
    )


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine's start; None if it is gone."""
    process = find(pid)
    return None if process is None else process.started


def processes_of(lease_id: str) -> frozenset[Process]:
    """All processes of a lease that run on this node now."""
    return frozenset(process for process, lease in _leases({}).items() if lease == lease_id)


def end_processes(lease_id: str, grace_s: float, exclude: Iterable[int] = ()) -> None:
    """End every process of a lease, and return when none is left; at once if there is none.

    Each gets SIGTERM, children that appear meanwhile as well, and after `grace_s` seconds SIGKILL; a worker
    of Ray not before Ray knows it. The calling process and the ids in `exclude` are left alone. Raises
    RayschedError if one is still there ten seconds after that: it hangs in the kernel, or belongs to another
    user. Blocks: call it in a thread.
    """
    spared = {os.getpid(), *exclude}
    deadline = time.monotonic() + grace_s
    left: frozenset[Process] = frozenset()
    asked: set[Process] = set()
    for pause in chain(_PAUSES_S, repeat(_PAUSES_S[-1])):
        left = _left(lease_id, left, spared)
        overdue = time.monotonic() - deadline
        if not left:
            return
        ready = frozenset(process for process in left if not _is_starting_worker(process))
        if ready and overdue > _STUBBORN_S:
            raise RayschedError(_stuck(lease_id, ready))
        if overdue >= 0:
            send(ready, signal.SIGKILL)
        else:
            send(ready - asked, signal.SIGTERM)
            asked |= ready
        time.sleep(pause)


def _left(lease_id: str, before: frozenset[Process], spared: set[int]) -> frozenset[Process]:
    """The processes of a lease now. Those seen before stay its processes, and so do their new children,
    though the ancestor that had the marker may be gone."""
    leases = _leases(dict.fromkeys(before, lease_id))
    return frozenset(p for p, lease in leases.items() if lease == lease_id and p.pid not in spared)


def _leases(remembered: Mapping[Process, str]) -> dict[Process, str | None]:
    """The lease of every running process."""
    processes = _running()
    marks = {process: mark(process.pid) or remembered.get(process) for process in processes.values()}
    return {
        process: next((marks[p] for p in _lineage(process, processes) if marks[p]), None)
        for process in processes.values()
    }


def _lineage(process: Process, processes: Mapping[int, Process]) -> Iterator[Process]:
    """A process and its ancestors, the nearest first."""
    seen: set[int] = set()  # a parent's id may have been taken again while /proc was read
    while process.pid not in seen:
        yield process
        seen.add(process.pid)
        process = processes.get(process.parent, process)


def _running() -> dict[int, Process]:
    found = (find(int(entry)) for entry in os.listdir("/proc") if entry.isdecimal())
    return {process.pid: process for process in found if process is not None}


def find(pid: int) -> Process | None:
    """The process with that id; None if it is gone, or a zombie, which holds nothing any more."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    state, parent, threads, started = fields[0], int(fields[1]), int(fields[17]), int(fields[19])
    if state in "ZX" and threads <= 1:  # with threads, only the first of them has ended
        return None
    return Process(pid, started, parent, name)


def mark(pid: int) -> str | None:
    """The lease that a process's environment names. Raises OSError where nothing can be read now (too many
    open files): a lease whose processes can't be seen for a moment is not over."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or another user's
        return None
    start = f"\0{MARKER}=".encode()
    value = (b"\0" + environment).partition(start)[2].partition(b"\0")[0]
    return value.decode(errors="replace") or None


def _is_starting_worker(process: Process) -> bool:
    """Whether a process is a worker of Ray that its raylet does not know yet, and waits for.

    One that is killed then counts as starting for the rest of that time, and Ray starts no more at once than
    the node has CPUs: two such deaths keep a node of two CPUs from starting anything. A worker opens a port
    of its own once the raylet knows it.
    """
    parent = find(process.parent)
    if parent is None or parent.name != "raylet" or _listens(process.pid):
        return False
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - process.started / os.sysconf("SC_CLK_TCK")
    return age < WORKER_START_S


def _listens(pid: int) -> bool:
    """Whether a process has a TCP port open for others."""
    with suppress(OSError):  # it is gone, or another user's
        tables = (Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:] for kind in ("tcp", "tcp6"))
        rows = [line.split() for line in chain(*tables)]
        listening = {f"socket:[{row[9]}]" for row in rows if row[3] == LISTEN}
        return any(_target(entry) in listening for entry in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _target(entry: Path) -> str:
    """What a file descriptor leads to; nothing where it is closed by now."""
    with suppress(FileNotFoundError):
        return os.readlink(entry)
    return ""


def send(processes: Iterable[Process], number: signal.Signals) -> None:
    """Send a signal to exactly these processes, never to a later one with the same id. One of another user
    is passed over: it shows in what is left."""
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            descriptor = os.pidfd_open(process.pid)
            try:
                if find(process.pid) == process:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


def _stuck(lease_id: str, left: Iterable[Process]) -> str:
    names = ", ".join(f"{process.pid} ({process.name})" for process in sorted(left, key=lambda p: p.pid))
    return (
        f"the processes of lease {lease_id} can't be ended: {names}; they hang in the kernel or belong to "
        "another user; end them as root or restart the node, and their share is free"
    )
