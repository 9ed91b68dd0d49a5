"""What a node agent asks of a GPU driver, real or simulated."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from raysched.core.mig import Cut
from raysched.core.node import GPUInfo
from raysched.core.work import Partition
from raysched.gpu.owners import User


@dataclass(frozen=True, slots=True)
class Discovery:
    """The GPUs of this node. `driver_version` is None where no driver is loaded: then there are no GPUs.
    `cuda` is the newest CUDA that it runs; `problem` says in words why the GPUs can't be read, empty if they
    can."""

    driver_version: str | None
    simulated: bool
    gpus: tuple[GPUInfo, ...]
    cuda: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """A process that uses a GPU, and the MiB that it holds there; None where the driver does not say.
    `instance` is the UUID of the MIG instance that it is in, None for one that is in none. `busy` is the part
    of the GPU's compute that it used since the last look, in ten-thousandths, None where that is not measured
    for processes. `graphics`: it only draws, as a display server does."""

    pid: int
    memory_mib: int | None
    instance: str | None = None
    busy: int | None = None
    graphics: bool = False


@dataclass(frozen=True, slots=True)
class GPUUse:
    """What is in use of one GPU in MiB, by whom. `busy` is the part of its compute, in ten-thousandths, that
    was used since the last look, `instances` the same for MIG instances by UUID, as parts of the whole GPU;
    `power` in watts, `temperature` in degrees Celsius. None: it was not measured."""

    memory_mib: int | None
    processes: tuple[ProcessUse, ...] = ()
    busy: int | None = None
    instances: dict[str, int] = field(default_factory=dict[str, int])
    power: int | None = None
    temperature: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """What is in use of each GPU, by UUID, and whose the processes are that use one; one that is gone, or in
    another container, is left out."""

    uses: dict[str, GPUUse]
    users: dict[int, User]


class PartitionRefused(Exception):
    """The driver would not cut a GPU as asked; the ledger is told, no user. `cut` is the instance that could
    not be made or destroyed, None where it is the MIG mode that could not be switched. The message says why
    and what to do."""

    def __init__(self, reason: str, cut: Cut | None = None) -> None:
        super().__init__(reason)
        self.cut = cut


class Driver(Protocol):
    """Reads and cuts the GPUs of this node. A driver that is broken raises nothing: `Discovery.problem` and
    the faults of its GPUs say so."""

    def discover(self) -> Discovery:
        """The GPUs that are ours to share, in the order of their index."""
        ...

    def sample(self) -> dict[str, GPUUse]:
        """What is in use now, by UUID, of each GPU that answers."""
        ...

    def partition(self, change: Partition) -> None:
        """Cut a GPU; what is so already is left as it is. Raises PartitionRefused; what was done before that
        stays done, and the next `discover` tells it."""
        ...

    def close(self) -> None:
        """Let go of the driver; calling it twice is silent."""
        ...


def open_driver(
    simulate: str | None,
    node: str,
    environ: Mapping[str, str] = os.environ,
    folder: Path | None = None,
) -> Driver:
    """The driver of this node: simulated as `simulate` says (`2xA100-80GB,1xA30`), else NVML.

    `node` is the node's name; a simulated GPU keeps its UUID as long as the name stays, and how it is cut as
    long as the state folder `folder` does. A GPU that `CUDA_VISIBLE_DEVICES` in `environ` hides is not ours.
    A machine without NVIDIA's library or driver simply has no GPUs. Raises ConfigError for a simulation that
    can't be.
    """
    if simulate is not None:
        from raysched.gpu.simulated import SimulatedDriver

        return SimulatedDriver(simulate, node, folder)
    from raysched.gpu.nvml import NVMLDriver

    return NVMLDriver(environ.get("CUDA_VISIBLE_DEVICES"))
