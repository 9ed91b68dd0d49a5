"""Limits of the kernel: a control group (cgroup v2) for each lease, whose processes get so much memory of a
GPU and no more. NVIDIA's driver counts all of it, CUDA's own included; who asks for more is told that the GPU
is out of memory.

The group is made before the command of a lease starts, which joins it before it is executed: no process was
ever outside. No soft limit is set: it would be added up in the groups above, and stay there when this one is
gone.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pynvml

from raysched.errors import RayschedError
from raysched.gpu.answers import code

ROOT = Path("/sys/fs/cgroup")
"""Where the driver wants cgroup v2 to be mounted."""
NAME = "raysched"
"""The group below that in which each lease has its own."""
CONTROLLER = "dmem"
"""The kernel's controller of device memory (6.14), which the driver uses where it is there."""
LEAST_CUDA = (13, 4)
MIB = 2**20


def missing(cuda: str | None) -> str:
    """What this node lacks for such limits, in words; empty if it lacks nothing that can be told without a
    GPU."""
    if tuple(int(part) for part in (cuda or "0").split(".")) < LEAST_CUDA:
        return "a driver for CUDA 13.4 or later"
    if not (ROOT / "cgroup.controllers").exists():
        return f"cgroup v2 at {ROOT}, which a newer distribution has"
    if not os.access(ROOT, os.W_OK):
        return f"to run as root, which may write to {ROOT}"
    return ""


def supported(handle: Any) -> bool:
    """Whether the driver knows such limits for a GPU."""
    asked = pynvml.c_nvmlGetMemoryLimits_v1_t(nameSpace=str(ROOT).encode())
    try:
        pynvml.nvmlDeviceGetMemoryLimits_v1(handle, asked)
    except pynvml.NVMLError as problem:
        return code(problem) == pynvml.NVML_ERROR_NOT_FOUND  # it knows them, and the root has none
    return True


def hold(lease: str, memory: Mapping[str, int]) -> Path:
    """Make the group of a lease and let it have so many MiB of each of these GPUs; the folder of the group,
    to be joined. Silent where that was done. Raises RayschedError where nothing would hold it."""
    group = ROOT / NAME / lease
    try:
        for parent in (ROOT, ROOT / NAME):
            parent.mkdir(exist_ok=True)
            _pass_on(parent)
        group.mkdir(exist_ok=True)
        with _library():
            for gpu, mib in memory.items():
                _limit(gpu, group, mib * MIB)
    except (OSError, pynvml.NVMLError) as problem:
        release(lease)
        raise RayschedError(f"the kernel can't limit the memory of lease {lease}: {problem}") from problem
    return group


def release(lease: str) -> None:
    """Remove the group of a lease that has no process any more, and its limits with it; silent where there
    is none, or where somebody is still in it."""
    with suppress(OSError):
        (ROOT / NAME / lease).rmdir()


def _pass_on(parent: Path) -> None:
    """Let the groups below this one limit the memory of devices, where the kernel can."""
    if CONTROLLER in (parent / "cgroup.controllers").read_text().split():
        (parent / "cgroup.subtree_control").write_text(f"+{CONTROLLER}")


@contextmanager
def _library() -> Generator[None]:
    """NVML, for as long as it is needed."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _limit(gpu: str, group: Path, size: int) -> None:
    """Let the processes of a group have so many bytes of a GPU. The driver's word is read again: one that
    took it and does nothing must not look like one that holds."""
    handle, path = pynvml.nvmlDeviceGetHandleByUUID(gpu), str(group).encode()
    wanted = pynvml.c_nvmlSetMemoryLimits_v1_t(nameSpace=path, softLimit=0, hardLimit=size)
    pynvml.nvmlDeviceSetMemoryLimits_v1(handle, wanted)
    found: Any = pynvml.c_nvmlGetMemoryLimits_v1_t(nameSpace=path)
    pynvml.nvmlDeviceGetMemoryLimits_v1(handle, found)
    if found.hardLimit > size:
        raise OSError(f"the driver limits {gpu} to {found.hardLimit} bytes rather than {size}")
