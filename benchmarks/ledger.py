"""What the ledger can do: durable grants a second through its actor, and its first and last decisions of a
long life, beside Ray's own placement groups in the same run.

    python benchmarks/ledger.py                       # 8 callers that ask for 32 leases at a time
    python benchmarks/ledger.py --gpus 256 --jobs 20000 --json

The callers are Ray actors on this machine; each asks for a batch of leases, has the answer once the grants
are on the disk, gives the batch back, and goes on. The leases are of nodes that Ray does not manage, so that
the ledger alone is measured, not Ray's placement groups. A round trip is one lease, asked for and seen
granted by an otherwise idle ledger, in turns with a bare call of an actor, which is the least that Ray takes,
and with a small write brought to the disk, which is the least that durable takes.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARE = 0.01
"""The part of a GPU that each lease asks for."""
PER_NODE = 8
PAGE = 4096


def nodes(gpus: int) -> list[Any]:
    """Nodes with 8 GPUs each, which Ray does not manage."""
    from raysched.core.node import GPUInfo, NodeInfo

    def info(at: int) -> NodeInfo:
        name = f"node-{at}"
        found = tuple(GPUInfo(f"GPU-{at}-{index}", index, "A100-80GB", 81920) for index in range(PER_NODE))
        return NodeInfo(name, ("ray",), found, cpus=10_000 * 10_000, memory=1 << 30)

    return [info(at) for at in range(-(-gpus // PER_NODE))]


class Caller:
    """A client process that asks for leases and gives them back."""

    def __init__(self, ledger: list[Any], name: str) -> None:
        self.ledger = ledger[0]
        self.name = name
        self.asked = 0

    def forever(self) -> None:
        """The ledger waits for the end of this to know that the caller is dead."""
        threading.Event().wait()

    def ask(self, count: int) -> list[Any]:
        """Ask for leases; the answer has them granted, and on the disk."""
        import ray

        from raysched.core.work import Ask

        self.asked += 1
        key = f"{self.name}-{self.asked}"
        ask = Ask(key, "ana", self.name, "bench", "default", {"gpu_fraction": SHARE}, count)
        return pickle.loads(ray.get(self.ledger.request_leases.remote(pickle.dumps(ask))))

    def give_back(self, leases: list[Any]) -> None:
        """Give leases back."""
        import ray

        from raysched.core.commands import Release

        ray.get(self.ledger.tell.remote([Release(lease.job) for lease in leases]))

    def work(self, count: int, seconds: float) -> int:
        """Ask and give back for a while; how many leases were granted."""
        granted, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            leases = self.ask(count)
            granted += sum(lease.state == "bound" for lease in leases)
            self.give_back(leases)
        return granted

    def round_trips(self, times: int, idle: Any, folder: str) -> dict[str, list[float]]:
        """Milliseconds until a single lease was seen granted, of a call of an actor that does nothing, and of
        a small write to the disk, in turns: what else the machine does hits all."""
        import ray

        took: dict[str, list[float]] = {"lease": [], "call": [], "write": []}

        def timed(name: str, step: Callable[[], Any]) -> Any:
            start = time.perf_counter()
            done = step()
            took[name].append(1000 * (time.perf_counter() - start))
            return done

        with open(f"{folder}/write", "wb", buffering=0) as file:
            for _ in range(times):
                (lease,) = timed("lease", lambda: self.ask(1))
                assert lease.state == "bound"
                self.give_back([lease])
                timed("call", lambda: ray.get(idle.nothing.remote()))
                timed("write", lambda: (file.write(bytes(PAGE)), os.fsync(file.fileno())))
        return took


class Idle:
    """An actor as the ledger is one, that does nothing."""

    async def nothing(self) -> None:
        """As soon as Ray can."""


def through_the_actor(gpus: int, callers: int, batch: int, seconds: float) -> dict[str, Any]:
    """Grants a second, round trips, and Ray's placement groups beside them."""
    import ray

    from raysched.actors.ledger import Ledger
    from raysched.actors.names import LEDGER, NAMESPACE
    from raysched.actors.settings import Settings
    from raysched.core.commands import NodeSeen

    folder = Path(tempfile.mkdtemp(prefix="rsb-", dir="/tmp"))
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_AUTH_MODE"] = "disabled"  # nobody else speaks to this Ray, and no token is left behind
    ray.init(
        num_cpus=max(4, callers), namespace=NAMESPACE, _temp_dir=str(folder / "ray"), log_to_driver=False
    )
    try:
        options = {"name": LEDGER, "num_cpus": 0, "max_concurrency": 1000}
        ledger = ray.remote(Ledger).options(**options).remote(Settings(str(folder), backends=()))
        ray.get(ledger.tell.remote([NodeSeen(info) for info in nodes(gpus)]))
        names = [f"caller-{number}" for number in range(callers)]
        make = ray.remote(Caller)
        crew = [
            make.options(name=name, num_cpus=0.1, max_concurrency=2).remote([ledger], name) for name in names
        ]
        ray.get([each.work.remote(batch, 1.0) for each in crew])
        start = time.perf_counter()
        granted = sum(ray.get([each.work.remote(batch, seconds) for each in crew]))
        took = time.perf_counter() - start
        idle = ray.remote(Idle).options(num_cpus=0, max_concurrency=1000).remote()
        trips = ray.get(crew[0].round_trips.remote(300, idle, str(folder)))
        leases = sorted(trips["lease"])
        return {
            "grants_per_s": granted / took,
            "round_trip_p50_ms": statistics.median(leases),
            "round_trip_p99_ms": leases[int(len(leases) * 0.99)],
            "bare_call_p50_ms": statistics.median(trips["call"]),
            "write_p50_ms": statistics.median(trips["write"]),
            "placement_groups_per_s": placement_groups(seconds),
        }
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def placement_groups(seconds: float, running: int = 50) -> float:
    """How many placement groups with one bundle Ray itself makes a second, 50 in flight, each removed."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    def make() -> Any:
        return placement_group([{"CPU": 0.001}])

    def made(count: int) -> None:
        groups = [make() for _ in range(count)]
        ray.get([group.ready() for group in groups])
        for group in groups:
            remove_placement_group(group)

    made(running)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        made(running)
        count += running
    return count / (time.perf_counter() - start)


def long_life(gpus: int, jobs: int) -> dict[str, Any]:
    """Decisions of a core through which many jobs have gone: its first and its last thousand, and the memory
    of the process after a tenth of them and at the end."""
    from raysched.core.commands import JobRequest, NodeSeen, Release, Submit, Tick
    from raysched.core.request import Request
    from raysched.core.scheduler import Scheduler

    core = Scheduler()
    for info in nodes(gpus):
        core.handle(NodeSeen(info), 0)
    request = Request(share=int(SHARE * 10_000), sharing="fraction", backends=("ray",))
    live: list[str] = []
    most = gpus * int(1 / SHARE) // 2

    def step(number: int) -> None:
        if len(live) >= most:
            core.handle(Release(live.pop(0)), number)
        id = f"j{number}"
        core.handle(Submit(id, "ana", (JobRequest(id, "bench", "lease", request),)), number)
        core.schedule(number)
        core.handle(Release(id), number) if number % 2 else live.append(id)

    took: list[float] = []
    memory: list[int] = []
    for number in range(jobs):
        start = time.perf_counter()
        step(number)
        took.append(1000 * (time.perf_counter() - start))
        if number % 100 == 0:
            core.handle(Tick(), number)  # as the actor does once a second: what ended long ago is forgotten
        if number + 1 in (jobs // 10, jobs):
            memory.append(resident_mib())
    window = min(1000, jobs // 10)
    return {
        "jobs": jobs,
        "first_ms": statistics.median(took[window : 2 * window]),
        "last_ms": statistics.median(took[-window:]),
        "memory_tenth_mib": memory[0],
        "memory_end_mib": memory[1],
    }


def resident_mib() -> int:
    """The memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


