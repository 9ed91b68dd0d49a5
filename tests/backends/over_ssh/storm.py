"""Hosts on which everything goes wrong at random moments: a ledger and the vm backend, without Ray, over real
sshds; and what has to be true afterwards.

    python tests/backends/over_ssh/storm.py --faults 500 --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ssh_hosts import HostWorld, SSHHost, world  # noqa: E402

from raysched.actors.clock import Clock  # noqa: E402
from raysched.actors.desk import Desk  # noqa: E402
from raysched.backends.reconciler import Reconciler  # noqa: E402
from raysched.backends.ssh import connection, remote  # noqa: E402
from raysched.backends.ssh.hosts import Hosts  # noqa: E402
from raysched.backends.vm import VMBackend  # noqa: E402
from raysched.core import gpu_views, watchdog  # noqa: E402
from raysched.core.commands import Cancel, Command, Inventory, JobRequest, Submit, Tick  # noqa: E402
from raysched.core.host import Host  # noqa: E402
from raysched.core.jobs import ENDED, Job  # noqa: E402
from raysched.core.measured import Guidance  # noqa: E402
from raysched.core.request import WHOLE, Request  # noqa: E402
from raysched.core.validate import validate  # noqa: E402
from raysched.store.book import Book  # noqa: E402
from raysched.store.journal import Journal  # noqa: E402
from raysched.tasks import stop  # noqa: E402

NAMES = ("a", "b", "c", "d", "e", "f")
AT_ONCE = 24
"""Jobs that are under way at a time."""
SETTLE_S = 240.0
"""How long everything may take to come to its end once nothing goes wrong any more."""
WORK = """\
echo "$RAYSCHED_RUN" >> "$MARKS/starts"
if [ "$CHILD" = yes ]; then setsid sh -c 'trap "" TERM; sleep 300' & fi
sleep "$LENGTH"
echo "$RAYSCHED_RUN $CODE" >> "$MARKS/ends"
exit "$CODE"
"""


class Ledger(Desk):
    """A desk that takes samples too."""

    async def host_sample(self, node: str, usage: gpu_views.Usage, told: Sequence[Command]) -> Guidance:
        """They are decided on, and nobody looks at them here."""
        await self.tell(told)
        return watchdog.guidance(self.book.state, node, ())


class System:
    """A ledger with the vm backend; each can die at any moment and is made anew from what is on disk."""

    def __init__(self, folder: Path, hosts: HostWorld) -> None:
        self.folder = folder
        self.marks = folder / "marks"
        self.marks.mkdir(parents=True)
        (folder / "packages").mkdir()
        self.inventory = tuple(
            Host(
                name=name,
                address=host.address,
                user="user",
                python="/usr/bin/python3",
                folder=str(host.folder / "raysched"),
                simulate="1xA100-80GB",
                cpus=64 * WHOLE,
            )
            for name, host in hosts.hosts.items()
        )
        self.made = 0
        self.jobs: list[str] = []
        self.cancelled: set[str] = set()
        self.versions = random.Random(1)

    async def open_ledger(self) -> None:
        """Fold the journal, and decide from now on."""
        url = f"sqlite:///{self.folder}/journal.sqlite"
        self.journal = await asyncio.to_thread(Journal, url)
        self.ledger = Ledger(Book(self.journal, self.versions.getrandbits(40)), Clock())
        self.serving = [asyncio.create_task(self.ledger.serve()), asyncio.create_task(self.tick(self.ledger))]
        await self.ledger.tell([Inventory(self.inventory)])

    async def tick(self, ledger: Ledger) -> None:
        """Let the ledger's time go by."""
        while True:
            await asyncio.sleep(0.3)
            await ledger.tell([Tick()])

    async def close_ledger(self) -> None:
        """Stop it between two batches, as a kill does: nothing is told to anybody."""
        await stop(*self.serving)
        self.journal.close()

    def open_backend(self) -> None:
        """Drive the hosts."""
        self.hosts = Hosts(self.ledger, "storm")
        folder = self.folder
        self.backend = VMBackend(folder / "here", {}, folder / "packages", self.hosts)
        self.driving = asyncio.create_task(Reconciler(self.backend, self.ledger).run())

    async def close_backend(self) -> None:
        """Stop it between any two of its steps; its connections break."""
        await stop(self.driving)
        await self.backend.close()

    def job(self, id: str) -> Job:
        return self.ledger.state.jobs[id]

    @property
    def open_jobs(self) -> list[str]:
        return [id for id in self.jobs if self.job(id).state not in ENDED]

    async def submit(self, dice: random.Random, work: str = WORK, share: int = 1000) -> None:
        """One more job."""
        id = f"job{len(self.jobs)}"
        env = {
            "MARKS": str(self.marks),
            "LENGTH": f"{dice.choice((0, 0.2, 1, 3)):g}",
            "CODE": str(dice.choice((0, 0, 0, 7))),
            "CHILD": dice.choice(("yes", "no")),
        }
        spec = {"name": id, "entrypoint": work, "env": env, "resources": {}}
        request = Request(share=share, sharing="fraction", cpus=WHOLE)
        asked = JobRequest(id, id, "command", request, spec, retries=dice.choice((0, 2)), grace=500)
        await self.ledger.tell([Submit(f"key-{id}", "storm", (asked,))])
        self.jobs.append(id)


