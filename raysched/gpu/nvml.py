"""The real driver, read and changed through NVIDIA's management library (module pynvml of nvidia-ml-py)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml

from raysched.core.mig import UNCUT, Geometry
from raysched.core.node import GPUInfo, Mechanism
from raysched.core.work import Partition
from raysched.gpu import activity, instances, limits, usage
from raysched.gpu.answers import NO_GPUS, asked, code, worded
from raysched.gpu.driver import Discovery, GPUUse, PartitionRefused
from raysched.gpu.geometries import named
from raysched.gpu.health import Health
from raysched.gpu.models import model_of_product
from raysched.gpu.mps import Daemons, usable
from raysched.gpu.topology import Topology
from raysched.gpu.visible import visible

_log = logging.getLogger(__name__)

Identity = tuple[str, Any] | pynvml.NVMLError
"""A GPU's UUID and NVML handle, or why it has none."""


class NVMLDriver:
    """The GPUs of this node that `cuda_visible_devices`, the variable's value at the node's start, leaves.

    What can't be read is as it was last seen, with a fault that says so: an error of the driver takes no GPU
    away from anybody. A driver that was reloaded is found again.

    `pipes` is the folder of the MPS daemons' pipe directories, by default one under /tmp. Process ids are
    those that the driver reports: inside a container with process ids of its own they are the host's, and
    match nothing there.
    """

    def __init__(self, cuda_visible_devices: str | None, pipes: Path | None = None) -> None:
        self._visible = cuda_visible_devices
        self._health = Health()
        self._topology = Topology()
        self._daemons = Daemons(pipes)
        self._geometries: dict[tuple[str, bool | None], Geometry] = {}
        self._seen: dict[str, GPUInfo] = {}
        self._cuda: str | None = None
        self._activity = activity.Activity()
        self._open = False
        self._start()

    # ------------------------------------------------------------ looking

    def discover(self) -> Discovery:
        """The visible GPUs, how they are cut, and what is wrong with them."""
        problem = self._start()
        if problem is not None and (self._seen or code(problem) not in NO_GPUS):
            return self._broken(worded("be started", problem))
        if problem is not None:
            return Discovery(driver_version=None, simulated=False, gpus=())
        try:
            found = self._look()
        except pynvml.NVMLError as problem:
            self.close()
            return self._broken(worded("list the GPUs", problem))
        self._seen = {gpu.uuid: gpu for gpu in found.gpus}
        return found

    def _start(self) -> pynvml.NVMLError | None:
        """Begin to use the library, unless that was done; what is wrong with it."""
        if self._open:
            return None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as problem:
            return problem
        self._open = True
        return None

    def _broken(self, problem: str) -> Discovery:
        """The GPUs as they were last seen, all of them out of use."""
        gpus = tuple(replace(gpu, fault="NVIDIA's driver does not answer") for gpu in self._seen.values())
        return Discovery(driver_version=None, simulated=False, gpus=gpus, problem=problem)

    def _look(self) -> Discovery:
        version = pynvml.nvmlSystemGetDriverVersion()
        cuda = asked(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        self._cuda = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else self._cuda
        places = [_identity(place) for place in range(pynvml.nvmlDeviceGetCount())]
        ours = list(self._ours(places))
        gone = [_unread(place, found) for place, found in enumerate(places) if isinstance(found, Exception)]
        self._health.listen((uuid, handle) for _, uuid, handle in ours)
        handles = [(uuid, handle) for _, uuid, handle in ours]
        read = [self._info(*gpu, handles) for gpu in ours]
        lost = [self._seen[uuid] for uuid in self._seen if gone and uuid not in dict(handles)]
        gpus = [each for each in read if isinstance(each, GPUInfo)]
        gpus += [replace(gpu, fault="it does not answer any more") for gpu in lost]
        problems = [each for each in read if isinstance(each, str)] + ([] if lost else gone)
        return Discovery(
            version,
            simulated=False,
            gpus=tuple(sorted(gpus, key=lambda gpu: gpu.index)),
            cuda=self._cuda,
            problem="; ".join(problems),
        )

    def _info(self, index: int, uuid: str, handle: Any, gpus: list[tuple[str, Any]]) -> GPUInfo | str:
        """A GPU as it is now, or as it was last seen where it can't be read; words for one that never was."""
        try:
            try:
                return self._read(index, uuid, handle, gpus)
            except pynvml.NVMLError:  # somebody may just have cut it
                return self._read(index, uuid, handle, gpus)
        except pynvml.NVMLError as problem:
            why = _unread(index, problem)
            if uuid not in self._seen:
                return why
            return replace(self._seen[uuid], fault=f"it can't be read: {problem}")

    def _read(self, index: int, uuid: str, handle: Any, gpus: list[tuple[str, Any]]) -> GPUInfo:
        before = self._seen.get(uuid)
        if before and before.mig and instances.enabled(handle) is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)  # no GPU loses its MIG
        mig = self._geometry(uuid, handle)
        pci = asked(pynvml.nvmlDeviceGetPciInfo, handle)
        version = asked(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
        capability = "{}.{}".format(*version) if version else before.capability if before else ""
        layout = instances.layout(handle, mig, before.layout if before else UNCUT)
        return GPUInfo(
            uuid,
            index,
            model_of_product(pynvml.nvmlDeviceGetName(handle)),
            _total(usage.memory(handle), mig, before),
            mig=mig,
            layout=replace(layout, mps=self._daemons.pipe(uuid)),
            mechanisms=self._mechanisms(handle, mig, capability),
            fault=self._health.fault(uuid, handle),
            pci=pci.busId if pci else before.pci if before else "",
            capability=capability,
            links=self._topology.links(uuid, handle, gpus),
        )

    def _mechanisms(self, handle: Any, mig: Geometry | None, capability: str) -> tuple[Mechanism, ...]:
        found: list[Mechanism] = ["mig"] if mig else []
        if usable(capability, self._cuda):
            found.append("mps")
        if not limits.missing(self._cuda) and limits.supported(handle):
            found.append("memory_limit")
        return tuple(found)

    def _geometry(self, uuid: str, handle: Any) -> Geometry | None:
        """What a GPU can be cut into, asked once for each of its modes: it takes many calls."""
        key = (uuid, instances.enabled(handle))
        if key not in self._geometries:
            memory = usage.memory(handle)
            found = instances.geometry(handle, memory.total if memory else None)
            if found is None:
                return None
            self._geometries[key] = found
        return self._geometries[key]

    def sample(self) -> dict[str, GPUUse]:
        """What is in use now of each GPU that answers."""
        if not self._open:
            return {}
        try:
            return {uuid: use for _, uuid, handle in self._ours() if (use := self._use(uuid, handle))}
        except pynvml.NVMLError as problem:
            _log.warning("%s.", worded("list the GPUs", problem))
            return {}

    def _use(self, uuid: str, handle: Any) -> GPUUse | None:
        """What is in use of a GPU; None where it does not answer. Its MPS daemon is nobody's process."""
        try:
            memory = usage.memory(handle)
            devices = instances.devices(handle)
            processes = usage.processes(handle, devices)
            busy = self._busy(uuid, handle, devices)
        except pynvml.NVMLError as problem:
            _log.warning("GPU %s can't be read: %s.", uuid, problem)
            return None
        others = [process for process in processes if not self._daemons.owns(uuid, process.pid)]
        return GPUUse(
            None if memory is None else usage.mib(memory.used),
            tuple(replace(process, busy=busy.of(process.pid)) for process in others),
            busy.gpu,
            busy.instances,
            activity.power(handle),
            activity.temperature(handle),
        )

    def _busy(self, uuid: str, handle: Any, devices: list[tuple[str, Any]]) -> activity.Busy:
        if not devices:
            return self._activity.whole(uuid, handle)
        mig = self._geometry(uuid, handle)
        return self._activity.cut(handle, devices, mig.slices) if mig else activity.Busy()

    # ------------------------------------------------------------ cutting

    def partition(self, change: Partition) -> None:
        """Cut a GPU: end its MPS daemon, destroy, switch the mode, create, start a daemon; and look again
        before each step that takes something away whether a process is there. Raises PartitionRefused."""
        try:
            if not change.mps:
                self._daemons.stop(change.gpu)
            self._cut(change)
            if change.mps:
                self._daemons.start(change.gpu)
        except pynvml.NVMLError as problem:
            raise PartitionRefused(f"{change.gpu} can't be cut: {problem}") from problem

    def _cut(self, change: Partition) -> None:
        handle = self._handle(change.gpu)
        mig = self._geometry(change.gpu, handle)
        if mig is None:
            if change.mig or change.destroy:
                raise PartitionRefused(f"{change.gpu} has no MIG, or can't tell what it can be cut into")
            return
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
            self._health.forget()
            self._activity.forget()
            asked(pynvml.nvmlShutdown)

    def _ours(self, places: list[Identity] | None = None) -> Iterator[tuple[int, str, Any]]:
        """Each GPU that is ours to share, as (index, UUID, NVML handle), of those in `places` or all."""
        found = places or [_identity(place) for place in range(pynvml.nvmlDeviceGetCount())]
        handles = {each[0]: each[1] for each in found if isinstance(each, tuple)}
        uuids = [each[0] if isinstance(each, tuple) else None for each in found]
        for index, uuid in visible(uuids, self._visible):
            yield index, uuid, handles[uuid]


def _identity(place: int) -> Identity:
    """UUID and handle of a GPU; the error of one that fell off the bus, so that the others stay usable."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(place)
        return pynvml.nvmlDeviceGetUUID(handle), handle
    except pynvml.NVMLError as problem:
        return problem


def _unread(place: int, problem: Exception) -> str:
    words = f"GPU {place} can't be read: {problem}"
    _log.warning("%s.", words)
    return words


def _total(memory: Any, mig: Geometry | None, before: GPUInfo | None) -> int:
    """MiB of a GPU; of one that only root may ask, what it had before, else those of its largest profile."""
    if memory is not None:
        return memory.total // usage.MIB
    if before is not None:
        return before.memory
    return max(profile.memory for profile in mig.profiles) if mig else 0
