"""`raysched doctor`: looks at this machine and at the running system."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from raysched.client import Client
from raysched.cluster import home as homes
from raysched.cluster import own_ray, record
from raysched.cluster.record import Record
from raysched.core.node import GPUInfo
from raysched.discovery import find_access
from raysched.errors import PortBusy, RayschedError
from raysched.folders import state_folder

if TYPE_CHECKING:
    from raysched.backends.slurm.controller import Controller
    from raysched.backends.slurm.records import Node

GIB = 1 << 30
LEAST_DISK = GIB
LEAST_SHARED_MEMORY = GIB
"""Ray keeps its objects there, and gets slow with less."""
PYTHON = ((3, 10), (3, 15))
CLOCK_MS = 60_000


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `hint` says what to do where it is not `ok`."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def doctor() -> list[Check]:
    """Look at everything. Changes nothing; raises nothing."""
    looks: list[Callable[[], Iterator[Check]]] = [
        _python,
        _gpus,
        _folder,
        _shared_memory,
        _ray,
        _gateway,
        _slurm,
        _clock,
    ]
    return [check for look in looks for check in look()]


def _python() -> Iterator[Check]:
    found = sys.version_info[:2]
    name = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", PYTHON[0] <= found < PYTHON[1], name, "use Python 3.10 to 3.14")
    try:
        yield Check("ray package", True, version("ray"))
    except PackageNotFoundError:
        yield Check("ray package", False, "not installed", "install raysched with pip, which brings Ray")


def _gpus() -> Iterator[Check]:
    from raysched.gpu.driver import open_driver

    found = open_driver(None, os.uname().nodename).discover()
    if found.problem:
        yield Check("GPUs", False, found.problem, "see what `nvidia-smi` says")
    elif not found.gpus:
        yield Check("GPUs", True, "none here; `raysched up --simulate 2xA100-80GB` makes some up")
    if not found.gpus:
        return
    models = ", ".join(sorted({gpu.model for gpu in found.gpus}))
    many = f"{len(found.gpus)} ({models}), driver {found.driver_version}"
    yield Check("GPUs", True, ", ".join([many, *_mig(found.gpus)]))
    for gpu in found.gpus:
        yield Check(f"GPU {gpu.index}", True, _isolation(gpu, found.cuda))
        if gpu.fault:
            hint = "raysched places nothing on it until it is healthy"
            yield Check(f"GPU {gpu.index}", False, f"{gpu.uuid}: {gpu.fault}", hint)


def _isolation(gpu: GPUInfo, cuda: str | None) -> str:
    """What can hold tenants to their shares of a GPU, and what there would have to be for more."""
    from raysched.gpu import limits
    from raysched.gpu.mps import missing

    hard, more = ["a whole GPU"], list[str]()
    if gpu.mig is None:
        more.append("MIG: not on this model")
    elif gpu.mig.switchable or gpu.layout.enabled:
        hard.append("MIG")
    else:
        more.append("MIG: turn it on as root, `nvidia-smi -mig 1`, or run Ray as root")
    if lacking := missing(gpu.capability, cuda):
        more.append(f"MPS: needs {lacking}")
    else:
        hard.append("MPS")
    if "memory_limit" in gpu.mechanisms:
        hard.append("a memory limit of the kernel")
    else:
        lacking = limits.missing(cuda) or "a driver that knows it for this GPU"
        more.append(f"memory limit of the kernel: needs {lacking}")
    return "; ".join([f"{gpu.model}: a tenant is held to its share by {' or '.join(hard)}", *more])


def _mig(gpus: Sequence[GPUInfo]) -> list[str]:
    """Words for the GPUs in MIG mode, if there are any."""
    layouts = [gpu.layout for gpu in gpus if gpu.layout.enabled]
    instances = sum(len(layout.instances) for layout in layouts)
    return [f"{len(layouts)} in MIG mode with {_count(instances, 'instance')}"] if layouts else []


def _folder() -> Iterator[Check]:
    folder = state_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    writable = os.access(there, os.W_OK | os.X_OK) and there.is_dir()
    yield Check("state folder", writable, str(folder), "set RAYSCHED_HOME to a folder that you may write to")
    free = shutil.disk_usage(there).free
    yield Check("disk", free >= LEAST_DISK, f"{free / GIB:.1f} GiB free in {there}", "free some space there")


def _shared_memory() -> Iterator[Check]:
    place = Path("/dev/shm")
    if not place.exists():
        return
    size = shutil.disk_usage(place).total
    hint = "make it larger, such as with --shm-size of the container"
    yield Check("shared memory", size >= LEAST_SHARED_MEMORY, f"{size / GIB:.1f} GiB in {place}", hint)


def _ray() -> Iterator[Check]:
    found = record.read(state_folder())
    if found is None:
        return
    whose = "started by `up`" if found.own else "not started by `up`"
    hint = "run `raysched up`: it starts a new one, and finds the jobs that still run"
    yield Check("ray", homes.ray_alive(found), f"{found.ray}, {whose}", hint)
    yield from _ray_token(found)


def _ray_token(found: Record) -> Iterator[Check]:
    if found.own is None or not own_ray.has_token(os.environ):
        return
    path = own_ray.token_path(os.environ)
    private = not path.exists() or path.stat().st_mode & 0o077 == 0
    yield Check("ray token", private, f"in {path}", f"others may read it: chmod 600 {path}")


def _gateway() -> Iterator[Check]:
    try:
        access = find_access()
    except RayschedError as error:
        yield _not_up(str(error))
        return
    if not access.expected:
        yield _not_up("not up")
        return
    client = Client(access.address, access.token, patience=0)
    try:
        status, hosts = client.status(), client.hosts()
    except RayschedError as error:
        yield Check("gateway", False, f"no answer from {access.address}", str(error))
        return
    has = f"{_count(status['nodes'], 'node')}, {_count(status['gpus']['total'], 'GPU')}"
    made_up = ", simulated" if status["simulated"] else ""
    yield Check("gateway", True, f"{access.address}, token accepted; {has}{made_up}")
    if hosts:
        out = [host["name"] for host in hosts if host["state"] == "out"]
        found = f"out: {', '.join(out)}" if out else f"{len(hosts)}, none is out"
        yield Check("hosts", not out, found, "`raysched vm list` says why")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _not_up(detail: str) -> Check:
    """A system that is not up is no fault if it could be started."""
    from raysched.cluster.up import free_port
    from raysched.specs.config import load_config

    try:
        gateway = load_config().gateway
        free_port(gateway.host, gateway.port)
    except PortBusy as error:
        return Check("gateway", False, detail, str(error))
    except RayschedError as error:
        return Check(
            "configuration", False, str(error), "mend the file, or name another with RAYSCHED_CONFIG"
        )
    port = f"port {gateway.port} is free" if gateway.port else "it will take a free port"
    return Check("gateway", True, f"{detail}; {port}")


def _slurm() -> Iterator[Check]:
    """Whether the site of the configuration answers."""
    from raysched.backends.slurm.access import open_controller
    from raysched.backends.slurm.controller import Refused, Unanswered
    from raysched.specs.config import load_config

    try:
        site = load_config().backends.slurm
    except RayschedError:  # said where the gateway is looked at
        return
    if site is None:
        return
    controller = open_controller(site.login, site.rest, site.token_file, os.environ)
    try:
        nodes = asyncio.run(_nodes(controller))
    except (Refused, Unanswered) as error:
        hint = "nothing is handed to it until it answers; see backends.slurm in raysched.yaml"
        yield Check("Slurm", False, str(error), hint)
    else:
        yield Check("Slurm", True, f"answers; {_count(len(nodes), 'node')}")


async def _nodes(controller: Controller) -> list[Node]:
    try:
        return await controller.nodes()
    finally:
        await controller.close()


def _clock() -> Iterator[Check]:
    found = record.read(state_folder())
    if found is not None:
        back = found.at - time.time() * 1000
        yield Check(
            "clock", back < CLOCK_MS, "goes on" if back < CLOCK_MS else "was set back", "set it right"
        )