class Storm:
    """Does faults, each at a moment that the dice say."""

    def __init__(self, system: System, hosts: HostWorld, dice: random.Random) -> None:
        self.system = system
        self.hosts = hosts
        self.dice = dice
        self.done: Counter[str] = Counter()
        self.hit: set[str] = set()
        self.busy: set[str] = set()
        self.healing: set[asyncio.Task[None]] = set()
        self.told: Callable[[str], None] | None = None
        self.faults: list[Callable[[], Awaitable[None]]] = [
            self.cut,
            self.flap,
            self.lose_packets,
            self.kill_sshd,
            self.kill_serving_end,
            self.kill_runner,
            self.power_loss,
            self.crash_backend,
            self.crash_ledger,
            self.cancel,
        ]

    async def blow(self, faults: int) -> None:
        """Do so many, with new jobs all the while."""
        while sum(self.done.values()) < faults:
            while len(self.system.open_jobs) < AT_ONCE:
                await self.system.submit(self.dice)
            await asyncio.sleep(self.dice.uniform(0, 1.2))
            await self.dice.choice(self.faults)()
            if self.told is not None:
                self.told(f"{sum(self.done.values())} faults, {len(self.system.jobs)} jobs")
        for task in list(self.healing):
            await task

    def pick(self) -> SSHHost | None:
        """A host with which nothing is wrong now."""
        well = [name for name in self.hosts.hosts if name not in self.busy]
        return self.hosts.hosts[self.dice.choice(well)] if well else None

    def later(self, host: SSHHost, fault: str, seconds: float, heal: Callable[[], None]) -> None:
        """Heal a host after a time."""
        self.done[fault] += 1
        self.busy.add(host.name)

        async def healed() -> None:
            await asyncio.sleep(seconds)
            await asyncio.to_thread(heal)
            self.busy.discard(host.name)

        task = asyncio.create_task(healed())
        self.healing.add(task)
        task.add_done_callback(self.healing.discard)

    async def cut(self) -> None:
        """A link is cut, and nobody is told."""
        if host := self.pick():
            host.cut()
            self.later(host, "cut", self.dice.uniform(0.05, 9), host.heal)

    async def flap(self) -> None:
        """A link comes and goes."""
        if host := self.pick():
            for _ in range(4):
                host.cut()
                await asyncio.sleep(self.dice.uniform(0, 0.1))
                host.heal()
                await asyncio.sleep(self.dice.uniform(0, 0.1))
            self.done["flap"] += 1

    async def lose_packets(self) -> None:
        """A link loses a third of its packets."""
        if host := self.pick():
            chain = "type filter hook input priority 0; policy accept; numgen random mod 100 < 33 drop;"
            nft(host, f"table ip t {{ chain c {{ {chain} }}; }}")
            self.later(host, "loss", self.dice.uniform(0.5, 6), lambda: nft(host, "delete table ip t"))

    async def kill_sshd(self) -> None:
        """Every sshd of a host is killed."""
        if host := self.pick():
            host.kill_sshd()
            self.later(host, "sshd", self.dice.uniform(0, 2), host.start_sshd)

    async def kill_serving_end(self) -> None:
        """The serving end is killed."""
        if host := self.pick():
            for pid in set(host.processes("raysched/code")) - set(host.processes("runner.py")):
                host.kill_one(pid)
            self.done["serving end"] += 1

    async def kill_runner(self) -> None:
        """One runner is killed: its result is lost, and has to be told as lost."""
        if host := self.pick():
            runners = host.processes("runner.py")
            if runners:
                self.note(host)
                host.kill_one(self.dice.choice(runners))
                self.note(host)
                self.done["runner"] += 1

    async def power_loss(self) -> None:
        """A host is off, and on again."""
        if host := self.pick():
            self.note(host)
            self.busy.add(host.name)
            await asyncio.to_thread(host.power_off)
            self.note(host)  # what started meanwhile
            self.later(host, "power", self.dice.uniform(0, 3), host.start)

    def note(self, host: SSHHost) -> None:
        """What runs on the host now may be lost."""
        for lease in self.system.ledger.state.leases.values():
            if any(place.node == host.name for place in lease.places):
                self.hit.add(lease.id)

    async def crash_backend(self) -> None:
        """The backend dies and is made anew."""
        await self.system.close_backend()
        self.system.open_backend()
        self.done["backend"] += 1

    async def crash_ledger(self) -> None:
        """The ledger dies, and the backend with it; both go on from what is on disk."""
        await self.system.close_backend()
        await self.system.close_ledger()
        await self.system.open_ledger()
        self.system.open_backend()
        self.done["ledger"] += 1

    async def cancel(self) -> None:
        """Somebody cancels a job."""
        if jobs := self.system.open_jobs:
            job = self.dice.choice(jobs)
            self.system.cancelled.add(job)
            await self.system.ledger.tell([Cancel(job, "somebody")])
            self.done["cancel"] += 1


