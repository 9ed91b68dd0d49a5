"""How busy a real GPU is, and who keeps it so; its power and temperature. What a GPU or a driver does not
tell is None: it is not measured, and nothing else is lost by that."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pynvml

from raysched.core.request import WHOLE
from raysched.gpu.answers import code

PERCENT = WHOLE // 100
SM = pynvml.NVML_GPM_METRIC_SM_UTIL


@dataclass(frozen=True, slots=True)
class Busy:
    """Parts of a GPU's compute, in ten-thousandths: all that is busy, by process, and by MIG instance. None:
    not measured."""

    gpu: int | None = None
    processes: dict[int, int] | None = None
    instances: dict[str, int] = field(default_factory=dict[str, int])

    def of(self, pid: int) -> int | None:
        """That of a process; one that is not told of was idle."""
        return None if self.processes is None else self.processes.get(pid, 0)


class Activity:
    """Remembers what was measured before: NVML tells what happened since then."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._samples: dict[str, Any] = {}

    def whole(self, uuid: str, handle: Any) -> Busy:
        """Of a GPU that is not cut."""
        rates = _told(pynvml.nvmlDeviceGetUtilizationRates, handle)
        shares = self._by_process(uuid, handle)
        if rates is None:
            return Busy(None if shares is None else min(WHOLE, sum(shares.values())), shares)
        return Busy(rates.gpu * PERCENT, shares)

    def _by_process(self, uuid: str, handle: Any) -> dict[int, int] | None:
        """The mean part of the multiprocessors that each process had since the last look."""
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(handle, self._seen.get(uuid, 0))
        except pynvml.NVMLError as problem:
            return {} if code(problem) == pynvml.NVML_ERROR_NOT_FOUND else None  # nobody did anything
        told: dict[int, list[int]] = {}
        for sample in samples:
            if sample.timeStamp:  # NVML fills what it does not use with zeros
                told.setdefault(sample.pid, []).append(sample.smUtil)
        self._seen[uuid] = max([self._seen.get(uuid, 0), *(sample.timeStamp for sample in samples)])
        return {pid: sum(parts) * PERCENT // len(parts) for pid, parts in told.items()}

    def cut(self, handle: Any, devices: list[tuple[str, Any]], slices: int) -> Busy:
        """Of a GPU in MIG mode with `slices` compute slices: from the second look on, where the GPU can tell
        (Hopper and later)."""
        support = _told(pynvml.nvmlGpmQueryDeviceSupport, handle)
        if support is None or not support.isSupportedDevice:
            return Busy()
        parts = {uuid: self._instance(uuid, handle, device, slices) for uuid, device in devices}
        known = {uuid: part for uuid, part in parts.items() if part is not None}
        whole = sum(known.values()) if len(known) == len(parts) else None
        return Busy(whole, instances=known)

    def _instance(self, uuid: str, handle: Any, device: Any, slices: int) -> int | None:
        """The part of the whole GPU that was busy in an instance since the last look at it."""
        before = self._samples.pop(uuid, None)
        after: Any = None
        try:
            number = pynvml.nvmlDeviceGetGpuInstanceId(device)
            after = pynvml.nvmlGpmSampleAlloc()
            pynvml.nvmlGpmMigSampleGet(handle, number, after)
            percent = None if before is None else _between(before, after)
            own = pynvml.nvmlDeviceGetAttributes_v2(device).gpuInstanceSliceCount
        except pynvml.NVMLError:
            _free(after)
            return None
        finally:
            _free(before)
        self._samples[uuid] = after
        return None if percent is None else round(percent * PERCENT * own / slices)

    def forget(self) -> None:
        """Let go of all that the library keeps for this."""
        while self._samples:
            _free(self._samples.popitem()[1])


def power(handle: Any) -> int | None:
    """Watts that a GPU draws."""
    milliwatts = _told(pynvml.nvmlDeviceGetPowerUsage, handle)
    return None if milliwatts is None else round(milliwatts / 1000)


def temperature(handle: Any) -> int | None:
    """Degrees Celsius of a GPU."""
    return _told(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)


def _between(before: Any, after: Any) -> float | None:
    """The percent of the multiprocessors that were busy between two samples of an instance."""
    asked: Any = pynvml.c_nvmlGpmMetricsGet_t()
    asked.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    asked.numMetrics = 1
    asked.sample1, asked.sample2 = before, after
    asked.metrics[0].metricId = SM
    (told,) = pynvml.nvmlGpmMetricsGet(asked).metrics[:1]
    return told.value if told.nvmlReturn == pynvml.NVML_SUCCESS else None


def _free(sample: Any) -> None:
    if sample is not None:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlGpmSampleFree(sample)


def _told(ask: Callable[..., Any], *arguments: Any) -> Any:
    """What NVML answers; None where it does not, for whatever reason."""
    try:
        return ask(*arguments)
    except pynvml.NVMLError:
        return None
