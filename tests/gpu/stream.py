"""A random stream of leases of every kind on two A100-80GB and one A30 that a fake NVML has, from the real
ledger with its journal, cut by the real driver. After each step what the fake itself keeps is what the ledger
thinks, and each tenant under MPS has a daemon that lives. Run on the fake, with a folder, a seed and the
number of steps; prints what happened as JSON.

The fake's state is read from its file, not asked through NVML, and daemons are looked for in /proc: no code
of the product is between.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path

from fake_mps.install import install
from fake_nvml import fake_state
from running import wait_until

from raysched.core import commands
from raysched.core.jobs import ENDED
from raysched.core.lease import Lease, Slice
from raysched.core.mig import Cut
from raysched.core.node import NodeInfo
from raysched.core.request import Request
from raysched.core.validate import validate
from raysched.core.wanted import partitions
from raysched.core.work import Partition
from raysched.gpu.driver import PartitionRefused
from raysched.gpu.mps import Daemons
from raysched.gpu.nvml import NVMLDriver
from raysched.store.book import Book
from raysched.store.journal import Journal

NODE = "a"
CONTROL = "nvidia-cuda-mps-control"
GPUS = {"GPU-3f2a0001-aaaa-1": "A100-80GB", "GPU-3f2a0002-bbbb-2": "A100-80GB", "GPU-3f2a0003-cccc-3": "A30"}
PROFILES = ("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", "1g.6gb", "2g.12gb", "4g.24gb")
MOST_WAIT = 6
GI, GIS = struct.Struct("6i"), 16
HEAD = struct.Struct("3iI")
GPU_SIZE = HEAD.size + GIS * GI.size


class Machine:
    """The GPUs as the fake keeps them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.strangers: list[str] = []
        self.write()

    def write(self) -> None:
        """The state file, with the strangers that there are."""
        gpus = [line for at, gpu in enumerate(GPUS.items()) for line in fake_state.gpu(at, *gpu)]
        gpus += [f"pci {at} 00:0{at}.0 8.0" for at in range(len(GPUS))]
        self.path.write_text("\n".join([fake_state.DRIVER, "cuda 12080", *gpus, *self.strangers]))

    def layout(self, index: int) -> tuple[bool, dict[str, Cut]]:
        """The MIG mode of a GPU, and the places of its MIG devices by their UUIDs."""
        raw = Path(f"{self.path}.mig").read_bytes()[index * GPU_SIZE :]
        _, mode, _, _ = HEAD.unpack_from(raw)
        found: dict[str, Cut] = {}
        for slot in range(GIS):
            used, ci, profile, start, _, serial = GI.unpack_from(raw, HEAD.size + slot * GI.size)
            if used and ci:
                uuid = list(GPUS)[index]
                found[f"MIG-{uuid[4:20]}-{slot + 1}-{serial}"] = Cut(profile, start)
        return mode == 1, found


