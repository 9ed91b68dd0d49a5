"""Every call that the driver makes fails with error codes that NVML has: with `all` of them, or with `some`:
those that the product tells from others, and one of the rest in turn. Run on the fake NVML, with the path for
its list of calls; prints what went wrong, and how much was tried.

Three GPUs, with a lease on a MIG instance of one and one on a share of another, in a ledger that is told what
the driver answers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import pynvml
from fake_nvml import fake_state

from raysched.core import commands
from raysched.core.mig import Cut
from raysched.core.node import NodeInfo
from raysched.core.request import Request
from raysched.core.scheduler import Scheduler
from raysched.core.validate import validate
from raysched.core.wanted import partitions
from raysched.core.work import Partition
from raysched.errors import RayschedError
from raysched.gpu import limits
from raysched.gpu.driver import Discovery, PartitionRefused
from raysched.gpu.nvml import NVMLDriver

CODES = sorted(
    {
        value
        for name, value in vars(pynvml).items()
        if name.startswith("NVML_ERROR_") and isinstance(value, int)
    }
)
PRODUCT = Path(__file__).parents[2] / "raysched" / "gpu"
CUT, SHARED, FREE = "GPU-3f2a0001-aaaa", "GPU-3f2a0002-bbbb", "GPU-3f2a0003-cccc"
LINES = (
    fake_state.DRIVER,
    "cuda 13040",
    "limits",
    *fake_state.gpu(0, CUT, "A100-80GB", mig=1),
    *fake_state.gpu(1, SHARED, "H100-80GB"),
    *fake_state.gpu(2, FREE, "A30"),
    "pci 0 00000000:07:00.0 8.0",
    "pci 1 00000000:0A:00.0 9.0",
    "link 0 1 30 0",
    "remapped 0 0 0 0 0",
    "recovery 0 0",
    "process 1 7 300 compute",
    "busy 1 50",
    "active 1 7 30",
    "watts 1 200",
    "celsius 1 50",
    "gpm 0 1 40",
)
CHANGES = (
    Partition(CUT, True, (Cut(19, 0),), (Cut(14, 0),)),
    Partition(CUT, True, (Cut(14, 0),), (Cut(19, 0),)),
    Partition(FREE, True, (), (Cut(14, 1), Cut(5, 2))),
    Partition(FREE, False, (Cut(14, 1), Cut(5, 2))),
)
"""Beside the tenant's instance one is made anew, and then as it was; a free GPU is cut, and made whole."""


@dataclass
class World:
    """The machine, its driver, and the ledger."""

    state: Path
    ledger: Scheduler = field(default_factory=Scheduler)
    driver: NVMLDriver = field(default_factory=lambda: NVMLDriver(None))

    def write(self, *more: str) -> None:
        self.state.write_text("\n".join([*LINES, *more]))

    def tell(self) -> Discovery:
        """Look, and let the ledger know; no tenant may lose what it has."""
        found = self.driver.discover()
        node = NodeInfo("a", ("vm",), found.gpus, 0, 0, driver=found.driver_version, problem=found.problem)
        self.ledger.handle(commands.NodeSeen(node), 0)
        self.ledger.schedule(0)
        validate(self.ledger.state)
        return found

    def begin(self) -> None:
        """Two GPUs with a tenant."""
        self.write()
        self.tell()
        asks = (Request(sharing="mig", mig_profile="3g.40gb"), Request(sharing="fraction", share=5000))
        for at, asked in enumerate(asks):
            job = commands.JobRequest(f"job{at}", "job", "lease", asked, owner="me")
            self.ledger.handle(commands.Submit(f"key{at}", "me", (job,)), 0)
            self.ledger.schedule(0)
            for change in partitions(self.ledger.state, "a"):
                self.driver.partition(change)
            self.tell()
        self.driver.partition(Partition(CUT, True, (), (Cut(19, 0),)))
        self.tell()
        self.held = {id: lease.places for id, lease in self.ledger.state.leases.items()}
        assert len(self.held) == 2, "both were granted"

    def fail(self, function: str, code: int) -> list[str]:
        """Let one call fail in all that the driver does, and see that it is told, and ends with it."""
        self.write(f"fail {function} {code}")
        wrong = self.live()
        self.write()
        after = self.tell()
        if after.problem or any(gpu.fault for gpu in after.gpus) or len(after.gpus) != 3:
            wrong.append(f"does not recover: {after}")
        for change in CHANGES:
            self.driver.partition(change)
        self.tell()
        return [f"{function} {code}: {each}" for each in wrong + self.lost()]

    def live(self) -> list[str]:
        wrong: list[str] = []
        found = self.tell()
        if {gpu.uuid for gpu in found.gpus} != {CUT, SHARED, FREE}:
            wrong.append(f"a GPU vanished: {found}")
        if found.driver_version is None and not found.problem:
            wrong.append("no driver, and no word why")
        self.driver.sample()
        self.driver.sample()  # what happens in an instance is told between two
        for change in CHANGES:
            with contextlib.suppress(PartitionRefused):
                self.driver.partition(change)
            self.tell()
        with contextlib.suppress(RayschedError):
            limits.hold("lease", {SHARED: 1000})
        limits.release("lease")
        fresh = NVMLDriver(None)
        first = fresh.discover()
        fresh.sample()
        self.write()
        fresh.close()
        if not first.gpus and not first.problem and first.driver_version is not None:
            wrong.append("nothing is seen, and no word why")
        return wrong + self.lost()

    def lost(self) -> list[str]:
        now = {id: lease.places for id, lease in self.ledger.state.leases.items() if lease.state == "bound"}
        return [] if now == self.held else [f"a lease is lost: {now}"]


def told_apart() -> list[int]:
    """The codes that the product names."""
    names = re.compile(r"NVML_ERROR_\w+")
    found = {name for path in PRODUCT.glob("*.py") for name in names.findall(path.read_text())}
    return sorted(getattr(pynvml, name) for name in found)


def tried(which: str) -> Iterator[list[int]]:
    """The codes for one call after the other."""
    named = told_apart()
    for other in cycle(code for code in CODES if code not in named):
        yield CODES if which == "all" else [*named, other]


def main() -> None:
    logging.disable()
    state, log = Path(os.environ["FAKE_NVML_STATE"]), Path(sys.argv[1])
    limits.ROOT = log.with_name("cgroup")  # a folder will do for what is tried here
    for group in (limits.ROOT, limits.ROOT / limits.NAME):
        group.mkdir()
        (group / "cgroup.controllers").touch()
    state.write_text("\n".join(LINES))
    os.environ["FAKE_NVML_CALLS"] = str(log)
    world = World(state)
    world.begin()
    world.live()
    del os.environ["FAKE_NVML_CALLS"]
    calls = sorted(set(sys.argv[3:]) or set(log.read_text().split()))
    wrong: list[str] = []
    codes: set[int] = set()
    for function, chosen in zip(calls, tried(sys.argv[2]), strict=False):
        codes.update(chosen)
        for code in chosen:
            try:
                new = world.fail(function, code)
            except Exception:
                new = [f"{function} {code}: {traceback.format_exc()}"]
            if new:
                wrong += new
                world.write()
                world.driver.close()
                world = World(state)
                world.begin()
    print(json.dumps({"calls": calls, "codes": len(codes), "wrong": wrong}))


if __name__ == "__main__":
    main()
