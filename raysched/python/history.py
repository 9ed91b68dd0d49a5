"""`raysched.history`: what became of every job and every lease, as pandas DataFrames."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from raysched.core.history import JobRecord, LeaseRecord, Records
from raysched.core.request import WHOLE
from raysched.core.usage import gpu_seconds
from raysched.store.reader import Reader, no_collection
from raysched.store.usual import usual_url


class History(NamedTuple):
    """A row a lease in `leases`, a row a job in `jobs`, a row a fact in `facts`; docs/python.md has the
    columns. Times are UTC; what did not come yet is missing (NA, NaT).
    """

    leases: pd.DataFrame
    jobs: pd.DataFrame
    facts: pd.DataFrame


def history(store: str | None = None) -> History:
    """Everything that the journal at the URL `store` tells; by default, of the journal of this machine's
    configuration. It is only read: no ledger waits for it, and none need run.

    Raises StorageError where the journal is not there, can't be reached or is damaged.
    """
    records, told = Records(), _Columns("seq", "at", "kind", "body")
    with Reader(store or usual_url()) as journal, no_collection():
        for row in journal.rows():
            fact = row.fact()
            records.tell(fact)
            told.add(row.seq, fact.at, row.kind, row.body)
    now = time.time_ns() // 1_000_000
    leases = _leases(records.leases, now)
    return History(leases, _jobs(records.jobs.values(), leases), told.frame(_FACTS))


class _Columns:
    """Rows on their way into a DataFrame."""

    def __init__(self, *names: str) -> None:
        self._lists: dict[str, list[Any]] = {name: [] for name in names}
        self._appends = [values.append for values in self._lists.values()]

    def add(self, *row: Any) -> None:
        """Add one row, in the order of the columns."""
        for append, value in zip(self._appends, row, strict=True):
            append(value)

    def frame(self, kinds: dict[str, str]) -> pd.DataFrame:
        """All rows, with columns of these types."""
        return pd.DataFrame({name: _column(values, kinds[name]) for name, values in self._lists.items()})


_TIME = "datetime64[ms, UTC]"
_FACTS = {"seq": "Int64", "at": _TIME, "kind": "string", "body": "string"}
_LEASES = {
    "lease": "string",
    "job": "string",
    "attempt": "Int64",
    "name": "string",
    "user": "string",
    "queue": "string",
    "kind": "string",
    "backend": "string",
    "sharing": "string",
    "isolation": "string",
    "mechanism": "string",
    "nodes": "object",
    "gpus": "object",
    "instances": "object",
    "share": "Float64",
    "memory_mib": "Int64",
    "cpus": "Float64",
    "host_memory_mib": "Int64",
    "granted": _TIME,
    "bound": _TIME,
    "ended": _TIME,
    "released": _TIME,
    "waited_s": "Float64",
    "held_s": "Float64",
    "gpu_seconds": "Float64",
    "measured_s": "Float64",
    "gpu_seconds_used": "Float64",
    "busy_peak": "Float64",
    "memory_used_mean_mib": "Float64",
    "memory_used_peak_mib": "Int64",
    "outcome": "string",
    "code": "Int64",
    "reason": "string",
}
_JOBS = {
    "job": "string",
    "group": "string",
    "index": "Int64",
    "name": "string",
    "user": "string",
    "queue": "string",
    "priority": "Int64",
    "kind": "string",
    "state": "string",
    "attempts": "Int64",
    "submitted": _TIME,
    "granted": _TIME,
    "started": _TIME,
    "ended": _TIME,
    "code": "Int64",
    "reason": "string",
}


def _leases(records: Mapping[str, LeaseRecord], now: int) -> pd.DataFrame:
    rows = _Columns(*_LEASES)
    taken = gpu_seconds(records, now)
    for lease in records.values():
        held = (lease.released or max(now, lease.granted)) - lease.granted
        known = {
            "share": lease.share / WHOLE,
            "memory_mib": lease.memory,
            "cpus": lease.cpus / WHOLE,
            "host_memory_mib": lease.host_memory,
            "waited_s": lease.waited / 1000,
            "held_s": held / 1000,
            "gpu_seconds": taken[lease.lease],
            **_use(lease),
        }
        rows.add(*(known[name] if name in known else getattr(lease, name) for name in _LEASES))
    return rows.frame(_LEASES)


def _use(lease: LeaseRecord) -> dict[str, Any]:
    """What was measured of a lease; nothing where nothing was."""
    uses = [use for _, use in lease.used]
    busy = [use for use in uses if use.busy is not None]
    by_gpu = {gpu: [use for use in uses if use.gpu == gpu] for gpu in dict.fromkeys(use.gpu for use in uses)}
    times = {gpu: sum(use.ms for use in own) for gpu, own in by_gpu.items()}
    means = [sum(use.memory * use.ms for use in own) / times[gpu] for gpu, own in by_gpu.items()]
    peaks = [max(use.memory_peak for use in own) for own in by_gpu.values()]
    return {
        "measured_s": max(times.values()) / 1000 if times else None,
        "gpu_seconds_used": sum(use.ms * (use.busy or 0) for use in busy) / WHOLE / 1000 if busy else None,
        "busy_peak": max(use.busy_peak or 0 for use in busy) / WHOLE if busy else None,
        "memory_used_mean_mib": sum(means) if means else None,
        "memory_used_peak_mib": sum(peaks) if peaks else None,
    }


def _jobs(records: Iterable[JobRecord], leases: pd.DataFrame) -> pd.DataFrame:
    rows = _Columns(*_JOBS)
    for job in records:
        rows.add(*(getattr(job, name) for name in _JOBS))
    sums: Any = leases.groupby("job")[["waited_s", "gpu_seconds"]].sum()
    return rows.frame(_JOBS).join(sums, on="job").fillna({"gpu_seconds": 0.0})


def _column(values: list[Any], kind: str) -> pd.Series:
    if kind == _TIME:
        return pd.Series(pd.to_datetime(values, unit="ms", utc=True), dtype=_TIME)
    return pd.Series(values, dtype=kind)