def table(found: dict[str, Any]) -> str:
    """The figures as people read them."""
    actor, life = found["actor"], found["life"]
    rows = [
        ("durable grants through the actor", f"{actor['grants_per_s']:,.0f} a second"),
        ("one lease, asked for and seen granted", f"{actor['round_trip_p50_ms']:.2f} ms (median)"),
        ("", f"{actor['round_trip_p99_ms']:.2f} ms (99 %)"),
        (
            "a call of an actor that does nothing, in turns with it",
            f"{actor['bare_call_p50_ms']:.2f} ms (median)",
        ),
        ("4 KiB brought to the disk, in turns with it", f"{actor['write_p50_ms']:.2f} ms (median)"),
        ("Ray's placement groups, made and removed", f"{actor['placement_groups_per_s']:,.0f} a second"),
        (f"a job's life in the core, first of {life['jobs']:,}", f"{life['first_ms']:.3f} ms (median)"),
        ("the same, the last ones", f"{life['last_ms']:.3f} ms (median)"),
        (
            "memory of the process after a tenth, at the end",
            f"{life['memory_tenth_mib']}, {life['memory_end_mib']} MiB",
        ),
    ]
    wide = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{wide}}  {value}" for name, value in rows)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add: Callable[..., Any] = parser.add_argument
    add("--gpus", type=int, default=64, help="GPUs that the ledger knows")
    add("--callers", type=int, default=8)
    add("--batch", type=int, default=32, help="leases that a caller asks for at once")
    add("--seconds", type=float, default=5.0, help="how long each rate is measured")
    add("--jobs", type=int, default=100_000, help="jobs that go through the core")
    add("--json", action="store_true", help="the figures for scripts")
    args = parser.parse_args()
    found = {
        "actor": through_the_actor(args.gpus, args.callers, args.batch, args.seconds),
        "life": long_life(args.gpus, args.jobs),
    }
    print(json.dumps(found) if args.json else table(found))


if __name__ == "__main__":
    sys.exit(main())
