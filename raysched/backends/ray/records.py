"""What raysched holds in Ray, written into Ray itself: found again after a kill -9, gone with the cluster."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from ray.experimental import internal_kv

from raysched.backends.ray import groups

NAMESPACE = "raysched groups"

Purpose = Literal["gpu", "lease"]


@dataclass(slots=True)
class Record:
    """A placement group of ours, and what a probe proved it to hold.

    `purpose` is "gpu" for the group of one shared GPU and "lease" for one that belongs to a lease alone.
    `ray_ids` and `gpus` (indices) have an entry a bundle. `tenants` maps the ids of the leases in it to the
    names of the actors that keep their shares. `left` is when the last tenant left, by `time.monotonic`; to
    another process, whose clock may be another, that is when it found the record.
    """

    group: str
    purpose: Purpose
    ray_ids: list[str]
    gpus: list[list[int]]
    tenants: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    left: float = field(default_factory=time.monotonic)

    def indices(self, ray_id: str) -> set[int]:
        """The GPUs that the group holds on one node."""
        pairs = zip(self.ray_ids, self.gpus, strict=True)
        return {index for node, indices in pairs if node == ray_id for index in indices}

    def leave(self, lease: str) -> None:
        """A tenant is gone."""
        self.tenants.pop(lease, None)
        self.left = time.monotonic()


class Records:
    """All placement groups of ours. A group without a record holds nobody, as whoever made it was killed
    before a probe had proven it: `load` removes it."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._loaded = False
        self._loading = asyncio.Lock()

    async def load(self) -> None:
        """Read what an earlier process wrote. Only the first call has an effect."""
        async with self._loading:
            if self._loaded:
                return
            there = await groups.ours()
            for record in await asyncio.to_thread(_read):
                if record.group in there:
                    self._records[record.group] = record
                else:
                    await asyncio.to_thread(_erase, record.group)
            for id in there - self._records.keys():
                await groups.remove(groups.of_id(id))
            self._loaded = True

    def __getitem__(self, group: str) -> Record:
        return self._records[group]

    def of_gpu(self, ray_id: str, index: int) -> Record | None:
        """The group of a shared GPU."""
        held = (record for record in self._records.values() if index in record.indices(ray_id))
        return next((record for record in held if record.purpose == "gpu"), None)

    def of_lease(self, lease: str) -> list[Record]:
        """Every group that the lease is in, its own and those of shared GPUs."""
        return [record for record in self._records.values() if lease in record.tenants]

    def by_lease(self) -> dict[str, set[str]]:
        """The ids of the groups that each lease is in."""
        found: dict[str, set[str]] = {}
        for record in self._records.values():
            for lease in record.tenants:
                found.setdefault(lease, set()).add(record.group)
        return found

    def on_node(self, ray_id: str) -> set[int]:
        """The GPUs of a node that are ours."""
        return {index for record in self._records.values() for index in record.indices(ray_id)}

    def idle(self, seconds: float = 0.0) -> list[Record]:
        """The groups of shared GPUs that have had no tenant for so long."""
        before = time.monotonic() - seconds
        return [
            r for r in self._records.values() if r.purpose == "gpu" and not r.tenants and r.left <= before
        ]

    async def save(self, record: Record) -> None:
        """Remember a record, or that its tenants changed."""
        self._records[record.group] = record
        await asyncio.to_thread(_write, record)

    async def remove(self, record: Record) -> None:
        """Give a group back to Ray and forget it."""
        await groups.remove(groups.of_id(record.group))
        self._records.pop(record.group, None)
        await asyncio.to_thread(_erase, record.group)


def _read() -> list[Record]:
    keys = internal_kv._internal_kv_list("", namespace=NAMESPACE)
    texts = [internal_kv._internal_kv_get(key, namespace=NAMESPACE) for key in keys]
    return [replace(Record(**json.loads(text)), left=time.monotonic()) for text in texts]


def _write(record: Record) -> None:
    internal_kv._internal_kv_put(record.group, json.dumps(asdict(record)), namespace=NAMESPACE)


def _erase(group: str) -> None:
    internal_kv._internal_kv_del(group, namespace=NAMESPACE)
