"""How many MIG requests find a place: the ledger's own placement, cutting and all, beside first fit.

    python benchmarks/mig.py                  # 100 A100-80GB, four mixes of profiles, three seeds each
    python benchmarks/mig.py --seeds 10 --requests 20000

Requests come at random (Poisson) and stay for a random time (exponential), so many that on average they ask
for all compute slices there are. Nothing waits: what finds no place is rejected. The first fifth of each run
is not counted. Printed: what part of the requests, of their compute slices, and of those for the whole GPU
was rejected, in percent.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from raysched.core import commands
from raysched.core.mig import Cut, Instance, Layout, Profile
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import Request
from raysched.core.scheduler import Scheduler
from raysched.core.wanted import partitions
from raysched.gpu.geometries import geometry_of

MEMORY = 81_920
GEOMETRY = geometry_of("A100-80GB", MEMORY)
assert GEOMETRY is not None
NAMES = ("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
PROFILES = {profile.name: profile for profile in GEOMETRY.profiles if profile.name in NAMES}
MIXES = {
    "uniform": (1, 1, 1, 1, 1, 1),
    "mostly small": (6, 3, 3, 2, 1, 1),
    "mostly big": (1, 1, 2, 3, 3, 6),
    "small and big": (5, 1, 1, 1, 1, 5),
}


class Placer(Protocol):
    """Gives instances away and takes them back."""

    def place(self, id: str, profile: Profile) -> bool:
        """Whether there was a place."""
        ...

    def release(self, id: str) -> None:
        """Its place is free again."""
        ...


class FirstFit:
    """The lowest place on the first GPU that has one."""

    def __init__(self, gpus: int) -> None:
        self.taken = [0] * gpus
        self.places: dict[str, tuple[int, int]] = {}

    def place(self, id: str, profile: Profile) -> bool:
        """Whether there was a place."""
        for gpu, taken in enumerate(self.taken):
            for start in profile.starts:
                cells = (1 << profile.size) - 1 << start
                if not taken & cells:
                    self.taken[gpu] |= cells
                    self.places[id] = gpu, cells
                    return True
        return False

    def release(self, id: str) -> None:
        """Its place is free again."""
        gpu, cells = self.places.pop(id)
        self.taken[gpu] &= ~cells


class Ledger:
    """The core of the ledger, with nodes whose agents cut at once what they are asked to."""

    def __init__(self, gpus: int) -> None:
        self.core = Scheduler()
        self.nodes = {
            f"node-{at:03}": NodeInfo(
                name=f"node-{at:03}",
                backends=("vm",),
                gpus=(GPUInfo(f"GPU-{at:03}", 0, "A100-80GB", MEMORY, mig=GEOMETRY),),
                cpus=0,
                memory=0,
            )
            for at in range(gpus)
        }
        for info in self.nodes.values():
            self.core.handle(commands.NodeSeen(info), 0)

    def place(self, id: str, profile: Profile) -> bool:
        """Whether there was a place."""
        request = Request(mig_profile=profile.name, sharing="mig")
        asked = commands.JobRequest(id, id, "lease", request, owner="benchmark")
        self.core.handle(commands.Submit(id, "benchmark", (asked,)), 0)
        self.core.schedule(0)
        job = self.core.state.jobs[id]
        if job.lease is None:
            self.core.handle(commands.Cancel(id, "benchmark"), 0)
            return False
        self._cut(job.places[0].node)
        return True

    def release(self, id: str) -> None:
        """Its place is free again."""
        self.core.handle(commands.Release(id), 0)
        self.core.handle(commands.Tick(), 0)

    def _cut(self, name: str) -> None:
        for change in partitions(self.core.state, name):
            (gpu,) = self.nodes[name].gpus
            left = [there for there in gpu.layout.instances if there.cut not in change.destroy]
            left += [Instance(f"MIG-{name}-{cut.profile}-{cut.start}", cut) for cut in change.create]
            layout = Layout(change.mig, tuple(sorted(left, key=_start)))
            self.nodes[name] = replace(self.nodes[name], gpus=(replace(gpu, layout=layout),))
            self.core.handle(commands.NodeSeen(self.nodes[name]), 0)


def _start(instance: Instance) -> int:
    cut: Cut = instance.cut
    return cut.start


def arrivals(mix: tuple[int, ...], gpus: int, count: int, seed: int) -> Iterator[tuple[float, str, float]]:
    """When each request comes, its profile, and how long it stays (1 on average)."""
    chance = random.Random(seed)
    slices = sum(weight * PROFILES[name].slices for weight, name in zip(mix, NAMES, strict=True)) / sum(mix)
    now = 0.0
    for _ in range(count):
        now += chance.expovariate(gpus * 7 / slices)
        yield now, chance.choices(NAMES, mix)[0], chance.expovariate(1)


def rejected(placer: Placer, mix: tuple[int, ...], gpus: int, count: int, seed: int) -> tuple[float, ...]:
    """Percent of the requests, of their slices, and of the requests for a whole GPU that found no place."""
    leaving: list[tuple[float, str]] = []
    asked, refused = [0, 0, 0], [0, 0, 0]
    for number, (now, name, stay) in enumerate(arrivals(mix, gpus, count, seed)):
        while leaving and leaving[0][0] < now:
            placer.release(heapq.heappop(leaving)[1])
        counts = (1, PROFILES[name].slices, int(name == NAMES[-1]))
        placed = placer.place(f"r{number}", PROFILES[name])
        if placed:
            heapq.heappush(leaving, (now + stay, f"r{number}"))
        if number >= count // 5:
            asked = [total + one for total, one in zip(asked, counts, strict=True)]
            refused = [total + one * (not placed) for total, one in zip(refused, counts, strict=True)]
    return tuple(100 * no / max(1, all) for no, all in zip(refused, asked, strict=True))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gpus", type=int, default=100)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(f"{'rejected, %':15}  {'placement':10}  requests  slices  whole GPUs")
    for mix, weights in MIXES.items():
        for kind in (FirstFit, Ledger):
            runs = [
                rejected(kind(options.gpus), weights, options.gpus, options.requests, seed)
                for seed in range(options.seeds)
            ]
            means = [sum(run[column] for run in runs) / len(runs) for column in range(3)]
            print(f"{mix:15}  {kind.__name__:10}  {means[0]:8.1f}  {means[1]:6.1f}  {means[2]:10.1f}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
