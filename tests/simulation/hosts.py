"""The processes of a simulated system: they run the production code, die, and are started again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from raysched.actors.clock import Clock
from raysched.actors.desk import Desk
from raysched.backends.reconciler import Reconciler
from raysched.core.commands import (
    Command,
    CutRefused,
    JobRequest,
    NodeGone,
    NodeSeen,
    OwnerLost,
    Submit,
    Tick,
    Usage,
)
from raysched.core.facts import Fact
from raysched.core.node import NodeInfo
from raysched.core.validate import validate
from raysched.core.wanted import wanted
from raysched.core.work import Change, Owned, Partition, Run
from raysched.errors import StorageError
from raysched.gpu.driver import PartitionRefused
from raysched.store.book import Book
from raysched.store.journal import Journal
from tests.simulation.chaos import Chaos, Killed, Lost
from tests.simulation.machines import Machine
from tests.simulation.made_up_ray import Client, HoldingClient, MadeUpRay

T = TypeVar("T")

EPOCH = 1_700_000_000_000
SNAPSHOT_EVERY = 150
AWAY_S = 0.5
"""About how long a process is away that was killed."""


class Process:
    """Something that runs until it is killed, and is started again after a while."""

    def __init__(self, chaos: Chaos, name: str, mishap: str) -> None:
        self.chaos = chaos
        self.name = name
        self.mishap = mishap
        self._tasks: list[asyncio.Task[Any]] = []
        self._killed = asyncio.Event()

    async def run(self) -> None:
        """Live and die for ever."""
        while True:
            self._killed.clear()
            try:
                self.begin()
            except (StorageError, Killed):
                self._killed.set()
            self.spawn(self._die_by_itself())
            await self._killed.wait()
            while self._tasks:  # what is called meanwhile, in what is no process any more, ends too
                tasks, self._tasks = self._tasks, []
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            self.end()
            self.chaos.note(self.name, "is dead")
            await asyncio.sleep(self.chaos.dice.expovariate(1 / AWAY_S))

    def begin(self) -> None:
        """Start what runs in the process, by `spawn`."""

    def end(self) -> None:
        """The process is gone: its memory and its locks are."""

    def spawn(self, step: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(step)
        self.chaos.watch(task)
        self._tasks.append(task)
        return task

    def die(self) -> None:
        self._killed.set()

    async def _die_by_itself(self) -> None:
        if await self.chaos.next(self.mishap):
            self.chaos.note("mishap:", self.mishap, self.name)
            self.die()


class WeakJournal(Journal):
    """The production journal, on a disk that fails and in a process that dies around each write."""

    def __init__(self, url: str, chaos: Chaos) -> None:
        super().__init__(url)
        self._chaos = chaos

    def append(self, facts: Sequence[Fact]) -> int:
        if self._chaos.happens("killed before the write"):
            raise Killed
        if self._chaos.happens("disk full"):
            raise StorageError("the disk is full")
        last = super().append(facts)
        if self._chaos.happens("killed after the write"):
            raise Killed
        if self._chaos.happens("disk fails after the write"):
            raise StorageError("the disk reports an error")
        return last


class LedgerProcess(Process):
    """The ledger: what `actors/ledger.py` does with Ray, done with the made-up one."""

    def __init__(self, chaos: Chaos, ray: MadeUpRay, folder: Path) -> None:
        super().__init__(chaos, "ledger", "ledger killed")
        self.ray = ray
        self.url = f"sqlite:///{folder / 'journal.sqlite'}"
        self.desk: Desk | None = None
        self.up = asyncio.Event()
        self.wall_off = 0
        self.watched: set[str] = set()
        self.owners: dict[str, asyncio.Event] = {}
        """The processes that hold leases, each with the event of its end."""

    def begin(self) -> None:
        self.journal = WeakJournal(self.url, self.chaos)
        book = CheckedBook(self.journal, self.chaos.dice.getrandbits(48), SNAPSHOT_EVERY, self.chaos)
        self.desk = Desk(book, Clock(self._wall, self._uptime, lambda: "boot"))
        self.watched = set()
        self.spawn(self._serve(self.desk))
        self.spawn(self._repeat(self._tick, 1.0))
        self.spawn(self._repeat(self._look_at_nodes, 2.0))
        for owner in book.state.owned:
            self._watch(owner)
        self.up.set()
        self.chaos.note("ledger is up at", book.seq)

    def end(self) -> None:
        self.desk = None
        self.up.clear()
        self.journal.close()

    async def _serve(self, desk: Desk) -> None:
        try:
            await desk.serve()
        except (StorageError, Killed):
            self.die()

    def _wall(self) -> int:
        return EPOCH + self.wall_off + self._uptime()

    def _uptime(self) -> int:
        return 1000 + int(asyncio.get_running_loop().time() * 1000)

    async def _repeat(self, step: Callable[[Desk], Awaitable[None]], every: float) -> None:
        assert self.desk is not None
        while True:
            try:
                await step(self.desk)
            except StorageError:
                pass
            except Killed:
                self.die()
            await asyncio.sleep(every)

    async def _tick(self, desk: Desk) -> None:
        desk.look_at_clock()
        await desk.tell([Tick()])

    async def _look_at_nodes(self, desk: Desk) -> None:
        alive = self.ray.alive()
        await self.chaos.lag()
        nodes = await desk.nodes()
        gone = [name for name, info in nodes.items() if info.ray_id not in alive]
        if gone:
            await desk.tell([NodeGone(name) for name in gone])

    def _watch(self, owner: str) -> None:
        if owner not in self.watched:
            self.watched.add(owner)
            self.spawn(self._until_gone(owner))

    async def _until_gone(self, owner: str) -> None:
        assert self.desk is not None
        await self.owners[owner].wait()
        while True:
            await self.chaos.lag()
            try:
                self.watched.discard(owner)
                await self.desk.tell([OwnerLost(owner)])
                return
            except StorageError:
                await asyncio.sleep(1)

    # ------------------------------------------------------------ what others may call

    async def submit(self, key: str, jobs: Callable[[], Sequence[JobRequest]]) -> list[str]:
        """The ids of accepted jobs; they get new ones whenever the call comes anew, as in the actor."""
        assert self.desk is not None
        if key not in self.desk.state.keys:
            asked = tuple(jobs())
            await self.desk.tell([Submit(key, "ana", asked)])
            for owner in {job.owner for job in asked if job.owner is not None}:
                self._watch(owner)
        return list(self.desk.state.keys[key])

    async def owned(self, owner: str, version: int, timeout: float) -> tuple[int, list[Owned]]:
        assert self.desk is not None
        self._watch(owner)
        return await self.desk.owned(owner, version, timeout)

    async def serve(self, method: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do one call, in this process: its end is the end of the call."""
        while not self.up.is_set() and not self.chaos.calm and self.chaos.dice.random() < 0.5:
            await self.up.wait()  # as Ray does: it asks again once the actor is back
        if self.desk is None:
            await asyncio.sleep(self.chaos.dice.uniform(0, 1))
            raise Lost("the ledger is not there")
        task = self.spawn(method())
        self._tasks = [each for each in self._tasks if not each.done() or each is task]
        await asyncio.wait([task])
        if task.cancelled():
            raise Lost("the ledger died")
        return task.result()


