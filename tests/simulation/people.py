"""Those who use the simulated system: people who submit and cancel, programs that hold leases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from raysched.core.commands import Cancel, Cordon, JobRequest, Release
from raysched.core.jobs import Kind
from raysched.core.request import WHOLE, Request
from raysched.core.work import Owned
from raysched.errors import NotFound, Refused, StorageError
from tests.simulation.chaos import Chaos, Lost
from tests.simulation.hosts import LedgerProcess, Line
from tests.simulation.machines import Machine, Process
from tests.simulation.made_up_ray import MadeUpRay

POLL_S = 5.0
OTHERS = ("mig", "mig", "mig", "turns", "hard", "mps")
MANY = 8
"""Nobody submits while more jobs wait than this."""


@dataclass(slots=True)
class Promised:
    """What the system acknowledged: the jobs of one submission, and what was asked of them since."""

    jobs: list[str]
    asked: JobRequest
    cancelled: bool = False


@dataclass(slots=True)
class People:
    """Everyone who uses the system; `promised` is what they were told, `refused` what they were refused, by
    the key that they asked under."""

    chaos: Chaos
    ray: MadeUpRay
    ledger: LedgerProcess
    promised: dict[str, Promised] = field(default_factory=dict)
    refused: dict[str, JobRequest] = field(default_factory=dict)
    busy: int = 0

    async def submit_for_ever(self) -> None:
        """Submit jobs until the chaos ends."""
        while not self.chaos.calm:
            await asyncio.sleep(self.chaos.dice.expovariate(1 / 1.5))
            if self._many_wait():
                continue
            asyncio.get_running_loop().create_task(self._finishing(self._one_submission()))

    def _many_wait(self) -> bool:
        """Whether the queue is long enough: from here on it only takes time to look at it."""
        desk = self.ledger.desk
        return desk is not None and len(desk.state.waiting) > MANY

    async def programs_for_ever(self) -> None:
        """Start programs that hold leases, until the chaos ends."""
        while not self.chaos.calm:
            await asyncio.sleep(self.chaos.dice.expovariate(1 / 30))
            program = Program(self)
            asyncio.get_running_loop().create_task(self._finishing(program.run()))

    async def _finishing(self, step: Any) -> None:
        self.busy += 1
        try:
            await step
        except Exception as error:
            self.chaos.tolerate(error)
        finally:
            self.busy -= 1

    async def _one_submission(self) -> None:
        dice = self.chaos.dice
        asked: dict[str, Any] = {
            "retries": dice.choice((0, 0, 1, 3)),
            "priority": dice.choice((0, 0, 0, 5)),
            "array": dice.choice((None, None, None, 3)),
            "max_runtime": dice.choice((None, None, 20_000)),
            "grace": dice.choice((500, 10_000)),
        }
        promised = await self.ask("command", a_request(self.chaos), **asked)
        if promised is not None and self.chaos.happens("user cancels"):
            await asyncio.sleep(dice.expovariate(1 / 15))
            await self.cancel(promised)

    async def ask(self, kind: Kind, request: Request, **fields: Any) -> Promised | None:
        """Submit until there is an answer. None: it was refused."""
        key = self.chaos.id()
        spec = {"entrypoint": "true"} if kind == "command" else {}

        def jobs() -> list[JobRequest]:
            return [JobRequest(self.chaos.id(), "job", kind, request, spec, **fields)]

        line = Line(self.ledger)
        asked = JobRequest("", "job", kind, request, spec, **fields)
        try:
            ids = await again(self.chaos, lambda: line.call("submit", lambda: self.ledger.submit(key, jobs)))
        except Refused:
            self.chaos.note("refused", key)
            self.refused[key] = asked
            return None
        self.chaos.promise(len(ids) == (fields.get("array") or 1), f"{ids} for {asked}")
        self.chaos.note("promised", *ids)
        promised = self.promised[key] = Promised(ids, asked)
        return promised

    async def drain(self, node: str, *, on: bool) -> None:
        """Let nothing new start on a node, or let it again."""
        line = Line(self.ledger)
        with suppress(NotFound):  # its agent has not told of it yet
            await again(self.chaos, lambda: line.tell([Cordon(node, on)]))

    async def cancel(self, promised: Promised) -> None:
        """Cancel one job of a submission, or all."""
        promised.cancelled = True
        line = Line(self.ledger)
        for job in promised.jobs:
            try:
                await again(self.chaos, lambda job=job: line.tell([Cancel(job, "ana")]))
            except NotFound:  # forgotten by now
                continue


async def again(chaos: Chaos, call: Callable[[], Any]) -> Any:
    """Ask until there is an answer."""
    while True:
        try:
            return await call()
        except (Lost, StorageError):
            await asyncio.sleep(chaos.dice.uniform(0.1, 2))


class Program:
    """A program that asks for leases, works in them and gives them back, or dies."""

    def __init__(self, people: People) -> None:
        self.people = people
        self.chaos = people.chaos
        self.ray = people.ray
        self.owner = f"owner-{self.chaos.id()}"
        self.dead = people.ledger.owners[self.owner] = asyncio.Event()
        self.at_work: dict[str, list[tuple[Machine, Process]]] = {}
        self.line = Line(people.ledger)
        self.given_back: set[str] = set()

    async def run(self) -> None:
        """Its whole life."""
        dice = self.chaos.dice
        request = replace(a_request(self.chaos), backends=("ray",))
        count = dice.choice((None, 2, 4))
        promised = await self.people.ask("lease", request, owner=self.owner, array=count)
        if promised is not None:
            promised.cancelled = True  # it may end in any way: the program decides when
            end = asyncio.get_running_loop().time() + dice.expovariate(1 / 60)
            dies = self.chaos.happens("program dies")
            await self._live(set(promised.jobs), end, dies)
        self.chaos.note("program is gone", self.owner)
        for lease in list(self.at_work):
            self._leave(lease)
        self.dead.set()

    async def _live(self, jobs: set[str], end: float, dies: bool) -> None:
        version = -1
        loop = asyncio.get_running_loop()
        while True:
            try:
                version, owned = await self.line.call(
                    "owned",
                    lambda version=version: self.people.ledger.owned(self.owner, version, POLL_S),
                )
            except (Lost, StorageError):
                await asyncio.sleep(self.chaos.dice.uniform(0.1, 2))
                owned = []
            for each in owned:
                self._follow(each)
            if owned and all(each.state == "ended" for each in owned):
                return
            if loop.time() >= end or self.chaos.calm:
                if dies:
                    return
                await self._give_back(jobs)
                end, version = loop.time() + 5, -1

    def _follow(self, each: Owned) -> None:
        """Begin to work where a lease is there, stop where it is gone."""
        if each.state == "bound" and each.lease is not None:
            if each.lease not in self.at_work and each.job not in self.given_back:
                try:
                    self.at_work[each.lease] = self.ray.enter(each, self.owner)
                except Lost as lost:
                    self.chaos.note("can't work yet:", lost)
        elif each.lease is None:
            for lease in [lease for lease in self.at_work if lease.rpartition(".")[0] == each.job]:
                self._leave(lease)

    def _leave(self, lease: str) -> None:
        for machine, process in self.at_work.pop(lease):
            machine.finish(process)

    async def _give_back(self, jobs: set[str]) -> None:
        for lease in list(self.at_work):
            self._leave(lease)
        for job in sorted(jobs):
            self.given_back.add(job)
            try:
                await again(self.chaos, lambda job=job: self.line.tell([Release(job)]))
            except NotFound:
                continue


def a_request(chaos: Chaos) -> Request:
    """Any request that somebody might make."""
    dice = chaos.dice
    backends = dice.choice((("vm",), ("ray",), ("ray",), ("ray", "vm")))
    kind = dice.choice(("fraction", "fraction", "memory", "both", "whole", "whole", "gang", "none", *OTHERS))
    cpus = dice.choice((0, 0, WHOLE, 4 * WHOLE))
    share = dice.choice((WHOLE // 10, WHOLE // 4, WHOLE // 2, 6000, WHOLE))
    memory = dice.choice((1000, 10_000, 30_000, 60_000))
    match kind:
        case "fraction":
            return Request(share=share, sharing="fraction", cpus=cpus, backends=backends)
        case "memory":
            return Request(memory=memory, sharing="fraction", cpus=cpus, backends=backends)
        case "both":
            count = dice.choice((1, 2))
            return Request(count, share, memory, "fraction", cpus=cpus, backends=backends)
        case "gang":
            return Request(gpus=2, nodes=2, cpus=cpus, backends=("ray",))
        case "mig":
            profile = dice.choice(("1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb", "1g.20gb"))
            return Request(dice.choice((1, 1, 2)), sharing="mig", mig_profile=profile, backends=("ray",))
        case "turns":
            return Request(memory=memory // 6, sharing="time_slice", backends=backends)
        case "hard":
            others = {"or_mig": dice.random() < 0.7, "or_mps": dice.random() < 0.7}
            return Request(share=share, sharing="fraction", isolation="hard", **others, backends=("ray",))
        case "mps":
            return Request(share=share, sharing="mps", isolation="hard", backends=("ray",))
        case "none":
            return Request(gpus=0, cpus=WHOLE, backends=backends)
        case _:
            return Request(gpus=dice.choice((1, 1, 2, 3)), cpus=cpus, backends=backends)
