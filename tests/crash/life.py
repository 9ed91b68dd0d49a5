"""One life of a ledger with its backends and a client, in a process of its own that may die at any step.

Everything but the engines is the product's: journal, book, desk, reconcilers. The client tells the outside,
through a pipe, what it asked for before it asks, and what was acknowledged to it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raysched.actors.clock import Clock
from raysched.actors.desk import Desk
from raysched.backends.reconciler import Reconciler
from raysched.core.commands import (
    Cancel,
    Command,
    HostSeen,
    Inventory,
    JobRequest,
    NodeSeen,
    Release,
    Submit,
    Tick,
)
from raysched.core.evolve import evolve
from raysched.core.host import Host
from raysched.core.jobs import ENDED
from raysched.core.node import NodeInfo
from raysched.core.request import Request
from raysched.core.state import State
from raysched.core.validate import validate
from raysched.core.work import Change, Run
from raysched.errors import Refused, StorageError
from raysched.store.book import Book
from raysched.store.upkeep import Keeper
from tests.core.world import node
from tests.crash.engines_on_disk import DiskBackend, HoldingDiskBackend
from tests.crash.fate import Fate, MortalJournal, watch
from tests.crash.jumping import JumpingLoop
from tests.crash.outer_world import World, written

SNAPSHOT_EVERY = 25
"""Facts between two snapshots: few, so that crashes come amid them."""
T = TypeVar("T")
NODES = (node("a", 2), node("b", 1, ray_id=None, backends=("vm",)))
SIGHTS = (Inventory((Host("b", "b"),)), NodeSeen(NODES[0]), HostSeen(NODES[1]))
"""What is told of the nodes: one is Ray's, the other one is reached over SSH."""
MANAGED = frozenset(info.name for info in NODES if info.ray_id)
MEMORY = {gpu.uuid: gpu.memory for info in NODES for gpu in info.gpus}
OWNER = "program"
BEGAN = 1_000_000_000
LIFE_S = 60.0
"""Seconds, of the made-up clock, after which a life that did not die is over."""
HEALING_S = 3_600.0


