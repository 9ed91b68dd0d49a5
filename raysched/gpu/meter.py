"""Measures who uses how much of a node's GPUs, sample by sample: keeps the last minute, and sums up the use
of each lease until the ledger has written it down. It needs no Ray; whoever drives it says what time it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from raysched.core import commands
from raysched.core.gpu_views import Reading, Stranger, Usage
from raysched.core.measured import Policy, Stretch, Tenancy, TenantUse
from raysched.core.watchdog import UNKNOWN_MEMORY
from raysched.gpu.driver import GPUUse, ProcessUse, Sample
from raysched.gpu.owners import User

KEPT_MS = 60_000
"""How long samples are kept, for the mean of the last minute."""
GAP_MS = 30_000
"""The longest time between two samples that counts as measured: the agent was stopped in a longer one."""
Key = tuple[str, str]
"""A GPU and a lease; without a lease it is empty."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A process on a GPU, and whose it is; None where it can't be looked up, as in another container."""

    gpu: str
    use: ProcessUse
    user: User | None

    @property
    def lease(self) -> str | None:
        """The lease that it belongs to."""
        return self.user.lease if self.user else None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured at one moment: for the views, for the ledger, and every process on a GPU."""

    usage: Usage
    told: tuple[commands.Usage, ...]
    seen: tuple[Seen, ...]


@dataclass(slots=True)
class Sum:
    """The use of one GPU by one lease so far."""

    ms: int = 0
    memory_ms: int = 0
    memory_peak: int = 0
    busy_measured: int = 0
    busy_ms: int = 0
    busy_peak: int = 0

    def add(self, reading: Reading, ms: int) -> None:
        """A sample that stands for `ms` milliseconds."""
        memory = reading.memory or 0
        self.ms += ms
        self.memory_ms += memory * ms
        self.memory_peak = max(self.memory_peak, memory)
        if reading.busy is not None:
            self.busy_measured += ms
            self.busy_ms += reading.busy * ms
            self.busy_peak = max(self.busy_peak, reading.busy)

    def stretch(self, lease: str, gpu: str, end: int) -> Stretch:
        """The sum as it is told."""
        known = self.busy_measured > 0
        return Stretch(
            lease,
            gpu,
            end,
            self.ms,
            self.memory_ms // self.ms,
            self.memory_peak,
            self.busy_ms // self.busy_measured if known else None,
            self.busy_peak if known else None,
        )


@dataclass(slots=True)
class Meter:
    """What is measured on the node called `node`, and the watchdog's policy that goes with it."""

    node: str
    policy: Policy
    _recent: dict[Key, deque[tuple[int, int]]] = field(default_factory=dict[Key, "deque[tuple[int, int]]"])
    _sums: dict[Key, Sum] = field(default_factory=dict[Key, Sum])
    _closed: list[Stretch] = field(default_factory=list[Stretch])
    _before: int | None = None

    def take(self, sample: Sample, tenants: Iterable[Tenancy], now: int) -> Measurement:
        """Take one sample in; `tenants` have a part of the GPUs, and `now` is an uptime in ms."""
        uses, users = sample.uses, sample.users
        seen = tuple(Seen(gpu, use, users.get(use.pid)) for gpu, on in uses.items() for use in on.processes)
        readings = {
            (gpu, lease): reading
            for gpu, on in uses.items()
            for lease in _leases(gpu, seen, tenants)
            if (
                reading := _reading(on, [each.use for each in seen if (each.gpu, each.lease) == (gpu, lease)])
            )
        }
        self._add(readings, now)
        self._remember({key: reading.busy for key, reading in readings.items()}, now)
        self._remember({(gpu, ""): on.busy for gpu, on in uses.items()}, now)
        return Measurement(self._usage(uses, readings, seen), self._told(uses, seen), seen)

    def _add(self, readings: Mapping[Key, Reading], now: int) -> None:
        passed = 0 if self._before is None else now - self._before
        self._before = now
        if 0 < passed <= GAP_MS:
            for key, reading in readings.items():
                self._sums.setdefault(key, Sum()).add(reading, passed)

    def _remember(self, busy: Mapping[Key, int | None], now: int) -> None:
        for key, part in busy.items():
            if part is not None:
                self._recent.setdefault(key, deque()).append((now, part))
        for key, ring in list(self._recent.items()):
            while ring and ring[0][0] <= now - KEPT_MS:
                ring.popleft()
            if not ring:
                del self._recent[key]

    def _mean(self, gpu: str, lease: str) -> int | None:
        ring = self._recent.get((gpu, lease))
        return sum(part for _, part in ring) // len(ring) if ring else None

    def _usage(
        self, uses: Mapping[str, GPUUse], readings: Mapping[Key, Reading], seen: Iterable[Seen]
    ) -> Usage:
        gpus = {
            gpu: Reading(on.memory_mib, on.busy, self._mean(gpu, ""), on.power, on.temperature)
            for gpu, on in uses.items()
        }
        tenants = {
            (gpu, lease): Reading(reading.memory, reading.busy, self._mean(gpu, lease))
            for (gpu, lease), reading in readings.items()
        }
        strangers: dict[str, tuple[Stranger, ...]] = {}
        for each in seen:
            strangers[each.gpu] = (*strangers.get(each.gpu, ()), _stranger(each))
        return Usage(gpus, tenants, strangers)

    def _told(self, uses: Iterable[str], seen: Iterable[Seen]) -> tuple[commands.Usage, ...]:
        on = {gpu: [each for each in seen if each.gpu == gpu] for gpu in uses}
        return tuple(_command(self.node, gpu, there, self.policy) for gpu, there in on.items())

    # ------------------------------------------------------------ what is written down

    def close(self, now: int, lease: str | None = None) -> None:
        """End the sums of a lease, or of all, so that they can be told; `now` is in ms since 1970."""
        for key in [key for key in self._sums if lease in (None, key[1])]:
            self._closed.append(self._sums.pop(key).stretch(key[1], key[0], now))

    def untold(self, now: int) -> tuple[Stretch, ...]:
        """All that was not written down, as if it ended now (ms since 1970)."""
        going_on = (total.stretch(lease, gpu, now) for (gpu, lease), total in self._sums.items())
        return (*self._closed, *going_on)

    def resume(self, untold: Iterable[Stretch]) -> None:
        """Tell what an earlier meter of this node could not."""
        self._closed += untold

    def closed(self) -> tuple[Stretch, ...]:
        """What is to be told; it stays here until `forget`, and is the same when it is told again."""
        return tuple(self._closed)

    def forget(self, told: Iterable[Stretch]) -> None:
        """These were written down."""
        gone = set(told)
        self._closed = [stretch for stretch in self._closed if stretch not in gone]


