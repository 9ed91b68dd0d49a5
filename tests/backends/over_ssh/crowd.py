"""Many jobs on many hosts at once: a ledger and the vm backend, without Ray, over as many real sshds.

    python tests/backends/over_ssh/crowd.py --hosts 100 --jobs 10 --seed 7

All jobs are submitted at once, fill all hosts, and go on once the last of them runs. Some fail and are tried
again, and some leave a child that ignores SIGTERM. At the end each run has started once, each result is told,
and no process is left.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ssh_hosts import HostWorld, world  # noqa: E402
from storm import WORK as SHORT  # noqa: E402
from storm import Storm, System, read, settle, verify  # noqa: E402

from raysched.backends.run_files import runs_in  # noqa: E402
from raysched.core.request import WHOLE  # noqa: E402

SETTLE_S = 600.0
"""How long each part of it may take."""
WORK = SHORT.replace('\nsleep "$LENGTH"', '\n: < "$MARKS/go"\nsleep "$LENGTH"')
"""Waits, once it has begun, until somebody has opened `go` for writing."""


async def until(count: Callable[[], int], wanted: int, what: str) -> float:
    """Return when there are so many; the seconds that it took."""
    began = time.monotonic()
    while (found := count()) < wanted:
        assert time.monotonic() < began + SETTLE_S, f"{found} of {wanted} {what}"
        await asyncio.sleep(0.1)
    return time.monotonic() - began


def running(system: System) -> int:
    """How many jobs run, as far as the ledger knows."""
    return sum(system.job(id).state == "running" for id in system.jobs)


async def worked(system: System, hosts: HostWorld, seed: str, jobs: int) -> str:
    """Do it, and what is to be said of it."""
    dice, count = random.Random(seed), len(hosts.hosts)
    used = await until(lambda: len(system.ledger.state.nodes), count, "hosts are used")
    os.mkfifo(system.marks / "go")
    began = time.monotonic()
    for _ in range(count * jobs):
        await system.submit(dice, WORK, WHOLE // jobs)
    await until(lambda: running(system), count * jobs, "jobs run")
    at_work = time.monotonic() - began
    folders = [host.folder / "raysched/storm/runs" / host.name for host in hosts.hosts.values()]
    runs = [len(runs_in(folder)) for folder in folders]
    assert runs == [jobs] * count, f"runs of each host: {runs}"
    go = os.open(system.marks / "go", os.O_RDWR)
    await settle(system, SETTLE_S)
    os.close(go)
    took = time.monotonic() - began
    ends = verify(system, Storm(system, hosts, dice), hosts)
    told = ", ".join(f"{times} {state}" for state, times in sorted(ends.items()))
    return (
        f"{count} hosts used after {used:.0f} s; {count * jobs} jobs submitted and running, {jobs} a host, "
        f"after {at_work:.0f} s; all ended ({told}) and released after {took:.0f} s in "
        f"{len(read(system.marks / 'starts'))} runs: none started twice, no result lost, no process left"
    )


async def crowd(hosts: HostWorld, folder: Path, seed: str, jobs: int) -> str:
    """The same, with a ledger and a backend of its own."""
    system = System(folder, hosts)
    await system.open_ledger()
    system.open_backend()
    try:
        return await worked(system, hosts, seed, jobs)
    finally:
        await system.close_backend()
        await system.close_ledger()


def main() -> None:
    """Do it once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", default=f"{random.SystemRandom().getrandbits(32)}")
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=10)
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    logging.disable(logging.WARNING)
    with world() as hosts, tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = str(hosts.home)
        os.environ.pop("SSH_AUTH_SOCK", None)
        for number in range(asked.hosts):
            hosts.add(f"h{number}")
        print(asyncio.run(crowd(hosts, Path(folder) / "system", asked.seed, asked.jobs)), flush=True)


if __name__ == "__main__":
    main()
