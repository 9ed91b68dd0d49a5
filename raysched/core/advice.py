"""Which jobs could take a smaller share, from what was measured of them.

A share has to hold the most memory that any run used and a fifth more, and one and a half times the mean part
of the GPU that runs kept busy, or their peak where that is less. Told is only what saves a tenth or more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raysched.core.history import JobRecord, LeaseRecord
from raysched.core.request import WHOLE
from raysched.core.usage import Window, hours, start_of
from raysched.core.words import stamp

LEAST_MEASURED = 60_000
"""Milliseconds for which a job has to have been measured."""
STEP = WHOLE // 20
"""Fractions are advised in steps of 0.05."""
GIB = 1024
KINDS = ("exclusive", "fraction", "time_slice")
"""Ways to share a GPU in which any fraction can be asked for."""


@dataclass(slots=True)
class Runs:
    """The measured runs of one job, as its user submits it again and again. `share` (ten-thousandths) and
    `memory` (MiB) are what each had of a GPU; `by_memory` says that it asks by memory. `granted` counts ms of
    a whole GPU in the window, `measured` ms; `busy_ms` is None where the compute was not measured."""

    name: str
    user: str
    queue: str
    sharing: str
    share: int
    memory: int
    by_memory: bool
    leases: list[str] = field(default_factory=list[str])
    granted: int = 0
    measured: int = 0
    memory_peak: int = 0
    busy_ms: int | None = 0
    busy_peak: int = 0

    @property
    def busy_mean(self) -> int | None:
        """The mean part of a GPU that runs kept busy, in ten-thousandths."""
        return None if self.busy_ms is None or not self.measured else self.busy_ms // self.measured


@dataclass(frozen=True, slots=True)
class Advice:
    """What a job could ask for instead: a fraction in ten-thousandths, or (where it asks by memory) MiB; and
    the ten-thousandths of a GPU that each of its leases would free on each of its GPUs."""

    runs: Runs
    fraction: int | None
    memory: int | None
    frees: int

    @property
    def frees_ms(self) -> int:
        """Milliseconds of a whole GPU that would have been free in the window."""
        return self.runs.granted * self.frees // self.runs.share


def advise(leases: Iterable[LeaseRecord], jobs: Mapping[str, JobRecord], window: Window) -> list[Advice]:
    """What could be saved, the most first."""
    found = [advice for runs in _runs(leases, jobs, window) if (advice := _advice(runs)) is not None]
    return sorted(found, key=lambda advice: (-advice.frees_ms, advice.runs.name))


def _runs(leases: Iterable[LeaseRecord], jobs: Mapping[str, JobRecord], window: Window) -> Iterable[Runs]:
    found: dict[tuple[object, ...], Runs] = {}
    for lease in leases:
        job = jobs.get(lease.job)
        if job is None or lease.sharing not in KINDS or len(set(lease.parts.values())) != 1:
            continue
        (part,) = set(lease.parts.values())
        key = (lease.name, lease.user, lease.queue, lease.sharing, job.by_memory, part)
        runs = found.get(key) or Runs(
            lease.name, lease.user, lease.queue, lease.sharing, *part, by_memory=job.by_memory
        )
        if _add(runs, lease, window):
            found[key] = runs
    return found.values()


def _add(runs: Runs, lease: LeaseRecord, window: Window) -> bool:
    """Add what was measured of a lease within the window; whether that was anything."""
    used = [(ms, use) for at, use in lease.used if (ms := window.part(at - use.ms, at))]
    if not used:
        return False
    end = window.end if lease.released is None else lease.released
    runs.leases.append(lease.lease)
    runs.granted += len(lease.parts) * runs.share * window.part(start_of(lease), end) // WHOLE
    for ms, use in used:
        runs.measured += ms
        runs.memory_peak = max(runs.memory_peak, use.memory_peak)
        if use.busy is None or runs.busy_ms is None:
            runs.busy_ms = None
        else:
            runs.busy_ms += use.busy * ms
            runs.busy_peak = max(runs.busy_peak, use.busy_peak or 0)
    return True


def _advice(runs: Runs) -> Advice | None:
    mean = runs.busy_mean
    if runs.measured < LEAST_MEASURED or mean is None:
        return None
    total = runs.memory * WHOLE // runs.share
    busy = min(runs.busy_peak, _up(mean * 3, 2))
    memory = max(_up(runs.memory_peak * 6, 5), _up(busy * total, WHOLE), 1)
    if runs.by_memory:
        memory = _up(memory, GIB) * GIB
        fraction = memory * WHOLE // total
    else:
        fraction = _up(_up(memory * WHOLE, total), STEP) * STEP
    if fraction * 10 > runs.share * 9:
        return None
    asked = (None, memory) if runs.by_memory else (fraction, None)
    return Advice(runs, *asked, frees=runs.share - fraction)


def _up(number: int, by: int) -> int:
    """A quotient, rounded up."""
    return -(-number // by)


def advice_view(found: Iterable[Advice], window: Window) -> dict[str, Any]:
    """The advice as plain JSON values: a shape of docs/api.md."""
    return {
        "from": stamp(window.start),
        "to": stamp(window.end),
        "advice": [_shown(advice) for advice in found],
    }


def _shown(advice: Advice) -> dict[str, Any]:
    runs = advice.runs
    return {
        "name": runs.name,
        "user": runs.user,
        "queue": runs.queue,
        "leases": len(runs.leases),
        "measured_s": runs.measured / 1000,
        "share": runs.share,
        "memory_mib": runs.memory,
        "memory_peak_mib": runs.memory_peak,
        "busy_mean": runs.busy_mean,
        "busy_peak": runs.busy_peak,
        "gpu_fraction": None if advice.fraction is None else advice.fraction / WHOLE,
        "gpu_memory": None if advice.memory is None else f"{advice.memory // GIB}GiB",
        "frees": advice.frees,
        "gpu_hours": hours(runs.granted),
        "gpu_hours_freed": hours(advice.frees_ms),
    }
