"""How long it takes until a command runs on a host, beside a bare `ssh host command` over a warm connection.

    python benchmarks/backends.py                     # one host with an sshd of its own, 40 of each
    python benchmarks/backends.py --system            # and through a whole raysched, from HTTP on
    python benchmarks/backends.py --hosts 100 --jobs 10   # and so many jobs on so many hosts at once

The hosts are network namespaces of this machine, so no network delays anything; needs root and sshd. Printed:
milliseconds, the median and the slowest of ten (90th percentile), and how many times as long as `ssh` takes
to come back. The command is the same everywhere: it writes a line, and that is when it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from running import System, wait_until  # noqa: E402
from ssh_hosts import HostWorld, world  # noqa: E402

from raysched.backends.ssh.connection import connect  # noqa: E402
from raysched.backends.ssh.hosts import Hosts  # noqa: E402
from raysched.backends.vm import VMBackend  # noqa: E402
from raysched.core.host import Host  # noqa: E402
from raysched.core.lease import Place  # noqa: E402
from raysched.testing.conformance import new_launch  # noqa: E402

PYTHON = "/usr/bin/python3"
SETTLE_S = 0.1
"""The time between two measurements, in which what one has left to do does not count for the next."""
ON_HOST = {"gpus": 1, "gpu_type": "T4"}
WORDS = {
    "ssh": "ssh host command, warm (ControlMaster)",
    "ssh runs": "   it runs on the host",
    "asyncssh": "the same, asyncssh",
    "there": "a run on a host",
    "here": "a run here",
    "asked": "a job over HTTP: accepted, and on the disk",
    "runs": "   it runs on the host",
    "told": "   running, and the client is told so",
}


class Line:
    """Sees when a command has written its line."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "line"
        os.mkfifo(self._path)
        self._reading = os.open(self._path, os.O_RDWR)
        self.command = f"echo > {self._path}"

    def wait(self) -> float:
        """When the line came."""
        os.read(self._reading, 1)
        return time.perf_counter()

    def close(self) -> None:
        """See no more."""
        os.close(self._reading)


def host_of(hosts: HostWorld, name: str) -> Host:
    """A host of the world as the inventory has it."""
    there = hosts.hosts[name]
    return Host(name, there.address, "user", python=PYTHON, folder=str(there.folder / "raysched"))


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


class Whole:
    """A raysched that reaches the host, and a client that follows what happens."""

    def __init__(self, hosts: HostWorld) -> None:
        self._system = System("1xL4")
        self._system.env["HOME"] = str(hosts.home)
        there = hosts.hosts["h0"]
        inventory = {"name": "h0", "address": there.address, "user": "user", "python": PYTHON}
        inventory |= {"folder": str(there.folder / "whole"), "simulate": "1xT4"}
        self._system.configure(json.dumps({"backends": {"vm": {"hosts": [inventory]}}})[1:-1])
        self._line = Line(self._system.folder)
        self._system.up()
        self._client = self._system.client()
        self._told: queue.Queue[tuple[str, float]] = queue.Queue()
        threading.Thread(target=self._follow, daemon=True).start()
        client, system = self._client, self._system
        wait_until(lambda: client.hosts()[0]["state"] == "ready", "the host is ready")
        system.ended(system.submit("first", "true", resources=ON_HOST))

    def _follow(self) -> None:
        for event in self._client.events():
            if event is not None and event["event"] == "started":
                self._told.put((event["job"], time.perf_counter()))

    def run(self) -> dict[str, float]:
        """Milliseconds from the submission until the command runs, and until the client is told so."""
        began = time.perf_counter()
        job = self._system.submit("timed", self._line.command, resources=ON_HOST)
        asked = time.perf_counter()
        runs = self._line.wait()
        while (event := self._told.get())[0] != job:
            pass
        told = event[1]
        self._system.ended(job)
        since = {"asked": asked, "runs": runs, "told": told}
        return {name: (at - began) * 1000 for name, at in since.items()}

    def close(self) -> None:
        """Take it down."""
        self._line.close()
        self._system.close()


