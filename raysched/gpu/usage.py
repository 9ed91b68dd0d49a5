"""What is in use of a real GPU, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pynvml

from raysched.gpu.answers import FORBIDDEN, UNKNOWN, code
from raysched.gpu.driver import ProcessUse

MIB = 2**20
Read = Callable[[Any], list[Any]]

LISTS: tuple[tuple[Read, bool], ...] = (
    (pynvml.nvmlDeviceGetComputeRunningProcesses_v3, False),
    (pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3, False),
    (pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3, True),
)
"""The lists of processes, and whether those in one only draw."""


def memory(handle: Any) -> Any:
    """Total and used bytes; None where only root may know, as of a GPU in MIG mode. The first version of the
    call, for drivers before 510, counts what the driver keeps for itself as used."""
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as problem:
        if code(problem) == FORBIDDEN:
            return None
        if code(problem) not in UNKNOWN:
            raise
        return pynvml.nvmlDeviceGetMemoryInfo(handle)


def mib(size: int) -> int:
    """Bytes in MiB, rounded up: what is begun is not free."""
    return -(-size // MIB)


def processes(handle: Any, devices: list[tuple[str, Any]]) -> tuple[ProcessUse, ...]:
    """The processes on a GPU, and on its MIG instances, of which `devices` has UUIDs and handles.

    One may be in several lists, with its whole memory in each. Of a GPU in MIG mode only root may list all,
    so the instances are asked one by one.
    """
    uses: dict[int, ProcessUse] = {}
    for instance, device in [*devices, (None, handle)]:
        for process, graphics in _listed(device):
            used = process.usedGpuMemory
            use = ProcessUse(process.pid, None if used is None else mib(used), instance, graphics=graphics)
            uses.setdefault(process.pid, use)
    return tuple(uses[pid] for pid in sorted(uses))


def _listed(handle: Any) -> Iterator[tuple[Any, bool]]:
    for read, graphics in LISTS:
        try:
            yield from ((process, graphics) for process in read(handle))
        except pynvml.NVMLError as problem:
            if code(problem) not in (*UNKNOWN, FORBIDDEN):
                raise
