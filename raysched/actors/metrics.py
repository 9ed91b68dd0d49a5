"""What raysched tells Ray's metrics, and with them any Prometheus: there every name begins with `ray_`.

A series that is no longer set vanishes after two of Ray's intervals (20 s).
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Mapping, Sequence

from ray.util.metrics import Counter, Gauge

from raysched.core.gpu_views import NOTHING, Usage
from raysched.core.jobs import ENDED
from raysched.core.measured import Guidance
from raysched.core.request import WHOLE
from raysched.core.state import State
from raysched.gpu.strays import Stray

MIB = 2**20
GPU = ("node", "gpu")
# Not `job`: Prometheus gives that name to what it reads from.
TENANT = ("node", "gpu", "lease", "job_name", "user", "queue")
QUEUE = ("queue",)

GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "raysched_gpu_busy_ratio": ("Part of a GPU's compute that is busy.", GPU),
    "raysched_gpu_memory_used_bytes": ("Memory of a GPU that is in use.", GPU),
    "raysched_gpu_power_watts": ("Power that a GPU draws.", GPU),
    "raysched_gpu_temperature_celsius": ("Temperature of a GPU.", GPU),
    "raysched_tenant_share_ratio": ("Part of a GPU's compute that a lease has.", TENANT),
    "raysched_tenant_busy_ratio": ("Part of a GPU's compute that a lease keeps busy.", TENANT),
    "raysched_tenant_memory_bytes": ("Memory of a GPU that a lease has.", TENANT),
    "raysched_tenant_memory_used_bytes": ("Memory of a GPU that a lease uses.", TENANT),
    "raysched_gpu_memory_bytes": ("Memory of a GPU.", (*GPU, "model")),
    "raysched_gpu_share_granted_ratio": ("Part of a GPU's compute that is granted.", GPU),
    "raysched_gpu_memory_granted_bytes": ("Memory of a GPU that is granted.", GPU),
    "raysched_gpu_memory_without_lease_bytes": ("Memory of a GPU that is used without a lease.", GPU),
    "raysched_gpu_faulty": ("1 where a GPU is faulty.", GPU),
    "raysched_tenants_over_memory": ("Leases that use more memory of a GPU than they have.", GPU),
    "raysched_jobs": ("Jobs that have not ended, by state.", (*QUEUE, "state")),
    "raysched_longest_wait_seconds": ("How long the job that waits longest has waited.", QUEUE),
    "raysched_nodes": ("Nodes that are there, or lost.", ("state",)),
}
"""Each gauge with its description and labels."""

STRAYS_ENDED = ("raysched_watchdog_ended", "Processes that the watchdog told to end.", ("node", "kind"))
"""The one counter; its name gets `_total` behind it."""


class _Gauges:
    """Gauges, made when they are set first."""

    def __init__(self) -> None:
        self._made: dict[str, Gauge] = {}

    def set(self, name: str, value: float | None, **labels: str) -> None:
        """Set one; with None it is not told."""
        if value is None:
            return
        if name not in self._made:
            description, keys = GAUGES[name]
            self._made[name] = Gauge(name, description, keys)
        self._made[name].set(value, labels)


class NodeMetrics:
    """What is measured on nodes."""

    def __init__(self) -> None:
        self._gauges = _Gauges()
        self._ended = Counter(*STRAYS_ENDED)

    def show(self, node: str, usage: Usage, guidance: Guidance, ended: Sequence[Stray]) -> None:
        """Tell what one sample said."""
        for gpu, reading in usage.gpus.items():
            labels = {"node": node, "gpu": gpu}
            self._gauges.set("raysched_gpu_busy_ratio", _times(reading.busy, 1 / WHOLE), **labels)
            self._gauges.set("raysched_gpu_memory_used_bytes", _times(reading.memory, MIB), **labels)
            self._gauges.set("raysched_gpu_power_watts", reading.power, **labels)
            self._gauges.set("raysched_gpu_temperature_celsius", reading.temperature, **labels)
        for tenancy in guidance.tenants:
            reading = usage.tenants.get((tenancy.gpu, tenancy.lease), NOTHING)
            labels = {"node": node, "gpu": tenancy.gpu, "lease": tenancy.lease}
            labels |= {"job_name": tenancy.job, "user": tenancy.user, "queue": tenancy.queue}
            self._gauges.set("raysched_tenant_share_ratio", tenancy.share / WHOLE, **labels)
            self._gauges.set("raysched_tenant_busy_ratio", _times(reading.busy, 1 / WHOLE), **labels)
            self._gauges.set("raysched_tenant_memory_bytes", tenancy.memory * MIB, **labels)
            self._gauges.set("raysched_tenant_memory_used_bytes", _times(reading.memory, MIB), **labels)
        for stray in ended:
            self._ended.inc(1, {"node": node, "kind": stray.kind})


class LedgerMetrics:
    """What the ledger knows."""

    def __init__(self) -> None:
        self._gauges = _Gauges()

    def show(self, state: State, now: int) -> None:
        """Tell how things are at `now` (ms since 1970)."""
        self._jobs(state, now)
        lost = sum(node.lost is not None for node in state.nodes.values())
        self._gauges.set("raysched_nodes", len(state.nodes) - lost, state="alive")
        self._gauges.set("raysched_nodes", lost, state="lost")
        for name, node in state.nodes.items():
            for uuid, gpu in node.gpus.items():
                labels = {"node": name, "gpu": uuid}
                model = gpu.info.model
                self._gauges.set("raysched_gpu_memory_bytes", gpu.info.memory * MIB, model=model, **labels)
                self._gauges.set("raysched_gpu_share_granted_ratio", gpu.share_used / WHOLE, **labels)
                self._gauges.set("raysched_gpu_memory_granted_bytes", gpu.memory_used * MIB, **labels)
                self._gauges.set("raysched_gpu_memory_without_lease_bytes", gpu.foreign * MIB, **labels)
                self._gauges.set("raysched_gpu_faulty", int(bool(gpu.info.fault)), **labels)
                self._gauges.set("raysched_tenants_over_memory", len({o.lease for o in gpu.over}), **labels)

    def _jobs(self, state: State, now: int) -> None:
        living = [job for job in state.jobs.values() if job.state not in ENDED]
        waits: dict[str, int] = {}
        for job in living:
            wait = now - job.submitted if job.state == "waiting" else 0
            waits[job.queue] = max(waits.get(job.queue, 0), wait)
        for (queue, phase), number in Counts((job.queue, job.state) for job in living).items():
            self._gauges.set("raysched_jobs", number, queue=queue, state=phase)
        for queue, wait in waits.items():
            self._gauges.set("raysched_longest_wait_seconds", wait / 1000, queue=queue)


def _times(value: int | None, factor: float) -> float | None:
    return None if value is None else value * factor
