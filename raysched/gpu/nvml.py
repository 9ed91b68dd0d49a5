"""The real driver, read through NVIDIA's management library (module pynvml of nvidia-ml-py)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pynvml

from raysched.core.node import GPUInfo
from raysched.core.work import Partition
from raysched.errors import RayschedError
from raysched.gpu.driver import Discovery, GPUUse, PartitionRefused, ProcessUse
from raysched.gpu.models import model_of_product
from raysched.gpu.visible import visible

_MIB = 2**20
_NO_GPUS = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
"""What NVML answers on a machine that has no NVIDIA GPU: nothing is wrong then."""

_UNKNOWN = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
"""What it answers to a question that this GPU or this driver does not know."""

_LISTS: tuple[Callable[[Any], list[Any]], ...] = (
    pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
    pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
    pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3,
)
_log = logging.getLogger(__name__)


class NVMLDriver:
    """The GPUs of this node that `cuda_visible_devices`, the variable's value at the node's start, leaves.

    Process ids are those that the driver reports: inside a container with process ids of its own they are
    the host's, and match nothing there.
    """

    def __init__(self, cuda_visible_devices: str | None) -> None:
        self._visible = cuda_visible_devices
        self._open = False
        try:
            pynvml.nvmlInit()
            self._open = True
        except pynvml.NVMLError as problem:
            if _code(problem) not in _NO_GPUS:
                raise _worded("be started", problem) from problem

    def discover(self) -> Discovery:
        """The visible GPUs, without those in MIG mode: they run nothing but instances, which are not yet
        handed out."""
        if not self._open:
            return Discovery(driver_version=None, simulated=False, gpus=())
        try:
            version = pynvml.nvmlSystemGetDriverVersion()
            gpus = tuple(_info(index, uuid, handle) for index, uuid, handle in self._ours())
        except pynvml.NVMLError as problem:
            raise _worded("list the GPUs", problem) from problem
        return Discovery(version, simulated=False, gpus=gpus)

    def sample(self) -> dict[str, GPUUse]:
        """What is in use now; a GPU that does not answer is there with nothing measured."""
        if not self._open:
            return {}
        try:
            return {uuid: _use(uuid, handle) for _, uuid, handle in self._ours()}
        except pynvml.NVMLError as problem:
            raise _worded("list the GPUs", problem) from problem

    def partition(self, change: Partition) -> None:
        """Not yet."""
        raise PartitionRefused("this driver can't cut GPUs yet")

    def close(self) -> None:
        """Let go of the library."""
        if self._open:
            self._open = False
            pynvml.nvmlShutdown()

    def _ours(self) -> Iterator[tuple[int, str, Any]]:
        """Each GPU that is ours to share, as (index, UUID, NVML handle)."""
        found = [_identity(place) for place in range(pynvml.nvmlDeviceGetCount())]
        handles = {identity[0]: identity[1] for identity in found if identity is not None}
        uuids = [None if identity is None else identity[0] for identity in found]
        for index, uuid in visible(uuids, self._visible):
            if not _in_mig_mode(handles[uuid]):
                yield index, uuid, handles[uuid]


def _identity(place: int) -> tuple[str, Any] | None:
    """UUID and handle of a GPU; None for one that fell off the bus, so that the others stay usable."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(place)
        return pynvml.nvmlDeviceGetUUID(handle), handle
    except pynvml.NVMLError as problem:
        _log.warning("GPU %d can't be read and is left out: %s.", place, problem)
        return None


def _in_mig_mode(handle: Any) -> bool:
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError as problem:
        if _code(problem) in _UNKNOWN:
            return False
        raise
    return current == pynvml.NVML_DEVICE_MIG_ENABLE


def _info(index: int, uuid: str, handle: Any) -> GPUInfo:
    model = model_of_product(pynvml.nvmlDeviceGetName(handle))
    return GPUInfo(uuid, index, model, _memory(handle).total // _MIB)


def _memory(handle: Any) -> Any:
    """Total and used bytes. The first version of the call, for drivers before 510, counts what the driver
    keeps for itself as used."""
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as problem:
        if _code(problem) not in _UNKNOWN:
            raise
        return pynvml.nvmlDeviceGetMemoryInfo(handle)


def _use(uuid: str, handle: Any) -> GPUUse:
    try:
        return GPUUse(_mib(_memory(handle).used), _processes(handle))
    except pynvml.NVMLError as problem:
        _log.warning("GPU %s can't be read: %s.", uuid, problem)
        return GPUUse(memory_mib=None)


def _processes(handle: Any) -> tuple[ProcessUse, ...]:
    """The processes on a GPU. One may be in several lists, with its whole memory in each."""
    uses: dict[int, int | None] = {}
    for read in _LISTS:
        for process in _listed(read, handle):
            uses[process.pid] = process.usedGpuMemory
    return tuple(ProcessUse(pid, None if used is None else _mib(used)) for pid, used in sorted(uses.items()))


def _listed(read: Callable[[Any], list[Any]], handle: Any) -> list[Any]:
    try:
        return read(handle)
    except pynvml.NVMLError as problem:
        if _code(problem) in _UNKNOWN:
            return []
        raise


def _code(problem: pynvml.NVMLError) -> int:
    return getattr(problem, "value")  # noqa: B009 - pynvml sets it where type checkers can't see it


def _mib(size: int) -> int:
    """Bytes in MiB, rounded up: what is begun is not free."""
    return -(-size // _MIB)


def _worded(what: str, problem: pynvml.NVMLError) -> RayschedError:
    return RayschedError(
        f"NVIDIA's driver could not {what} ({problem}); see whether `nvidia-smi` works on this node, and "
        "after an update of the driver reboot it"
    )