def nft(host: SSHHost, rules: str) -> None:
    """Give a host's packet filter rules; a host that has lost its power has none any more."""
    subprocess.run(["ip", "netns", "exec", host.space, "nft", rules], check=False, capture_output=True)


async def settle(system: System, seconds: float = SETTLE_S) -> None:
    """Wait until all jobs have ended and nobody holds anything."""
    deadline = asyncio.get_running_loop().time() + seconds
    while system.open_jobs or system.ledger.state.leases:
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(
                f"not at its end: {[system.job(id) for id in system.open_jobs]}, "
                f"{list(system.ledger.state.leases.values())}, hosts: {system.ledger.state.hosts}"
            )
        await asyncio.sleep(0.2)


def verify(system: System, storm: Storm, hosts: HostWorld) -> Counter[str]:
    """What has to be true at the end; how the jobs ended."""
    validate(system.ledger.state)
    starts = read(system.marks / "starts")
    ends = dict(line.split() for line in read(system.marks / "ends"))
    twice = [run for run, times in Counter(starts).items() if times > 1]
    assert not twice, f"started twice: {twice}"
    outcomes: Counter[str] = Counter()
    for id in system.jobs:
        job = system.job(id)
        run, lease = f"{id}.{job.attempt}.0", f"{id}.{job.attempt}"
        outcomes[job.state] += 1
        if job.state == "succeeded":
            assert ends.get(run) == "0", f"{id} succeeded and did not"
        elif job.state == "failed":
            lost = job.code is None
            assert not lost or lease in storm.hit, f"the result of {run} is lost: {job.reason}"
            assert lost or ends.get(run) == str(job.code), f"{id} failed with {job.code}, not {ends.get(run)}"
        else:
            assert id in system.cancelled, f"{id} is {job.state}, and nobody cancelled it"
    left = [pid for pid in hosts.processes() if marked(pid)]
    assert not left, f"processes are left: {left}"
    return outcomes


def read(path: Path) -> list[str]:
    """The lines of a file that may not be there."""
    return path.read_text().splitlines() if path.exists() else []


def marked(pid: int) -> bool:
    """Whether a process belongs to a lease."""
    with suppress(OSError):
        return b"\0RAYSCHED_LEASE=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    return False


async def weather(hosts: HostWorld, folder: Path, seed: str, faults: int) -> str:
    """A storm of so many faults, and what is to be said of it."""
    system = System(folder, hosts)
    await system.open_ledger()
    system.open_backend()
    try:
        return await blown(system, hosts, seed, faults)
    finally:
        await system.close_backend()
        await system.close_ledger()


async def blown(system: System, hosts: HostWorld, seed: str, faults: int) -> str:
    """A storm over a system that is there."""
    while len(system.ledger.state.nodes) < len(NAMES):
        await asyncio.sleep(0.1)
    storm = Storm(system, hosts, random.Random(seed))
    if "VERBOSE" in os.environ:
        storm.told = lambda text: print(text, file=sys.stderr, flush=True)
    await storm.blow(faults)
    await settle(system)
    outcomes = verify(system, storm, hosts)
    kinds = ", ".join(f"{times} {kind}" for kind, times in sorted(storm.done.items()))
    ends = ", ".join(f"{times} {state}" for state, times in sorted(outcomes.items()))
    runs = len(read(system.marks / "starts"))
    return (
        f"{sum(storm.done.values())} faults ({kinds}) amid {len(system.jobs)} jobs ({ends}) and {runs} runs "
        f"on {len(NAMES)} hosts: none started twice, no result lost, no process left"
    )


def run(seed: str, faults: int) -> str:
    """The same, with hosts of its own and shorter patience."""
    connection.KEEPALIVE_S, connection.CONNECT_S = 1.0, 4.0
    remote.LAST_PAUSE_S = 2.0
    logging.disable(logging.CRITICAL)  # every fault is logged
    with world() as hosts, tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = str(hosts.home)
        os.environ.pop("SSH_AUTH_SOCK", None)
        for name in NAMES:
            hosts.add(name, alone=True)
        return asyncio.run(weather(hosts, Path(folder) / "system", seed, faults))


def main() -> None:
    """A storm by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", default=f"{random.SystemRandom().getrandbits(32)}")
    parser.add_argument("--faults", type=int, default=500)
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    print(run(asked.seed, asked.faults), flush=True)


if __name__ == "__main__":
    main()