async def one_by_one(
    hosts: HostWorld, folder: Path, times: int, whole: Whole | None
) -> dict[str, list[float]]:
    """Each way in turn, so that whatever else this machine does is in all of them."""
    host = host_of(hosts, "h0")
    inventory = Hosts()
    backend = VMBackend(folder / "here", os.environ, folder, inventory)
    await inventory.use((host,))
    await inventory.tried()
    connection = await connect(host)
    control = ["-o", f"ControlPath={folder}/control", "-i", str(hosts.key)]
    options = [*control, "-o", f"UserKnownHostsFile={hosts.home}/.ssh/known_hosts", f"user@{host.address}"]
    subprocess.run(["ssh", "-M", "-N", "-f", *options], check=True, stdin=subprocess.DEVNULL)

    line = Line(folder)

    async def ssh() -> None:
        runs = asyncio.create_task(asyncio.to_thread(line.wait))
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            "ssh", *options, line.command, stdin=subprocess.DEVNULL
        )
        assert await process.wait() == 0
        found["ssh runs"].append((await runs - began) * 1000)

    async def bare() -> None:
        await connection.run(line.command, check=True)
        line.wait()

    def start(node: str) -> Callable[[], Awaitable[None]]:
        async def begin() -> None:
            launch = new_launch("exec sleep 60", Place(node, (), 0, 0))
            await backend.start(launch)
            seen = [each for each in await backend.observe() if each.run == launch.run]
            assert seen[0].state == "running"
            started.append(launch)

        return begin

    started: list[object] = []
    ways = {"ssh": ssh, "asyncssh": bare, "there": start("h0"), "here": start("here")}
    found: dict[str, list[float]] = {name: [] for name in WORDS}
    for _ in range(times):
        for name, way in ways.items():
            found[name].append(await timed(way))
            await asyncio.sleep(SETTLE_S)
        for name, value in (await asyncio.to_thread(whole.run) if whole else {}).items():
            found[name].append(value)
        await asyncio.sleep(SETTLE_S)
    for seen in await backend.observe():
        await backend.stop(seen.run, 0)
    subprocess.run(["ssh", "-O", "exit", *options], check=True, capture_output=True)
    connection.close()
    await connection.wait_closed()
    await backend.close()
    line.close()
    return found


async def all_at_once(hosts: HostWorld, folder: Path, count: int, jobs: int) -> None:
    """So many jobs on each of so many hosts."""
    inventory = Hosts()
    backend = VMBackend(folder / "here2", os.environ, folder, inventory)
    began = time.perf_counter()
    await inventory.use(tuple(host_of(hosts, f"h{number}") for number in range(count)))
    await inventory.tried()
    there = len(inventory.connected())
    print(f"{there} of {count} hosts connected after {time.perf_counter() - began:.1f} s")
    places = [Place(f"h{number}", (), 0, 0) for number in range(count) for _ in range(jobs)]
    launches = [new_launch("true", place) for place in places]
    began = time.perf_counter()
    await asyncio.gather(*(backend.start(launch) for launch in launches))
    print(f"{len(launches)} jobs started after {time.perf_counter() - began:.1f} s")
    wanted = {launch.run for launch in launches}
    while True:
        ended = [seen for seen in await backend.observe() if seen.run in wanted and seen.state == "exited"]
        if len(ended) == len(wanted):
            break
        await backend.changed(1.0)
    assert all(seen.code == 0 for seen in ended)
    print(f"and all had ended after {time.perf_counter() - began:.1f} s")
    print(f"one look at all hosts: {await timed(backend.observe):.1f} ms")
    await backend.close()


def told(name: str, values: list[float], than: float) -> str:
    """A line of the table."""
    middle, slow = statistics.median(values), statistics.quantiles(values, n=10)[-1]
    return f"{name:42} {middle:8.1f} {slow:8.1f}   {middle / than:5.2f} x"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--system", action="store_true")
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=0)
    asked = parser.parse_args()
    with world() as hosts, tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = str(hosts.home)
        for number in range(asked.hosts):
            hosts.add(f"h{number}")
        whole = Whole(hosts) if asked.system else None
        try:
            found = asyncio.run(one_by_one(hosts, Path(folder), asked.times, whole))
        finally:
            if whole:
                whole.close()
        base = statistics.median(found["ssh"])
        print(f"{'until it runs, ms':42} {'median':>8} {'90 %':>8}")
        for name, text in WORDS.items():
            if found[name]:
                print(told(text, found[name], base))
        if asked.jobs:
            asyncio.run(all_at_once(hosts, Path(folder), asked.hosts, asked.jobs))


if __name__ == "__main__":
    main()