class CheckedBook(Book):
    """The production book; all invariants are asserted after each batch."""

    def __init__(self, journal: Journal, version: int, snapshot_every: int, chaos: Chaos) -> None:
        self._chaos = chaos
        super().__init__(journal, version, snapshot_every)
        self._check()

    def decide(self, batch: Sequence[Command], now: int) -> list[Exception | None]:
        answers = super().decide(batch, now)
        for answer in answers:
            if answer is not None:
                self._chaos.tolerate(answer)
        return answers

    def _handle(self, command: Command, now: int, answers: list[Exception | None]) -> list[Fact]:
        facts = super()._handle(command, now, answers)
        if facts or answers[-1] is not None:
            names = [type(fact).__name__ for fact in facts]
            self._chaos.note("decided", type(command).__name__, *names, answers[-1] or "")
        return facts

    def _record(self, facts: list[Fact]) -> None:
        super()._record(facts)
        self._check()

    def _check(self) -> None:
        try:
            validate(self.state)
        except AssertionError as error:
            self._chaos.breaks(error)


class Line:
    """The ledger as somebody sees it who calls it over the network (`reconciler.Ledger`). `die` ends the
    process of who calls."""

    def __init__(self, ledger: LedgerProcess, die: Callable[[], None] = lambda: None) -> None:
        self.ledger = ledger
        self.chaos = ledger.chaos
        self._die = die

    async def call(self, what: str, method: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Have `method` done by the ledger that is there then."""
        await self._point()
        answer = await self.chaos.call(what, lambda: self.ledger.serve(method))
        await self._point()
        return answer

    async def _point(self) -> None:
        if self.chaos.happens("killed amid a call"):
            self._die()

    @property
    def desk(self) -> Desk:
        assert self.ledger.desk is not None
        return self.ledger.desk

    async def wanted(self, backend: str, version: int, timeout: float) -> Change:
        async def asked() -> Change:
            desk = self.desk
            change = await desk.wanted(backend, version, timeout)
            all_of_it = desk.book.wanted(backend, -1)
            assert all_of_it is not None
            assert all_of_it.parts == wanted(desk.state, backend).parts
            return change

        return await self.call("wanted", asked)

    async def tell(self, told: Sequence[Command]) -> None:
        names = " ".join(type(command).__name__ for command in told)
        await self.call(f"tell {names}", lambda: self.desk.tell(told))

    async def nodes(self) -> dict[str, NodeInfo]:
        return await self.call("nodes", lambda: self.desk.nodes())  # noqa: PLW0108 - the desk that is there then

    async def known(self, backend: str) -> frozenset[Run]:
        return await self.call("known", lambda: self.desk.known(backend))


class BackendProcess(Process):
    """A backend actor: the production reconciler over a made-up engine."""

    def __init__(self, name: str, ray: MadeUpRay, ledger: LedgerProcess) -> None:
        super().__init__(ledger.chaos, f"backend {name}", "backend killed")
        self.backend = name
        self.ray = ray
        self.ledger = ledger

    def begin(self) -> None:
        kind = HoldingClient if self.backend == "ray" else Client
        client = kind(self.backend, self.ray, self.die)
        self.spawn(Reconciler(client, Line(self.ledger, self.die)).run())


class AgentProcess(Process):
    """A node agent, as far as it tells the ledger of its machine."""

    def __init__(self, machine: Machine, ledger: LedgerProcess) -> None:
        super().__init__(ledger.chaos, f"agent {machine.name}", "backend killed")
        self.machine = machine
        self.line = Line(ledger, self.die)

    def begin(self) -> None:
        self.spawn(self._repeat(self._describe, 10.0))
        self.spawn(self._repeat(self._sample, 2.0))
        self.version = -1
        self.describing = asyncio.Lock()
        self.spawn(self._repeat(self._partition, 0.0))

    async def _repeat(self, step: Callable[[], Awaitable[None]], every: float) -> None:
        while True:
            try:
                if self.machine.ray_id is not None:
                    await step()
                await asyncio.sleep(every if self.machine.ray_id is not None else 1.0)
            except (Lost, StorageError):
                await asyncio.sleep(2)

    async def _partition(self) -> None:
        """Wait until the ledger wants GPUs cut otherwise, and cut them, as `gpu/watch.py` does."""
        version, wanted = await self._partitions(self.version, 5.0)
        if wanted:
            async with self.machine.cutting:
                _, wanted = await self._partitions(-1, 0.0)
                for change in wanted:
                    await self._cut(change)
        self.version = version

    async def _partitions(self, version: int, timeout: float) -> tuple[int, tuple[Partition, ...]]:
        name = self.machine.name
        return await self.line.call("partitions", lambda: self.line.desk.partitions(name, version, timeout))

    async def _cut(self, change: Partition) -> None:
        try:
            for _ in self.machine.cut(change):
                await asyncio.sleep(self.chaos.dice.uniform(0, 0.5))
        except PartitionRefused as refused:
            await self._describe()
            told = CutRefused(self.machine.name, change.gpu, refused.cut, str(refused))
            await self.line.tell([told])
        else:
            await self._describe()

    async def _describe(self) -> None:
        async with self.describing:
            if self.machine.ray_id is not None:  # an agent ends with its Ray
                await self.line.tell([NodeSeen(self.machine.describe())])

    async def _sample(self) -> None:
        cards = self.machine.cards.items()
        shown = [Usage(self.machine.name, uuid, card.stranger) for uuid, card in cards if not card.hidden]
        await self.line.tell(shown)