@dataclass
class Memory:
    """What the client knows. Whoever watches the pipe keeps it over all lives.

    `asked` has each submission by its key, `accepted` the ids that were answered, `given_up` the jobs that
    somebody began to end, `bound` the leases that the client was told it has, with their places.
    """

    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    accepted: dict[str, list[str]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    given_up: set[str] = field(default_factory=set)
    bound: dict[str, str] = field(default_factory=dict)

    def note(self, what: str, id: str, more: Any) -> None:
        """Take note of one line of the pipe."""
        match what:
            case "asks":
                self.asked[id] = more
            case "accepted":
                assert self.accepted.setdefault(id, more) == more, f"{id} was answered twice, differently"
            case "refused":
                self.refused.add(id)
            case "gives up":
                self.given_up.add(id)
            case "bound":
                self.bound[id] = more


class Line:
    """The line between the backends and the ledger: calls and answers take their time, and some get lost."""

    def __init__(self, desk: Desk, chance: random.Random) -> None:
        self.desk = desk
        self.chance = chance

    async def wanted(self, backend: str, version: int, timeout: float) -> Change:
        return await self._call(lambda: self.desk.wanted(backend, version, timeout))

    async def tell(self, told: Sequence[Command]) -> None:
        await self._call(lambda: self.desk.tell(told))

    async def nodes(self) -> dict[str, NodeInfo]:
        return await self._call(self.desk.nodes)

    async def known(self, backend: str) -> frozenset[Run]:
        return await self._call(lambda: self.desk.known(backend))

    async def _call(self, ask: Callable[[], Awaitable[T]]) -> T:
        await asyncio.sleep(self.chance.uniform(0, 0.2))
        answered = await ask()
        await asyncio.sleep(self.chance.uniform(0, 0.2))
        if self.chance.random() < 0.02:
            raise ConnectionError("the answer got lost")
        return answered


class Life:
    """The `number`-th life on the journal `url`, `boot` the machine's start; dies at step `last`."""

    def __init__(
        self,
        number: int,
        url: str,
        world: World,
        memory: Memory,
        seed: str,
        last: int,
        pipe: int,
        boot: str,
    ) -> None:
        self.number = number
        self.memory = memory
        self.world = world
        self.pipe = pipe
        self.chance = random.Random(f"{seed}/{number}")
        self.fate = Fate(last)
        self.loop = JumpingLoop()
        self.url = url
        self.book = Book(MortalJournal(url, self.fate), number * 1_000_000, SNAPSHOT_EVERY)
        jump = self.chance.choice([0, 0, -3_600_000, 3_600_000])
        clock = Clock(lambda: BEGAN + self._uptime() + jump, self._uptime, lambda: boot)
        self.desk = Desk(self.book, clock)

    def live(self, *, heal: bool) -> None:
        """Check what the last life left, then go on: ask for more, or, to `heal`, bring all to its end."""
        check(self.book, self.world, self.memory)
        self.loop.run_until_complete(self._live(self._bring_to_an_end if heal else self._ask_for_things))
        check(self.book, self.world, self.memory)

    def _uptime(self) -> int:
        """Milliseconds; no life is as long as the time between the beginnings of two."""
        return self.number * 4_000_000 + round(self.loop.time() * 1000)

    async def _live(self, client: Callable[[], Awaitable[None]]) -> None:
        backends = [
            DiskBackend("vm", self.world, self.fate, self.chance),
            HoldingDiskBackend("ray", self.world, self.fate, self.chance),
        ]
        steps = [
            self.desk.serve(),
            self._tick(),
            self._watch_leases(),
            self._let_runs_end(),
            self._keep_journal_small(),
            *(Reconciler(backend, Line(self.desk, self.chance)).run() for backend in backends),
        ]
        tasks = [asyncio.ensure_future(step) for step in steps]
        tasks.append(asyncio.ensure_future(client()))
        done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for task in done:
            task.result()

    def say(self, what: str, id: str, more: Any = None) -> None:
        """One line to whoever watches; it is there even if the next step is the last."""
        self.memory.note(what, id, more)
        os.write(self.pipe, json.dumps([what, id, more]).encode() + b"\n")

    async def tell(self, command: Command) -> None:
        """Tell the ledger, which dies as its actor would when the journal is of no use any more."""
        self.fate.step("before a command")
        await self.desk.tell([command])
        self.fate.step("after an answer")

    # ------------------------------------------------------------ what goes on

    async def _tick(self) -> None:
        while True:
            self.desk.look_at_clock()
            for command in (*SIGHTS, Tick()):
                try:
                    await self.tell(command)
                except StorageError:
                    continue
            await asyncio.sleep(1)

    async def _let_runs_end(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.world.read()
            for id in sorted(self.world.running):
                if self.chance.random() < 0.3:
                    self.world.say("exit", id, self.chance.choice([0, 0, 0, 1, 137]))

    async def _keep_journal_small(self) -> None:
        """What the ledger starts in a process of its own: another snapshot, and old facts packed."""
        while True:
            await asyncio.sleep(self.chance.uniform(5, 30))
            with suppress(StorageError), Keeper(self.url) as keeper:
                watch(keeper._engine, self.fate)
                keeper.snapshot()
                keeper.pack()

    async def _watch_leases(self) -> None:
        """The client is told which of its leases are bound."""
        version = -1
        while True:
            version, owned = await self.desk.owned(OWNER, version, 10)
            for each in owned:
                if each.state == "bound" and each.lease is not None and each.lease not in self.memory.bound:
                    self.say("bound", each.lease, written(each.places))

    # ------------------------------------------------------------ the client

    async def _ask_for_things(self) -> None:
        end = self.loop.time() + LIFE_S
        await self._ask_again()
        while self.loop.time() < end:
            await asyncio.sleep(self.chance.uniform(0, 4))
            action = self.chance.choices([self._submit_new, self._repeat, self._give_up], [4, 1, 3])[0]
            await action()

    async def _ask_again(self) -> None:
        """What was never answered is asked for again, under the same key."""
        for key in list(self.memory.asked.keys() - self.memory.accepted.keys() - self.memory.refused):
            await self._submit(key)

    async def _submit_new(self) -> None:
        if len(self.desk.state.jobs) - len(self.desk.state.ended) > 20:
            return
        key = f"k{self.number}-{len(self.memory.asked)}"
        kind = self.chance.choice(["command", "command", "lease"])
        asked = {
            "kind": kind,
            "backend": "ray" if kind == "lease" else self.chance.choice(["vm", "ray"]),
            "gpus": self.chance.choice([1, 1, 2]),
            "share": self.chance.choice([None, 2500, 5000]),
            "array": self.chance.choice([None, None, 3]),
            "retries": self.chance.choice([0, 1]),
        }
        self.say("asks", key, asked)
        await self._submit(key)

    async def _submit(self, key: str) -> None:
        asked = self.memory.asked[key]
        share = asked["share"]
        request = Request(
            gpus=asked["gpus"],
            share=share,
            sharing="exclusive" if share is None else "fraction",
            backends=(asked["backend"],),
        )
        # A new id each time, as a gateway makes one: only the key says that it is the same submission.
        id = f"{asked['backend']}-{key}-{self.chance.getrandbits(32):08x}"
        job = JobRequest(
            id,
            key,
            asked["kind"],
            request,
            {"entrypoint": "true"},
            asked["array"],
            owner=OWNER if asked["kind"] == "lease" else None,
            retries=asked["retries"],
        )
        try:
            await self.tell(Submit(key, "ana", (job,)))
        except StorageError:
            return
        except Refused:
            self.say("refused", key)
            return
        self.say("accepted", key, list(self.desk.state.keys[key]))

    async def _repeat(self) -> None:
        """A client that did not hear the answer asks again."""
        if self.memory.accepted:
            await self._submit(self.chance.choice(sorted(self.memory.accepted)))

    async def _give_up(self) -> None:
        jobs = [job for job in self.desk.state.jobs.values() if job.state not in ENDED]
        if jobs:
            await self._end(self.chance.choice(jobs).id)

    async def _end(self, id: str) -> None:
        self.say("gives up", id)
        lease = self.desk.state.jobs[id].kind == "lease"
        try:
            await self.tell(Release(id) if lease else Cancel(id, "ana"))
        except StorageError:
            return

    # ------------------------------------------------------------ the last life

    async def _bring_to_an_end(self) -> None:
        """Everything that was accepted ends, and nothing is left anywhere."""
        await self._ask_again()
        end = self.loop.time() + HEALING_S
        while self._unfinished():
            assert self.loop.time() < end, f"it does not come to an end: {self._unfinished()}"
            for job in list(self.desk.state.jobs.values()):
                if job.kind == "lease" and job.state not in ENDED:
                    await self._end(job.id)
            await asyncio.sleep(1)
        for key, ids in self.memory.accepted.items():
            assert {self.desk.state.jobs[id].state for id in ids} <= set(ENDED), f"{key} did not end"

    def _unfinished(self) -> dict[str, Any]:
        state = self.desk.state
        self.world.read()
        left = {
            "jobs": [job.id for job in state.jobs.values() if job.state not in ENDED],
            "leases": list(state.leases),
            "runs": list(self.world.running),
            "holds": list(self.world.held),
        }
        return left if any(left.values()) else {}


# ---------------------------------------------------------------- what must be so after any crash


def check(book: Book, world: World, memory: Memory) -> None:
    """Raise AssertionError with the promise that was broken."""
    world.read()
    validate(book.state)
    _check_fold(book)
    _check_acknowledged(book.state, memory)
    _check_runs(book.state, world)
    _check_ends(book.state, world, memory)


def _check_fold(book: Book) -> None:
    """A start from a snapshot and one from the first fact come to the same state."""
    folded = State()
    for _, fact in book._journal.facts(0):
        evolve(folded, fact)
    assert folded == book.state, "the facts do not fold to the state"


def _check_acknowledged(state: State, memory: Memory) -> None:
    for key, ids in memory.accepted.items():
        assert list(state.keys.get(key, ())) == ids, f"submission {key} was acknowledged and is lost"
        assert all(id in state.jobs for id in ids), f"a job of {key} was acknowledged and is lost"
    names = [job.name for job in state.jobs.values()]
    for key, asked in memory.asked.items():
        count = names.count(key)
        assert count in (0, asked["array"] or 1), f"{key} was accepted twice"
    for lease, places in memory.bound.items():
        job = lease.rsplit(".", 1)[0]
        if job not in memory.given_up:
            assert lease in state.leases, f"lease {lease} was acknowledged and is lost"
            assert state.leases[lease].state == "bound"
            assert written(state.leases[lease].places) == places, f"lease {lease} has moved"


def _check_runs(state: State, world: World) -> None:
    """Whatever runs has a lease that was written down, on the GPUs where it runs."""
    for id, (lease, parts) in world.running.items():
        job, attempt, _ = id.rsplit(".", 2)
        assert job in state.jobs, f"{id} runs, and nobody knows its job"
        assert int(attempt) <= state.jobs[job].attempt, f"{id} runs, and its grant is lost"
        if lease in state.leases:
            place = next((p for p in state.leases[lease].places if p.node == parts[0][0]), None)
            assert place is not None, f"{id} runs where its lease was given back"
            granted = [(place.node, slice.gpu, slice.share, slice.memory) for slice in place.slices]
            assert granted == parts, f"{id} runs on other GPUs than it has"


def _check_ends(state: State, world: World, memory: Memory) -> None:
    """A job ends once, as its last attempt did."""
    for job in state.jobs.values():
        if job.kind != "command" or job.state not in ENDED:
            continue
        codes = [world.codes.get(f"{job.id}.{job.attempt}.{rank}") for rank in range(len(job.places))]
        if job.state == "succeeded":
            assert set(codes) == {0}, f"{job.id} succeeded, and its runs ended with {codes}"
        elif job.state == "failed":
            assert job.code is None or job.code in codes, f"{job.id} failed with {job.code}, unlike {codes}"
        else:
            assert job.id in memory.given_up, f"{job.id} was cancelled by nobody"