def _leases(gpu: str, seen: Iterable[Seen], tenants: Iterable[Tenancy]) -> list[str]:
    """The leases whose use of a GPU is measured: those that have a part of it, and those that use it."""
    found = [tenancy.lease for tenancy in tenants if tenancy.gpu == gpu]
    return list(dict.fromkeys([*found, *(each.lease for each in seen if each.gpu == gpu and each.lease)]))


def _reading(on: GPUUse, uses: list[ProcessUse]) -> Reading | None:
    """The use that a lease makes of a GPU by these processes; None where nothing is measured."""
    if not uses:
        return None if on.memory_mib is None else Reading(0, None if on.busy is None else 0)
    memory = [use.memory_mib for use in uses if use.memory_mib is not None]
    instances = {
        use.instance: on.instances[use.instance]
        for use in uses
        if use.instance and use.instance in on.instances
    }
    busy = [use.busy for use in uses if use.instance not in instances] + list(instances.values())
    known = [part for part in busy if part is not None]
    return Reading(sum(memory) if memory else None, sum(known) if len(known) == len(busy) else None)


def _command(node: str, gpu: str, seen: list[Seen], policy: Policy) -> commands.Usage:
    """What processes without a lease hold, and those of each lease."""
    strangers = [each.use for each in seen if each.lease is None]
    foreign = sum(UNKNOWN_MEMORY if use.memory_mib is None else use.memory_mib for use in strangers)
    instances = {use.instance for use in strangers if use.instance is not None}
    held: dict[tuple[str, str], list[int]] = {}
    for each in seen:
        if each.lease is not None:
            own = held.setdefault((each.lease, each.use.instance or gpu), [])
            own += [] if each.use.memory_mib is None else [each.use.memory_mib]
    tenants = tuple(
        TenantUse(lease, device, sum(memory) if memory else None) for (lease, device), memory in held.items()
    )
    return commands.Usage(node, gpu, foreign, tuple(sorted(instances)), tenants, policy)


def _stranger(seen: Seen) -> Stranger:
    name = seen.user.process.name if seen.user else ""
    account = seen.user.account if seen.user else ""
    return Stranger(seen.use.pid, name, account, seen.use.memory_mib, seen.lease)
