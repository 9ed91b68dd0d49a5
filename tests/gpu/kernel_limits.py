"""A job that the kernel holds to its memory: from the driver over the ledger to processes in a control group,
and back. Run on the fake NVML, as root with cgroup v2 at /sys/fs/cgroup; prints what was seen.

The control groups are the kernel's; that the driver refuses memory beyond a limit is not shown here.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import fake_state
from running import wait_until

from raysched.backends.base import EngineRefused
from raysched.backends.node_runs import NodeRuns
from raysched.core import commands
from raysched.core.node import NodeInfo
from raysched.core.request import Request
from raysched.core.scheduler import Scheduler
from raysched.core.wanted import wanted
from raysched.core.work import Launch
from raysched.gpu.limits import NAME, ROOT
from raysched.gpu.nvml import NVMLDriver

GPU = "GPU-3f2a0001-aaaa"
STATE = Path(os.environ["FAKE_NVML_STATE"])
LINES = (fake_state.DRIVER, "cuda 13040", *fake_state.gpu(0, GPU, "A100-80GB"), "limits")
GROUPS = ROOT / NAME


class Machine:
    """A node with one GPU, its ledger, and who starts its runs."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Scheduler()
        self.runs = NodeRuns(folder / "runs", os.environ, folder)
        gpus = NVMLDriver(None).discover().gpus
        self.mechanisms = gpus[0].mechanisms
        self.ledger.handle(commands.NodeSeen(NodeInfo("a", ("vm",), gpus, 0, 0)), 0)

    def granted(self, id: str, command: str) -> Launch:
        """What is to be started of a job that must be held to an eighth of the GPU."""
        asked = Request(share=1250, sharing="fraction", isolation="hard", limitable=True)
        job = commands.JobRequest(id, id, "command", asked, spec={"entrypoint": command})
        self.ledger.handle(commands.Submit(id, "me", (job,)), 0)
        self.ledger.schedule(0)
        launches = wanted(self.ledger.state, "vm").launches
        return next(launch for launch in launches if launch.run.job == id)


def inside(group: Path) -> list[str]:
    return (group / "cgroup.procs").read_text().split()


async def life(machine: Machine, folder: Path) -> dict[str, Any]:
    """A job starts, has children that leave its session, ends; its group comes and goes with it."""
    go = folder / "go"
    child = f"while [ ! -e {go} ]; do sleep 0.05; done"
    launch = machine.granted("held", f"cat /proc/self/cgroup; setsid sh -c '{child}' & {child}")
    assert launch.limited
    await machine.runs.run_start(launch, None)
    group = GROUPS / launch.lease
    wait_until(lambda: len(inside(group)) >= 2, "both are in the group")
    (line,) = Path(f"{STATE}.limits").read_text().splitlines()
    found = {"limit": line.split()[:4], "inode": group.stat().st_ino, "size": launch.place.slices[0].memory}
    await machine.runs.end_processes(launch.lease, 0.1)
    output = (await machine.runs.run_logs(launch.run, 0, 1000)).decode()
    return found | {"output": output, "lease": launch.lease, "left": group.exists()}


async def refused(machine: Machine, folder: Path) -> str:
    """The driver does not do it: nothing runs, nothing is left."""
    STATE.write_text("\n".join((*LINES, "fail nvmlDeviceSetMemoryLimits_v1 4")))
    launch = machine.granted("unheld", f"touch {folder / 'ran'}")
    with pytest.raises(EngineRefused) as no:
        await machine.runs.run_start(launch, None)
    assert not no.value.final
    assert not (GROUPS / launch.lease).exists()
    return str(no.value)


async def main(folder: Path) -> None:
    STATE.write_text("\n".join(LINES))
    machine = Machine(folder)
    told = {"mechanisms": machine.mechanisms, **await life(machine, folder)}
    told |= {"refused": await refused(machine, folder), "ran": (folder / "ran").exists()}
    with suppress(OSError):
        GROUPS.rmdir()  # the kernel has only one hierarchy, however often it is mounted
    print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
