"""How fast the journal is: writing, folding, starting, and what its upkeep costs the ledger meanwhile.

    python benchmarks/store.py [--jobs 12500] [--repeats 3] [--url postgresql://...] [--json]

A job here is 8 facts, from its submission to the release of its lease; most are over, 5,000 live. The
baseline writes rows of the same bytes in transactions of the same size to the same disk with Python's sqlite3
alone. Figures are medians; a journal in a file lies in a temporary folder (TMPDIR). Where other work shares
the machine, the seconds of CPU tell more than those on the clock.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from raysched.core import decide
from raysched.core.commands import Gone, JobRequest, NodeSeen, Report, Submit, Tick
from raysched.core.facts import Fact
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import WHOLE, Request
from raysched.core.scheduler import Scheduler
from raysched.core.work import Run, Seen
from raysched.store import snapshots
from raysched.store.compact import compact
from raysched.store.journal import Journal
from raysched.store.reader import Reader, fold
from raysched.store.tables import fact_row
from raysched.store.upkeep import Keeper

LIVE = 5_000
"""Jobs that wait or run at the end."""
BATCH = 64
"""Facts of one transaction: what a batch of commands leads to under load."""
SPEC = {
    "name": "embed",
    "entrypoint": "python embed.py --epochs 3",
    "resources": {"gpus": 1, "gpu_fraction": 0.25, "cpus": 4, "memory": "16GB"},
}
QUARTER = Request(share=WHOLE // 4, sharing="fraction", cpus=4 * WHOLE, host_memory=16_000)


def story(jobs: int) -> Iterator[Fact]:
    """The facts of a cluster of 512 GPUs that `jobs` jobs went through; the core decides them."""
    core = Scheduler()
    for number in range(64):
        gpus = tuple(GPUInfo(f"GPU-{number}-{i}", i, "A100-80GB", 81_920) for i in range(8))
        info = NodeInfo(f"node-{number}", ("vm",), gpus, 256 * WHOLE, 1_048_576)
        yield from core.handle(NodeSeen(info), 1)
    now = 0
    for number in range(jobs):
        now += 10
        yield from _submit(core, f"job-{number}", now)
        yield from core.schedule(now)
        yield from _run(core, f"job-{number}", now)
    for number in range(LIVE):
        yield from _submit(core, f"live-{number}", now)
    yield from core.schedule(now)
    yield from core.handle(Tick(), now)


def _submit(core: Scheduler, id: str, now: int) -> list[Fact]:
    asked = JobRequest(id, "embed", "command", QUARTER, SPEC)
    return core.handle(Submit(f"key-{id}", "ana", (asked,)), now)


def _run(core: Scheduler, id: str, now: int) -> Iterator[Fact]:
    yield from core.handle(Report(Seen(Run(id, 1, 0), "running")), now)
    yield from core.handle(Report(Seen(Run(id, 1, 0), "exited", code=0)), now)
    yield from core.handle(Gone(f"{id}.1"), now)
    if len(core.state.ended) > decide.JOBS_KEPT + 100:
        yield from core.handle(Tick(), now)


def batches(facts: list[Fact]) -> Iterator[list[Fact]]:
    for at in range(0, len(facts), BATCH):
        yield facts[at : at + BATCH]


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    return timed_twice(work)["s"]


def timed_twice(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds that it takes by the clock, and of this process's CPU."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return {"s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}


def plain_sqlite(folder: Path, facts: list[Fact]) -> float:
    """The baseline: facts a second."""
    rows = [[tuple(fact_row(seq, fact)) for seq, fact in enumerate(batch, 1)] for batch in batches(facts)]
    with closing(sqlite3.connect(folder / "plain.sqlite", isolation_level=None)) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=full")
        connection.execute(
            "create table t (n integer primary key, seq int, kind text, body text, checksum int)"
        )

        def write() -> None:
            for batch in rows:
                connection.execute("begin immediate")
                connection.executemany("insert into t (seq, kind, body, checksum) values (?, ?, ?, ?)", batch)
                connection.execute("commit")

        return len(facts) / timed(write)


def written(url: str, facts: list[Fact]) -> float:
    """Facts a second through `Journal.append`."""
    journal = Journal(url)

    def write() -> None:
        for batch in batches(facts):
            journal.append(batch)

    took = timed(write)
    journal.close()
    return len(facts) / took


def started(url: str) -> dict[str, float]:
    """What a new process needs to open the journal and to fold it: seconds, and MiB of memory at its peak."""
    code = (
        "import json, resource, sys, time\n"
        "from raysched.store.journal import Journal\n"
        "from raysched.store.reader import fold\n"
        "began, cpu = time.perf_counter(), time.process_time()\n"
        "fold(Journal(sys.argv[1]))\n"
        "took, cpu = time.perf_counter() - began, time.process_time() - cpu\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "print(json.dumps({'s': took, 'cpu_s': cpu, 'mib': peak}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def beside(url: str, facts: list[Fact]) -> dict[str, float]:
    """The longest and the usual append, in ms: alone, and while another process does the upkeep."""
    journal = Journal(url)
    fold(journal)

    def appends(go_on: Callable[[], bool]) -> list[float]:
        took: list[float] = []
        for batch in batches(facts):
            took.append(1000 * timed(lambda batch=batch: journal.append(batch)))
            if not go_on():
                break
        return took

    left = iter(range(200))
    quiet = appends(lambda: next(left, None) is not None)
    process = subprocess.Popen([sys.executable, "-m", "raysched.store.upkeep"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(url.encode())
    busy = appends(lambda: process.poll() is None)
    process.wait()
    journal.close()
    return {
        "quiet_median_ms": statistics.median(quiet),
        "quiet_max_ms": max(quiet),
        "median_ms": statistics.median(busy),
        "max_ms": max(busy),
    }


def measure(url: Callable[[], str], folder: Path, jobs: int) -> dict[str, Any]:
    """All figures once, on a new journal."""
    facts = list(story(jobs))
    address = url()
    result: dict[str, Any] = {
        "facts": len(facts),
        "plain_sqlite_per_s": plain_sqlite(folder, facts),
        "append_per_s": written(address, facts),
    }
    with Reader(address) as reader:
        result["fold"] = timed_twice(lambda: fold(reader))
    with Keeper(address) as keeper:
        result["snapshot_s"] = timed(keeper.snapshot)
    result["start"] = started(address)
    with Reader(address) as reader:
        state, _ = fold(reader)
    result["in_ledger_snapshot_s"] = timed(lambda: snapshots.row_of(state, 1, 1))
    result["state"] = {"jobs": len(state.jobs), "ended": len(state.ended), "leases": len(state.leases)}
    result["beside_upkeep"] = beside(address, facts)
    answer = compact(address)
    result["bytes_per_fact"] = answer["bytes_before"] / len(facts)
    result["packed_bytes_per_fact"] = answer["bytes_after"] / len(facts)
    return result


def medians(runs: list[Any]) -> Any:
    """The median of each figure."""
    if isinstance(runs[0], dict):
        return {name: medians([run[name] for run in runs]) for name in runs[0]}
    return statistics.median(runs)


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
    start, quiet = result["start"], result["beside_upkeep"]
    state = result["state"]
    for name, value in (
        ("facts", f"{result['facts']:.0f}, of {result['bytes_per_fact']:.0f} bytes in the file"),
        ("written", f"{result['append_per_s']:.0f} a second, {BATCH} in a transaction"),
        ("  sqlite3 alone", f"{result['plain_sqlite_per_s']:.0f} a second"),
        ("folded", f"all in {result['fold']['s']:.2f} s, {result['fold']['cpu_s']:.2f} s of CPU"),
        (
            "state",
            f"{state['jobs']:.0f} jobs, {state['ended']:.0f} of them ended, {state['leases']:.0f} leases",
        ),
        (
            "start",
            f"{start['s']:.2f} s from a snapshot, {start['cpu_s']:.2f} s of CPU, {start['mib']:.0f} MiB",
        ),
        ("snapshot", f"{result['snapshot_s']:.2f} s beside the ledger"),
        ("  in the ledger", f"{result['in_ledger_snapshot_s']:.2f} s, for which it would stop"),
        ("append", f"{quiet['quiet_median_ms']:.2f} ms, at most {quiet['quiet_max_ms']:.1f} ms"),
        ("  during upkeep", f"{quiet['median_ms']:.2f} ms, at most {quiet['max_ms']:.1f} ms"),
        ("compacted", f"{result['packed_bytes_per_fact']:.0f} bytes a fact"),
    ):
        print(f"{name:16} {value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=12_500, help="jobs that are over; 8 facts each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--url", help="an empty PostgreSQL database; its tables are dropped after each repeat"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for number in range(args.repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            runs.append(
                measure(lambda f=folder: args.url or f"sqlite:///{f}/journal.sqlite", folder, args.jobs)
            )
        if args.url:
            _drop(args.url)
        print(f"repeat {number + 1} of {args.repeats} done", file=sys.stderr)
    result = {**medians(runs), "runs": runs}
    print(json.dumps(result, indent=1)) if args.json else show(result)


def _drop(url: str) -> None:
    """Make the database empty again."""
    from raysched.store.place import place_of
    from raysched.store.tables import tables

    engine = place_of(url).helper()
    tables.drop_all(engine)
    engine.dispose()


if __name__ == "__main__":
    main()
