"""What was granted of GPUs and what was used of that, summed up from the records of leases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raysched.core.history import LeaseRecord
from raysched.core.measured import Stretch
from raysched.core.request import WHOLE
from raysched.core.words import stamp

By = Literal["queue", "user", "job", "gpu"]
HOUR = 3_600_000


@dataclass(frozen=True, slots=True)
class Window:
    """The time from `start` to `end`, in ms since 1970."""

    start: int
    end: int

    def part(self, start: int, end: int) -> int:
        """The milliseconds of another time that are in this one."""
        return max(0, min(end, self.end) - max(start, self.start))


@dataclass(slots=True)
class Total:
    """Sums for one queue, user, job or GPU, called `name` (of a job, with its `id`). In ms of a
    ten-thousandth of a GPU: what was `granted`, how much of that was `measured`, and how much was `used`
    then. In MiB x ms: the memory that was granted while it was measured (`memory_measured`), and used
    (`memory_used`). `memory_peak` is the most that one lease used of one GPU, in MiB; `leases` and `jobs` are
    the ids."""

    name: str
    id: str = ""
    granted: int = 0
    measured: int = 0
    used: int = 0
    memory_measured: int = 0
    memory_used: int = 0
    memory_peak: int | None = None
    leases: set[str] = field(default_factory=set[str])
    jobs: set[str] = field(default_factory=set[str])


def usage(leases: Iterable[LeaseRecord], by: By, window: Window, groups: Mapping[str, str]) -> list[Total]:
    """The sums of what lies in the window, the largest grants first. `groups` maps a job to its submission,
    so that an array is one job. What a lease lent of its GPUs to others is theirs as long as they have it."""
    totals: dict[str, Total] = {}
    known = {lease.lease: lease for lease in leases}
    lent = _lent(known, window)
    for lease in known.values():
        if window.part(start_of(lease), _end(lease, window)):
            for total, gpu in _totals(totals, lease, by, groups):
                _add(total, lease, gpu, window, lent.get(lease.lease, 0))
    return sorted(totals.values(), key=lambda total: (-total.granted, total.name, total.id))


def gpu_seconds(leases: Mapping[str, LeaseRecord], now: int) -> dict[str, float]:
    """What each lease took of GPUs until `now` (ms since 1970), less what it lent, in seconds of a whole
    GPU."""
    ever = Window(0, now)
    lent = _lent(leases, ever)
    return {id: (_granted(lease, ever) - lent.get(id, 0)) / WHOLE / 1000 for id, lease in leases.items()}


def _totals(
    totals: dict[str, Total], lease: LeaseRecord, by: By, groups: Mapping[str, str]
) -> Iterator[tuple[Total, str]]:
    """The sum that each GPU of a lease adds to."""
    for gpu in lease.parts:
        if by == "gpu":
            yield totals.setdefault(gpu, Total(gpu)), gpu
        elif by == "job":
            group = groups.get(lease.job, lease.job)
            yield totals.setdefault(group, Total(lease.name, group)), gpu
        else:
            name = lease.queue if by == "queue" else lease.user
            yield totals.setdefault(name, Total(name)), gpu


def start_of(lease: LeaseRecord) -> int:
    """When a lease began to hold GPUs, in ms since 1970."""
    return lease.placed or lease.granted


def _end(lease: LeaseRecord, window: Window) -> int:
    return window.end if lease.released is None else lease.released


def _lent(leases: Mapping[str, LeaseRecord], window: Window) -> dict[str, int]:
    """What each lease that lent nodes gave others, in ms of a ten-thousandth of a GPU: at most all it had."""
    lent: dict[str, int] = {}
    for borrower in leases.values():
        for id, share in borrower.borrowed.items():
            if (lender := leases.get(id)) is not None:
                start = max(start_of(borrower), start_of(lender))
                end = min(_end(borrower, window), _end(lender, window))
                lent[id] = lent.get(id, 0) + share * window.part(start, end)
    return {id: min(given, _granted(leases[id], window)) for id, given in lent.items()}


def _granted(lease: LeaseRecord, window: Window) -> int:
    return lease.share * window.part(start_of(lease), _end(lease, window))


def _add(total: Total, lease: LeaseRecord, gpu: str, window: Window, lent: int) -> None:
    """`lent` is what others had of all its GPUs together; nobody knows of which, so it counts for each."""
    share, memory = lease.parts[gpu]
    total.leases.add(lease.lease)
    total.jobs.add(lease.job)
    total.granted += (_granted(lease, window) - lent) * share // lease.share if lease.share else 0
    for at, use in lease.used:
        ms = window.part(at - use.ms, at)
        if use.gpu == gpu and ms:
            _add_use(total, use, ms, share, memory)


def _add_use(total: Total, use: Stretch, ms: int, share: int, memory: int) -> None:
    total.memory_measured += memory * ms
    total.memory_used += use.memory * ms
    total.memory_peak = max(total.memory_peak or 0, use.memory_peak)
    if use.busy is not None:
        total.measured += share * ms
        total.used += use.busy * ms


def usage_view(totals: Iterable[Total], by: By, window: Window) -> dict[str, Any]:
    """The sums as plain JSON values, in hours of a whole GPU: a shape of docs/api.md."""
    return {
        "by": by,
        "from": stamp(window.start),
        "to": stamp(window.end),
        "rows": [_row(total) for total in totals],
    }


def _row(total: Total) -> dict[str, Any]:
    return {
        "name": total.name,
        "id": total.id or None,
        "jobs": len(total.jobs),
        "leases": len(total.leases),
        "gpu_hours": hours(total.granted / WHOLE),
        "gpu_hours_measured": hours(total.measured / WHOLE),
        "gpu_hours_used": hours(total.used / WHOLE) if total.measured else None,
        "busy": _ratio(total.used, total.measured),
        "memory": _ratio(total.memory_used, total.memory_measured),
        "memory_peak_mib": total.memory_peak,
    }


def hours(ms: float) -> float:
    """Milliseconds in hours, to the third of a second."""
    return round(ms / HOUR, 4)


def _ratio(part: int, whole: int) -> int | None:
    return part * WHOLE // whole if whole else None