class Stream:
    """One node with its driver, the ledger, and people who come and go at random."""

    def __init__(self, folder: Path, seed: str) -> None:
        self.random = random.Random(seed)
        self.machine = Machine(Path(os.environ["FAKE_NVML_STATE"]))
        self.pipes = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))  # a socket's path has to be short
        self.driver = NVMLDriver(None, self.pipes)
        self.book = Book(Journal(f"sqlite:///{folder / 'journal.sqlite'}"), 0, snapshot_every=5000)
        self.now = 1_700_000_000_000
        self.told: Counter[str] = Counter()
        self.look()

    def close(self) -> None:
        """Leave no daemon behind."""
        Daemons(self.pipes).stop_all()
        shutil.rmtree(self.pipes)

    # ------------------------------------------------------------ the agent

    def tell(self, *told: commands.Command) -> None:
        for answer in self.book.decide(told, self.now):
            if answer is not None:
                self.told["refused"] += 1

    def look(self) -> None:
        found = self.driver.discover()
        node = NodeInfo(NODE, ("vm",), found.gpus, 0, 0, driver=found.driver_version)
        uses = self.driver.sample()
        told = [
            commands.Usage(
                NODE,
                uuid,
                sum(use.memory_mib or 0 for use in seen.processes),
                tuple(sorted({use.instance for use in seen.processes if use.instance})),
            )
            for uuid, seen in uses.items()
        ]
        self.tell(commands.NodeSeen(node), *told, commands.Tick())

    def settle(self) -> None:
        """What an agent does until the ledger wants nothing more of it."""
        self.look()
        for _ in range(20):
            wanted = partitions(self.book.state, NODE)
            if not wanted:
                return
            for change in wanted:
                self.cut(change)
        raise AssertionError(f"the ledger goes on to want {wanted}")

    def cut(self, change: Partition) -> None:
        self.told["cuts"] += 1
        try:
            self.driver.partition(change)
        except PartitionRefused as refused:
            self.told["cuts refused"] += 1
            self.look()
            self.tell(commands.CutRefused(NODE, change.gpu, refused.cut, str(refused)))
        else:
            self.look()

    # ------------------------------------------------------------ people

    def step(self, number: int) -> None:
        """One thing happens."""
        self.now += self.random.randrange(1, 60_000)
        kinds = (self.submit, self.release, self.stranger, self.by_hand, self.daemon_dies)
        (kind,) = self.random.choices(kinds, (50, 44, 3, 2, 1))
        if kind == self.submit and len(self.book.state.waiting) > MOST_WAIT:
            kind = self.release
        kind(number)
        self.settle()
        self.agree()

    def submit(self, number: int) -> None:
        asked = self.request()
        job = commands.JobRequest(f"job{number}", "job", "lease", asked, owner="people")
        self.tell(commands.Submit(f"key{number}", "people", (job,)))
        self.told[asked.sharing] += 1

    def request(self) -> Request:
        draw = self.random
        match draw.randrange(8):
            case 0:
                return Request(sharing="fraction", share=draw.choice((1000, 2500, 3333, 5000, 7000)))
            case 1:
                return Request(sharing="fraction", memory=draw.choice((3000, 9000, 20_000, 50_000)))
            case 2:
                return Request(sharing="time_slice", memory=draw.choice((None, 2000, 15_000)))
            case 3:
                return Request(gpus=draw.choice((1, 1, 2)), sharing="mig", mig_profile=draw.choice(PROFILES))
            case 4:
                return Request(sharing="mig", memory=draw.choice((4000, 9000, 18_000, 35_000)))
            case 5:
                return Request(sharing="mps", share=draw.choice((1000, 2500, 5000)))
            case 6:
                asked = {"or_mig": draw.random() < 0.5, "or_mps": True}
                share = draw.choice((1000, 2500, 4000))
                return Request(sharing="fraction", isolation="hard", share=share, **asked)
            case _:
                return Request(gpus=draw.choice((1, 1, 1, 2)))

    def release(self, _: int) -> None:
        """Somebody gives back what he has, or, where many wait, no longer waits."""
        jobs = [job for job in self.book.state.jobs.values() if job.state not in ENDED]
        have = [job.id for job in jobs if job.lease is not None]
        wait = [job.id for job in jobs if job.lease is None]
        if chosen := have if have and self.random.random() < 0.8 else wait:
            self.tell(commands.Release(self.random.choice(chosen)))

    def stranger(self, _: int) -> None:
        """Somebody without a lease comes to a GPU, or all such people go."""
        self.told["strangers"] += 1
        if self.machine.strangers:
            self.machine.strangers.clear()
        else:
            index = self.random.randrange(len(GPUS))
            on, there = self.machine.layout(index)
            where = "" if not on else self.random.choice(["", *(uuid.split("-")[-2] for uuid in there)])
            self.machine.strangers.append(f"process {index} 7 500 compute {where}")
        self.machine.write()

    def by_hand(self, _: int) -> None:
        """An administrator destroys an instance that nobody has, or switches the mode of a free GPU."""
        gpu = self.random.choice(list(self.book.state.nodes[NODE].gpus.values()))
        free = [each.cut for each in gpu.info.layout.instances if each.cut not in gpu.held_cuts()]
        mps = bool(gpu.info.layout.mps)
        change = Partition(gpu.info.uuid, gpu.info.layout.enabled, destroy=tuple(free[:1]), mps=mps)
        if not gpu.tenants and not gpu.used_by_strangers:
            change = Partition(gpu.info.uuid, self.random.random() < 0.5, destroy=tuple(free))
        self.told["by hand"] += 1
        try:
            self.driver.partition(change)
        except PartitionRefused:
            self.told["by hand refused"] += 1

    def daemon_dies(self, _: int) -> None:
        """Somebody kills an MPS daemon."""
        if alive := [uuid for uuid in GPUS if self.daemon(uuid)]:
            self.told["daemons killed"] += 1
            uuid = self.random.choice(alive)
            os.kill(self.daemon(uuid) or 0, signal.SIGKILL)
            wait_until(lambda: self.daemon(uuid) is None, "it is dead")

    def daemon(self, uuid: str) -> int | None:
        """The process of a GPU's daemon, if it lives."""
        try:
            pid = int((self.pipes / uuid / f"{CONTROL}.pid").read_text())
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return None
        return None if state in "ZX" else pid

    # ------------------------------------------------------------ the proof

    def agree(self) -> None:
        """What the fake keeps is what the ledger thinks, and every lease has what it was given."""
        state = self.book.state
        validate(state)
        for index, uuid in enumerate(GPUS):
            on, there = self.machine.layout(index)
            gpu = state.nodes[NODE].gpus[uuid]
            known = {each.uuid: each.cut for each in gpu.info.layout.instances}
            assert (gpu.info.layout.enabled, known) == (on, there), f"{uuid}: {gpu.info.layout} is {there}"
            runs = self.daemon(uuid) is not None
            assert runs == (gpu.sharing == "mps"), f"{uuid}: {gpu.sharing}, and a daemon runs: {runs}"
        for lease in state.leases.values():
            if lease.state == "bound":
                self.has(lease)

    def has(self, lease: Lease) -> None:
        for place in lease.places:
            for slice in place.slices:
                on, there = self.machine.layout(list(GPUS).index(slice.gpu))
                self.told["looks"] += 1
                assert _given(slice, on, there), f"{lease.id} has {slice}, and {slice.gpu} has {there}"
                pipe = str(self.pipes / slice.gpu) if lease.sharing == "mps" else ""
                assert slice.pipe == pipe, f"{lease.id} has {slice}"


def _given(slice: Slice, on: bool, there: dict[str, Cut]) -> bool:
    if slice.cut is None:
        return not on
    return on and there.get(slice.instance or "") == slice.cut


def run(folder: Path, seed: str, steps: int) -> dict[str, int]:
    """Raises AssertionError, with the step, where something does not agree."""
    (folder / "bin").mkdir(exist_ok=True)
    os.environ["PATH"] = f"{install(folder / 'bin')}{os.pathsep}{os.environ['PATH']}"
    stream = Stream(folder, seed)
    try:
        for number in range(steps):
            try:
                stream.step(number)
            except AssertionError as wrong:
                raise AssertionError(f"seed {seed}, step {number}: {wrong}") from wrong
    finally:
        stream.close()
    ended = Counter(job.state for job in stream.book.state.jobs.values())
    return {"steps": steps, **stream.told, **ended}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
