"""The real driver, read and changed through NVIDIA's management library (module pynvml of nvidia-ml-py)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pynvml

from raysched.core.mig import Geometry
from raysched.core.node import GPUInfo, Mechanism
from raysched.core.work import Partition
from raysched.gpu import instances, usage
from raysched.gpu.answers import NO_GPUS, code, worded
from raysched.gpu.driver import Discovery, GPUUse, PartitionRefused
from raysched.gpu.geometries import named
from raysched.gpu.health import Health
from raysched.gpu.models import model_of_product
from raysched.gpu.visible import visible

_log = logging.getLogger(__name__)


class NVMLDriver:
    """The GPUs of this node that `cuda_visible_devices`, the variable's value at the node's start, leaves.

    Process ids are those that the driver reports: inside a container with process ids of its own they are
    the host's, and match nothing there.
    """

    def __init__(self, cuda_visible_devices: str | None) -> None:
        self._visible = cuda_visible_devices
        self._health = Health()
        self._geometries: dict[tuple[str, bool | None], Geometry | None] = {}
        self._open = False
        try:
            pynvml.nvmlInit()
            self._open = True
        except pynvml.NVMLError as problem:
            if code(problem) not in NO_GPUS:
                raise worded("be started", problem) from problem

    def discover(self) -> Discovery:
        """The visible GPUs, how they are cut, and what is wrong with them."""
        if not self._open:
            return Discovery(driver_version=None, simulated=False, gpus=())
        try:
            version = pynvml.nvmlSystemGetDriverVersion()
            ours = list(self._ours())
            self._health.listen((uuid, handle) for _, uuid, handle in ours)
            gpus = tuple(info for gpu in ours if (info := self._info(*gpu)))
        except pynvml.NVMLError as problem:
            raise worded("list the GPUs", problem) from problem
        return Discovery(version, simulated=False, gpus=gpus)

    def _info(self, index: int, uuid: str, handle: Any) -> GPUInfo | None:
        """A GPU as it is now; None for one that stopped answering meanwhile."""
        try:
            try:
                return self._read(index, uuid, handle)
            except pynvml.NVMLError:  # somebody may just have cut it
                return self._read(index, uuid, handle)
        except pynvml.NVMLError as problem:
            _log.warning("GPU %d can't be read and is left out: %s.", index, problem)
            return None

    def _read(self, index: int, uuid: str, handle: Any) -> GPUInfo:
        mig = self._geometry(uuid, handle)
        mechanisms: tuple[Mechanism, ...] = ("mig",) if mig else ()
        return GPUInfo(
            uuid,
            index,
            model_of_product(pynvml.nvmlDeviceGetName(handle)),
            _total(usage.memory(handle), mig),
            mig=mig,
            layout=instances.layout(handle, mig),
            mechanisms=mechanisms,
            fault=self._health.fault(uuid, handle),
        )

    def _geometry(self, uuid: str, handle: Any) -> Geometry | None:
        """What a GPU can be cut into, asked once for each of its modes: it takes many calls."""
        key = (uuid, instances.enabled(handle))
        if key not in self._geometries:
            memory = usage.memory(handle)
            self._geometries[key] = instances.geometry(handle, memory.total if memory else None)
        return self._geometries[key]

    def sample(self) -> dict[str, GPUUse]:
        """What is in use now; a GPU that does not answer is there with nothing measured."""
        if not self._open:
            return {}
        try:
            return {uuid: _use(uuid, handle) for _, uuid, handle in self._ours()}
        except pynvml.NVMLError as problem:
            raise worded("list the GPUs", problem) from problem

    def partition(self, change: Partition) -> None:
        """Cut a GPU: destroy, switch the mode, create, and look again before each step that takes something
        away whether a process is there. Raises PartitionRefused."""
        try:
            mig = self._geometry(change.gpu, self._handle(change.gpu))
            if mig is None:
                raise PartitionRefused(f"{change.gpu} has no MIG, or can't tell what it can be cut into")
            self._cut(change, mig)
        except pynvml.NVMLError as problem:
            raise PartitionRefused(f"{change.gpu} can't be cut: {problem}") from problem

    def _cut(self, change: Partition, mig: Geometry) -> None:
        handle = self._handle(change.gpu)
        for cut in change.destroy:
            there = {each.cut: each.uuid for each in instances.layout(handle, mig).instances}
            users = [
                str(process.pid)
                for process in usage.processes(handle, instances.devices(handle))
                if process.instance is not None and process.instance == there.get(cut)
            ]
            if users:
                why = f"{named(mig, cut)} can't be destroyed: process {', '.join(users)} uses it"
                raise PartitionRefused(why, cut)
            instances.destroy(handle, mig, cut)
        if instances.enabled(handle) != change.mig:
            self._switch(change, handle)
        handle = self._handle(change.gpu)  # a switch may have reset the GPU
        for cut in change.create:
            instances.create(handle, mig, cut)

    def _switch(self, change: Partition, handle: Any) -> None:
        what = f"the MIG mode of {change.gpu} can't be turned {'on' if change.mig else 'off'}"
        if users := usage.processes(handle, instances.devices(handle)):
            raise PartitionRefused(f"{what}: process {users[0].pid} uses the GPU")
        if instances.devices(handle):
            raise PartitionRefused(f"{what}: it still has MIG instances")
        self._health.deafen()
        instances.switch(handle, change.mig, change.gpu)

    def _handle(self, uuid: str) -> Any:
        for _, other, handle in self._ours():
            if other == uuid:
                return handle
        raise PartitionRefused(f"{uuid} can't be cut: it is not there any more")

    def close(self) -> None:
        """Let go of the library."""
        if self._open:
            self._open = False
            self._health.deafen()
            pynvml.nvmlShutdown()

    def _ours(self) -> Iterator[tuple[int, str, Any]]:
        """Each GPU that is ours to share, as (index, UUID, NVML handle)."""
        found = [_identity(place) for place in range(pynvml.nvmlDeviceGetCount())]
        handles = {identity[0]: identity[1] for identity in found if identity is not None}
        uuids = [None if identity is None else identity[0] for identity in found]
        for index, uuid in visible(uuids, self._visible):
            yield index, uuid, handles[uuid]


def _identity(place: int) -> tuple[str, Any] | None:
    """UUID and handle of a GPU; None for one that fell off the bus, so that the others stay usable."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(place)
        return pynvml.nvmlDeviceGetUUID(handle), handle
    except pynvml.NVMLError as problem:
        _log.warning("GPU %d can't be read and is left out: %s.", place, problem)
        return None


def _total(memory: Any, mig: Geometry | None) -> int:
    """MiB of a GPU; of one that only root may ask, those of its largest profile."""
    if memory is not None:
        return memory.total // usage.MIB
    return max(profile.memory for profile in mig.profiles) if mig else 0


def _use(uuid: str, handle: Any) -> GPUUse:
    try:
        memory = usage.memory(handle)
        used = None if memory is None else usage.mib(memory.used)
        return GPUUse(used, usage.processes(handle, instances.devices(handle)))
    except pynvml.NVMLError as problem:
        _log.warning("GPU %s can't be read: %s.", uuid, problem)
        return GPUUse(memory_mib=None)
