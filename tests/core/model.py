"""A second ledger, written to be read: plain lists, no index, and nothing kept that can be counted.

The production core is compared with it (`test_model.py`). The model obeys the same commands. Where the core
has a choice - which GPUs a job gets, and when - the model makes none: it says whether what the core chose
was allowed, and whether there was a choice at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from raysched.core import commands
from raysched.core.commands import Command, JobRequest
from raysched.core.lease import Lease, Place, Slice
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import Request
from raysched.core.work import Run, Seen

WHOLE = 10_000
PATIENCE = 60_000
REST = 3_000


class Forbidden(Exception):
    """The command has to be refused."""


@dataclass
class Card:
    """A GPU and what somebody without a lease uses of it."""

    info: GPUInfo
    foreign: int = 0
    outside: bool = False
    present: bool = True


@dataclass
class Machine:
    """A node; `lost` is when it was lost."""

    info: NodeInfo
    cards: dict[str, Card] = field(default_factory=dict)
    lost: int | None = None


@dataclass
class Grant:
    """A lease that the core granted."""

    id: str
    job: str
    sharing: str
    places: tuple[Place, ...]
    state: str = "granted"


@dataclass
class Work:
    """A job. `lease` is the one it has now."""

    id: str
    group: str
    order: int
    asked: JobRequest
    state: str = "waiting"
    attempt: int = 0
    failures: int = 0
    until: int = 0
    lease: str | None = None
    granted: int = 0
    started: int | None = None
    begun: set[int] = field(default_factory=set)
    exits: dict[int, int | None] = field(default_factory=dict)
    outcome: str = ""
    code: int | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("succeeded", "failed", "cancelled")


class Model:
    """The whole ledger. `kept` is how many jobs have to end after a job until it may be forgotten."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.machines: dict[str, Machine] = {}
        self.jobs: dict[str, Work] = {}
        self.leases: dict[str, Grant] = {}
        self.keys: dict[str, list[str]] = {}
        self.ends: list[str] = []
        self.count = 0
        self.now = 0

    def do(self, command: Command, now: int) -> None:
        """Obey a command. Raises Forbidden, and then changes nothing, where it has to be refused."""
        self.now = now
        getattr(self, "_" + type(command).__name__)(command)

    # ------------------------------------------------------------ what is there, and who has it

    def slices(self, uuid: str) -> list[tuple[Grant, Slice]]:
        """Who holds what of a GPU."""
        return [
            (grant, slice)
            for grant in self.leases.values()
            for place in grant.places
            for slice in place.slices
            if slice.gpu == uuid
        ]

    def mode(self, uuid: str) -> str | None:
        """How a GPU is shared now: as its tenants share it."""
        return next((grant.sharing for grant, _ in self.slices(uuid)), None)

    def share_free(self, card: Card) -> int:
        """What a further tenant could get of a GPU's compute."""
        if card.outside or not card.present or self.mode(card.info.uuid) == "exclusive":
            return 0
        return WHOLE - sum(slice.share for _, slice in self.slices(card.info.uuid))

    def memory_free(self, card: Card) -> int:
        """The MiB of a GPU that nobody holds and nobody uses."""
        if card.outside or not card.present or self.mode(card.info.uuid) == "exclusive":
            return 0
        used = card.foreign + sum(slice.memory for _, slice in self.slices(card.info.uuid))
        return max(0, card.info.memory - used)

    def cpus_free(self, machine: Machine) -> int:
        """CPUs that no lease holds."""
        return machine.info.cpus - sum(place.cpus for place in self._places_on(machine))

    def host_memory_free(self, machine: Machine) -> int:
        """Host memory that no lease holds."""
        return machine.info.memory - sum(place.memory for place in self._places_on(machine))

    def _places_on(self, machine: Machine) -> list[Place]:
        places = [place for grant in self.leases.values() for place in grant.places]
        return [place for place in places if place.node == machine.info.name]

    def managed(self, places: Iterable[Place]) -> bool:
        """Whether Ray manages a node of them."""
        return any(self.machines[place.node].info.ray_id is not None for place in places)

    # ------------------------------------------------------------ what fits

    def part(self, card: Card, request: Request) -> Slice:
        """What a request would hold of a GPU."""
        uuid, total = card.info.uuid, card.info.memory
        if request.sharing == "exclusive":
            return Slice(uuid, WHOLE, total)
        if request.memory is None:
            return Slice(uuid, request.share, request.share * total // WHOLE)
        if request.share is None:
            return Slice(uuid, max(1, request.memory * WHOLE // total), request.memory)
        return Slice(uuid, request.share, request.memory)

    def serves(self, card: Card, request: Request) -> bool:
        """Whether a GPU could serve a request if nobody held or used anything of it."""
        if not _is_of(card.info.model, request.gpu_types) or not card.present:
            return False
        return max(request.memory or 0, self.part(card, request).memory) <= card.info.memory

    def has_room(self, card: Card, request: Request) -> bool:
        """Whether a GPU can serve a request now."""
        if not self.serves(card, request) or card.outside:
            return False
        mode = self.mode(card.info.uuid)
        if request.sharing == "exclusive":
            return mode is None and not card.foreign
        part = self.part(card, request)
        return (
            mode in (None, request.sharing)
            and part.share <= self.share_free(card)
            and part.memory <= self.memory_free(card)
        )

    def fits(self, request: Request) -> bool:
        """Whether there is any place for a request now."""
        rooms = {
            name: sum(self.has_room(card, request) for card in machine.cards.values())
            for name, machine in self.machines.items()
            if machine.lost is None
            and request.cpus <= self.cpus_free(machine)
            and request.host_memory <= self.host_memory_free(machine)
        }
        return self._any_backend(request, rooms)

    def ever_fits(self, request: Request) -> bool:
        """Whether there would be a place for a request if nothing else ran."""
        rooms = {
            name: sum(self.serves(card, request) for card in machine.cards.values())
            for name, machine in self.machines.items()
            if request.cpus <= machine.info.cpus and request.host_memory <= machine.info.memory
        }
        return self._any_backend(request, rooms)

    def _any_backend(self, request: Request, rooms: dict[str, int]) -> bool:
        return any(
            _enough(
                request,
                [room for name, room in rooms.items() if backend in self.machines[name].info.backends],
            )
            for backend in request.backends
        )

    # ------------------------------------------------------------ grants

    def head(self) -> Work | None:
        """The waiting job whose turn it is."""
        waiting = [job for job in self.jobs.values() if job.state == "waiting" and job.until <= self.now]
        return min(waiting, key=lambda job: (-job.asked.priority, job.order), default=None)

    def objection(self, lease: Lease) -> str | None:
        """Why this grant is not allowed; None where it is."""
        job = self.jobs[lease.job]
        request = job.asked.request
        if job.state != "waiting" or job.until > self.now:
            return f"{job.id} is {job.state} until {job.until}"
        if lease.attempt != job.attempt + 1 or lease.id in self.leases:
            return f"it is not attempt {job.attempt + 1}"
        if lease.backend not in request.backends or lease.sharing != request.sharing:
            return "it is not what was asked for"
        return self._uneven(lease, request) or next(
            (words for place in lease.places if (words := self._place_objection(lease, place, request))), None
        )

    def _uneven(self, lease: Lease, request: Request) -> str | None:
        nodes = [place.node for place in lease.places]
        counts = [len(place.slices) for place in lease.places]
        if len(set(nodes)) < len(nodes):
            return "two places are on one node"
        if sum(counts) != request.gpus:
            return f"{sum(counts)} GPUs instead of {request.gpus}"
        if request.nodes is not None and counts != [request.gpus // request.nodes] * request.nodes:
            return f"it is not spread evenly over {request.nodes} nodes"
        return None

    def _place_objection(self, lease: Lease, place: Place, request: Request) -> str | None:
        machine = self.machines[place.node]
        if machine.lost is not None or lease.backend not in machine.info.backends:
            return f"{place.node} is out of reach"
        if (place.cpus, place.memory) != (request.cpus, request.host_memory):
            return "the CPUs or the memory are not what was asked for"
        if place.cpus > self.cpus_free(machine) or place.memory > self.host_memory_free(machine):
            return f"{place.node} has no such CPUs or memory"
        if len({slice.gpu for slice in place.slices}) < len(place.slices):
            return "two shares of one GPU"
        for slice in place.slices:
            card = machine.cards[slice.gpu]
            if not self.has_room(card, request):
                return f"{slice.gpu} has no room"
            if slice != self.part(card, request):
                return f"{slice} is not what was asked for"
        return None

    def grant(self, lease: Lease) -> None:
        """Take note of a grant that the core made. Raises AssertionError where it was not allowed."""
        assert (words := self.objection(lease)) is None, f"{lease}: {words}"
        job = self.jobs[lease.job]
        job.state, job.lease, job.attempt = "starting", lease.id, lease.attempt
        job.granted, job.started = self.now, None
        job.begun, job.exits = set(), {}
        self.leases[lease.id] = Grant(lease.id, job.id, lease.sharing, lease.places)
        if not self.managed(lease.places):
            self._bind(self.leases[lease.id])

    def _bind(self, grant: Grant) -> None:
        grant.state = "bound"
        job = self.jobs[grant.job]
        if job.asked.kind == "lease" and job.state == "starting":
            job.state = "running"

    # ------------------------------------------------------------ what must be there

    def runs(self) -> tuple[set[Run], set[Run]]:
        """The runs that must be there now, and those that must be ended."""
        launches: set[Run] = set()
        stops: set[Run] = set()
        for job in self.jobs.values():
            if job.asked.kind != "command" or job.lease is None or self.leases[job.lease].state != "bound":
                continue
            failed = any(code != 0 for code in job.exits.values())
            left = set(range(len(self.leases[job.lease].places))) - set(job.exits)
            runs = {Run(job.id, job.attempt, rank) for rank in left}
            (stops if failed or job.state == "stopping" else launches).update(runs)
        return launches, stops

    # ------------------------------------------------------------ commands about jobs

    def _Submit(self, command: commands.Submit) -> None:
        if command.key in self.keys:
            return
        for asked in command.jobs:
            if asked.request.isolation == "hard" and asked.request.sharing != "exclusive":
                raise Forbidden
            if not self.ever_fits(asked.request):
                raise Forbidden
        ids = self.keys[command.key] = []
        for asked in command.jobs:
            elements = [""] if asked.array is None else [f".{at}" for at in range(asked.array)]
            for id in (asked.id + element for element in elements):
                self.jobs[id] = Work(id, asked.id, self.count, asked)
                self.count += 1
                ids.append(id)

    def _Cancel(self, command: commands.Cancel) -> None:
        job = self._known(command.job)
        if job.ended:
            return
        launched = (
            job.asked.kind == "command" and job.lease is not None and self.leases[job.lease].state == "bound"
        )
        if launched:
            job.state, job.outcome = "stopping", "cancelled"
        else:
            self._end(job, "cancelled")

    def _Release(self, command: commands.Release) -> None:
        self._give_back(self._known(command.job))

    def _OwnerLost(self, command: commands.OwnerLost) -> None:
        for job in list(self.jobs.values()):
            if job.asked.owner == command.owner:
                self._give_back(job)

    def _give_back(self, job: Work) -> None:
        if not job.ended:
            self._end(job, "succeeded" if job.state == "running" else "cancelled")

    def _known(self, id: str) -> Work:
        if id not in self.jobs:
            raise Forbidden
        return self.jobs[id]

    def _end(self, job: Work, outcome: str, code: int | None = None) -> None:
        self._let_go(job)
        job.state, job.code = outcome, code
        self.ends.append(job.id)

    def _wait_again(self, job: Work) -> None:
        self._let_go(job)
        job.state = "waiting"

    def _let_go(self, job: Work) -> None:
        if job.lease is None:
            return
        grant = self.leases[job.lease]
        grant.state, job.lease = "releasing", None
        if not self.managed(grant.places):
            self._free(grant)

    def _free(self, grant: Grant) -> None:
        """A lease's capacity is free; a GPU that vanished under it is forgotten with it."""
        del self.leases[grant.id]
        for machine in self.machines.values():
            self._forget_vanished(machine)

    # ------------------------------------------------------------ reports

    def _Report(self, command: commands.Report) -> None:
        seen = command.seen
        job = self.jobs.get(seen.run.job)
        if job is None or job.asked.kind != "command" or job.lease is None or seen.run.attempt != job.attempt:
            return
        ranks = len(self.leases[job.lease].places)
        if seen.run.rank in job.exits or seen.run.rank >= ranks:
            return
        if seen.state != "lost":
            self._begin(job, seen)
        if seen.state != "running":
            job.exits[seen.run.rank] = seen.code if seen.state == "exited" else None
            if len(job.exits) == ranks:
                self._conclude(job)

    def _begin(self, job: Work, seen: Seen) -> None:
        if seen.run.rank in job.begun:
            return
        job.begun.add(seen.run.rank)
        if job.started is None:
            job.started = self.now if seen.started is None else min(self.now, max(seen.started, job.granted))
        if job.state == "starting":
            job.state = "running"

    def _conclude(self, job: Work) -> None:
        code = next((job.exits[rank] for rank in sorted(job.exits) if job.exits[rank] != 0), 0)
        if job.state == "stopping":
            self._end(job, job.outcome, code)
        elif code == 0:
            self._end(job, "succeeded", 0)
        else:
            self._fail(job, code)

    def _fail(self, job: Work, code: int | None) -> None:
        if job.failures < job.asked.retries:
            job.failures += 1
            self._wait_again(job)
        else:
            self._end(job, "failed", code)

    def _Held(self, command: commands.Held) -> None:
        grant = self.leases.get(command.lease)
        if grant is not None and grant.state == "granted":
            self._bind(grant)

    def _Denied(self, command: commands.Denied) -> None:
        grant = self.leases.get(command.lease)
        if grant is None or grant.state == "releasing":
            return
        job = self.jobs[grant.job]
        if job.begun or job.state == "stopping":
            return
        if command.final:
            self._end(job, "failed")
        else:
            job.until = self.now + REST
            self._wait_again(job)

    def _Gone(self, command: commands.Gone) -> None:
        grant = self.leases.get(command.lease)
        if grant is not None and grant.state == "releasing":
            self._free(grant)

    # ------------------------------------------------------------ nodes

    def _NodeSeen(self, command: commands.NodeSeen) -> None:
        info = command.node
        elsewhere = {
            uuid
            for machine in self.machines.values()
            if machine.info.name != info.name and machine.lost is None
            for uuid in machine.cards
        }
        machine = self.machines.setdefault(info.name, Machine(info))
        machine.info, machine.lost = info, None
        reported = {gpu.uuid: gpu for gpu in info.gpus if gpu.uuid not in elsewhere}
        for uuid, card in machine.cards.items():
            card.present = uuid in reported
        for uuid, gpu in reported.items():
            machine.cards.setdefault(uuid, Card(gpu)).info = gpu
        self._forget_vanished(machine)

    def _forget_vanished(self, machine: Machine) -> None:
        machine.cards = {
            uuid: card for uuid, card in machine.cards.items() if card.present or self.slices(uuid)
        }

    def _NodeGone(self, command: commands.NodeGone) -> None:
        machine = self.machines.get(command.node)
        if machine is not None and machine.lost is None:
            machine.lost = self.now

    def _Usage(self, command: commands.Usage) -> None:
        machine = self.machines.get(command.node)
        if machine is not None and command.gpu in machine.cards:
            machine.cards[command.gpu].foreign = command.foreign

    def _Outside(self, command: commands.Outside) -> None:
        machine = self.machines.get(command.node)
        for uuid, card in machine.cards.items() if machine else ():
            card.outside = uuid in command.gpus

    # ------------------------------------------------------------ time

    def _Tick(self, _: commands.Tick) -> None:
        for grant in list(self.leases.values()):
            job = self.jobs.get(grant.job)
            if self._out_of_patience(grant):
                if grant.state == "releasing":
                    self._free(grant)
                else:
                    self._lose(self.jobs[grant.job])
            elif job is not None and self._overdue(job):
                job.state, job.outcome = "stopping", "failed"

    def _out_of_patience(self, grant: Grant) -> bool:
        lost = [self.machines[place.node].lost for place in grant.places]
        return any(at is not None and self.now - at >= PATIENCE for at in lost)

    def _lose(self, job: Work) -> None:
        if job.state == "stopping":
            self._end(job, job.outcome)
        elif job.asked.kind == "lease":
            self._end(job, "failed")
        else:
            self._fail(job, None)

    def _overdue(self, job: Work) -> bool:
        limit = job.asked.max_runtime
        if job.state != "running" or job.asked.kind != "command" or limit is None:
            return False
        return job.started is not None and self.now - job.started >= limit

    def forget(self, ids: Iterable[str]) -> None:
        """Take note of what the core forgot. Raises AssertionError where it had to be kept."""
        ids = set(ids)
        recent = set(self.ends[-self.kept :])
        for id in ids:
            job = self.jobs[id]
            assert job.ended, f"{id} is {job.state} and was forgotten"
            assert id not in recent, f"{id} ended a moment ago and was forgotten"
            assert id not in {grant.job for grant in self.leases.values()}, f"{id} was forgotten with a lease"
            group = {other.id for other in self.jobs.values() if other.group == job.group}
            assert group <= ids, f"only a part of {job.group} was forgotten"
        for id in ids:
            del self.jobs[id]
            self.ends.remove(id)


def _enough(request: Request, rooms: list[int]) -> bool:
    """Whether nodes with so many suitable GPUs each can serve a request together."""
    if request.nodes is not None:
        part = request.gpus // request.nodes
        return sum(room >= part for room in rooms) >= request.nodes
    return sum(rooms) >= request.gpus if request.gpus > 1 else any(room >= request.gpus for room in rooms)


def _is_of(model: str, types: tuple[str, ...]) -> bool:
    """Whether a product name has all words of one of the types, in a row."""
    name = " ".join(re.findall("[a-z0-9]+", model.lower()))
    return not types or any(
        f" {' '.join(re.findall('[a-z0-9]+', kind.lower()))} " in f" {name} " for kind in types
    )
