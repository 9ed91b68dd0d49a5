"""Made-up machines: what really runs on their GPUs at each moment, whatever the ledger believes.

A promise that is broken in here is broken for a user: a GPU with more on it than it has, a run that starts
twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from raysched.core.cuts import overlapping
from raysched.core.lease import Place, Slice
from raysched.core.mig import DAEMON, Cut, Instance
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import WHOLE
from raysched.core.work import Launch, Partition, Run, Seen
from raysched.gpu.driver import PartitionRefused
from tests.simulation.chaos import Chaos

SIGTERM, SIGKILL = 143, 137


@dataclass(eq=False, slots=True)
class Process:
    """Something that uses a lease's share of one machine until it ends. `ray` tells that it is part of Ray
    and dies with Ray's own processes on that machine."""

    lease: str
    place: Place
    what: str
    ray: bool = False


@dataclass(slots=True)
class Command:
    """A run as its folder tells it. `process` is there while it runs; `natural` once it ended by itself."""

    seen: Seen
    process: Process | None = None
    natural: bool = False
    end: asyncio.TimerHandle | None = None
    code: int = 0


@dataclass(slots=True)
class Card:
    """A GPU as it really is. `stranger` is the memory in MiB that a process without a lease holds; `taken`
    is true while somebody holds it in Ray without a lease; `hidden` while the machine does not show it. It is
    `disturbed` once somebody else than the node agent has cut it."""

    info: GPUInfo
    tenants: dict[Process, tuple[Slice, ...]] = field(default_factory=dict)
    stranger: int = 0
    taken: bool = False
    hidden: bool = False
    disturbed: bool = False


class Machine:
    """One machine. `ray_id` is None while Ray does not run there, `reachable` false while it does not answer.
    `commands` has a shelf of run folders for each backend; they outlive everything."""

    def __init__(self, chaos: Chaos, info: NodeInfo, started: Counter[Run]) -> None:
        self.chaos = chaos
        self.info = info
        self.name = info.name
        self.ray_id = info.ray_id
        self.reachable = True
        self.cards = {gpu.uuid: Card(gpu) for gpu in info.gpus}
        self.processes: dict[Process, None] = {}
        self.over: set[str] = set()
        self.refused: set[Run] = set()
        self.cutting = asyncio.Lock()
        self.commands: dict[str, dict[Run, Command]] = {backend: {} for backend in info.backends}
        self.started = started
        self.gone_at: list[float] = []
        self.ray_since = 0.0
        self.clock_off = chaos.dice.choice((0, 0, -30_000, 90_000))

    def describe(self) -> NodeInfo:
        """The machine as its agent sees it."""
        shown = tuple(card.info for card in self.cards.values() if not card.hidden)
        return replace(self.info, gpus=shown, ray_id=self.ray_id)

    # ------------------------------------------------------------ processes

    def begin(self, process: Process) -> None:
        """A process is there from now on."""
        for part in process.place.slices:
            card = self.cards[part.gpu]
            card.tenants[process] = (*card.tenants.get(process, ()), part)
        for uuid in {part.gpu: None for part in process.place.slices}:
            self._check(self.cards[uuid])
        self.processes[process] = None
        self.chaos.note("begins", process.what, "on", self.name)

    def _check(self, card: Card) -> None:
        """No GPU has more on it than it has to give; several processes of one lease share its part."""
        leases = {process.lease: parts for process, parts in card.tenants.items()}
        held = [part for parts in leases.values() for part in parts]
        where = f"{self.name} {card.info.uuid} runs {[process.what for process in card.tenants]}"
        promise = self.chaos.promise
        promise(sum(part.share for part in held) <= WHOLE, f"more than one GPU's compute: {where}")
        promise(sum(part.memory for part in held) <= card.info.memory, f"more than its memory: {where}")
        promise(not (card.taken and leases), f"somebody holds it in Ray: {where}")
        cuts = [part.cut for part in held if part.cut is not None]
        promise(len(cuts) == len(set(cuts)), f"two tenants have one instance: {where}")

    def is_cut_for(self, place: Place) -> bool:
        """Whether the GPUs are cut as a lease was told; only a reboot or an administrator may have changed
        that."""
        for part in place.slices:
            card = self.cards[part.gpu]
            instances = {each.cut: each.uuid for each in card.info.layout.instances}
            right = instances.get(part.cut) == part.instance if part.cut else not card.info.layout.enabled
            if not right:
                self.chaos.promise(card.disturbed, f"{card.info} is not cut for {part}")
                return False
        return True

    def finish(self, process: Process) -> None:
        """A process is gone; one that is gone already is no matter."""
        if process not in self.processes:
            return
        del self.processes[process]
        for part in process.place.slices:
            self.cards[part.gpu].tenants.pop(process, None)
        self.chaos.note("is gone", process.what, "on", self.name)

    def of_lease(self, lease: str) -> list[Process]:
        return [process for process in self.processes if process.lease == lease]

    # ------------------------------------------------------------ commands

    def start(self, backend: str, launch: Launch) -> None:
        """Start a run; silent where its folder is there."""
        shelf = self.commands[backend]
        if launch.run in shelf:
            return
        if launch.lease in self.over:
            self._never(backend, launch.run, "its lease was given back before it started")
            return
        self.started[launch.run] += 1
        self.chaos.promise(self.started[launch.run] == 1, f"{launch.run} was started twice")
        process = Process(launch.lease, launch.place, f"run {launch.run}")
        command = shelf[launch.run] = Command(Seen(launch.run, "running", self.clock()), process)
        command.code = self.chaos.dice.choice((0, 0, 0, 0, 0, 0, 1, SIGKILL))
        if not self.is_cut_for(launch.place):
            self._exit(command, 1, natural=True)  # CUDA finds no device
            return
        self.begin(process)
        length = self.chaos.dice.choice((0.01, 0.5, 2, 6, 20)) * self.chaos.dice.uniform(0.5, 1.5)
        self._end_later(command, length, command.code, natural=True)

    def stop(self, backend: str, run: Run, grace: float) -> None:
        """Begin to end a run; one that was not started never will be."""
        command = self.commands[backend].get(run)
        if command is None:
            self._never(backend, run, "stopped before it started")
        elif command.seen.state == "running":
            ignores = self.chaos.happens("ignores SIGTERM")
            length = grace if ignores else min(grace, self.chaos.dice.uniform(0, 2))
            self._end_later(command, length, SIGKILL if ignores else SIGTERM, natural=False)

    def _never(self, backend: str, run: Run, reason: str) -> None:
        """A run that will never start: it counts as ended."""
        seen = Seen(run, "exited", None, self.clock(), SIGTERM, reason)
        self.commands[backend][run] = Command(seen)
        self.chaos.note("never starts", run, reason)

    def _end_later(self, command: Command, length: float, code: int, *, natural: bool) -> None:
        loop = asyncio.get_running_loop()
        if command.end is not None and command.end.when() <= loop.time() + length:
            return
        if command.end is not None:
            command.end.cancel()
        command.end = loop.call_later(length, self._exit, command, code, natural)

    def _exit(self, command: Command, code: int | None, natural: bool) -> None:
        """The command ends, maybe leaving something behind; without a code it is lost."""
        if command.end is not None:
            command.end.cancel()
        process = command.process
        if process is None or command.seen.state != "running":
            return
        state = "lost" if code is None else "exited"
        command.seen = replace(command.seen, state=state, ended=self.clock(), code=code)
        command.natural = natural
        if code is not None and process in self.processes and self.chaos.happens("leaves a process behind"):
            self.begin(replace(process, what=f"what is left of {process.what}"))
        self.finish(process)
        self.chaos.note("ends", command.seen.run, state, code)

    def end_processes(self, lease: str) -> None:
        """End all processes of a lease, at once; none of its runs starts any more."""
        self.over.add(lease)
        for process in self.of_lease(lease):
            command = next((c for c in self._commands() if c.process is process), None)
            if command is not None and command.seen.state == "running":
                self._exit(command, SIGKILL, natural=False)
        for process in self.of_lease(lease):
            self.finish(process)

    def _commands(self) -> Iterator[Command]:
        return (command for shelf in self.commands.values() for command in shelf.values())

    # ------------------------------------------------------------ MIG

    def cut(self, change: Partition) -> Iterator[None]:
        """Cut a GPU as its driver would, step by step. Raises PartitionRefused."""
        card = self.cards[change.gpu]
        for cut in change.destroy:
            self._destroy(card, cut)
            yield
        if card.info.layout.enabled != change.mig:
            self._switch(card, change.mig)
            yield
        for cut in change.create:
            self._create(card, cut)
            yield
        if change.mps != bool(card.info.layout.mps):
            self._daemon(card, change.mps)
            yield

    def _daemon(self, card: Card, runs: bool) -> None:
        """Start or end the MPS daemon of a GPU."""
        if self.chaos.happens("cut refused"):
            raise PartitionRefused("the daemon does not do it", DAEMON)
        pipe = f"/tmp/{self.chaos.id()}" if runs else ""
        card.info = replace(card.info, layout=replace(card.info.layout, mps=pipe))
        self.chaos.note("daemon:", card.info.uuid, runs)

    def _destroy(self, card: Card, cut: Cut) -> None:
        instances = card.info.layout.instances
        if cut not in [instance.cut for instance in instances]:
            return
        in_use = [p.what for p, parts in card.tenants.items() if cut in [part.cut for part in parts]]
        self.chaos.promise(not in_use, f"{cut} of {card.info.uuid} was to be destroyed under {in_use}")
        self._refuse_maybe(card, cut)
        self.lay_out(card, True, tuple(each for each in instances if each.cut != cut))

    def _switch(self, card: Card, on: bool) -> None:
        in_use = [process.what for process in card.tenants]
        self.chaos.promise(not in_use, f"the MIG mode of {card.info.uuid} was to be switched under {in_use}")
        if card.info.layout.instances:
            raise PartitionRefused("it still has MIG instances")
        self._refuse_maybe(card, None)
        self.lay_out(card, on, ())

    def _create(self, card: Card, cut: Cut) -> None:
        layout, geometry = card.info.layout, card.info.mig
        if geometry is None or not layout.enabled:
            raise PartitionRefused("it is not in MIG mode", cut)
        if cut in [instance.cut for instance in layout.instances]:
            return
        if overlapping(geometry, cut, layout.instances):
            raise PartitionRefused("there is no room for it there", cut)
        self._refuse_maybe(card, cut)
        made = Instance(f"MIG-{self.chaos.id()}", cut)
        instances = sorted((*layout.instances, made), key=lambda each: each.cut.start)
        self.lay_out(card, True, tuple(instances))

    def _refuse_maybe(self, card: Card, cut: Cut | None) -> None:
        if card.stranger:
            raise PartitionRefused("a process uses it", cut)
        if self.chaos.happens("cut refused"):
            raise PartitionRefused("the driver says no", cut)

    def lay_out(self, card: Card, enabled: bool, instances: tuple[Instance, ...]) -> None:
        """From now on the GPU is cut so."""
        card.info = replace(card.info, layout=replace(card.info.layout, enabled=enabled, instances=instances))
        self.chaos.note("cut:", card.info.uuid, enabled, *(instance.cut for instance in instances))

    # ------------------------------------------------------------ what goes wrong

    def ray_dies(self) -> None:
        """Ray's processes end; the runners of commands are no part of it."""
        self.ray_id = None
        self.gone_at.append(asyncio.get_running_loop().time())
        for process in [process for process in self.processes if process.ray]:
            self.finish(process)

    def take(self, card: Card) -> None:
        """Somebody holds a GPU in Ray without a lease."""
        card.taken = True
        self._check(card)

    def report(self, card: Card, fault: str) -> None:
        """What the driver says is wrong with a GPU; nothing: it is healthy."""
        card.info = replace(card.info, fault=fault)

    def ray_starts(self) -> None:
        """A new node of Ray, as far as Ray is concerned."""
        self.ray_id = f"{self.name}-{self.chaos.id()}"
        self.ray_since = asyncio.get_running_loop().time()
        self.chaos.note("Ray is back on", self.name)

    def reboot(self) -> None:
        """Everything that runs is gone."""
        self.ray_dies()
        for command in list(self._commands()):
            if command.seen.state == "running":
                self._exit(command, None, natural=False)
        for process in list(self.processes):
            self.finish(process)
        for card in self.cards.values():  # the mode outlives the boot, instances do not
            card.disturbed = True
            if card.info.layout.instances:
                self.lay_out(card, True, ())

    def clock(self) -> int:
        """This machine's wall clock, which may be wrong."""
        return 1_700_000_000_000 + self.clock_off + int(asyncio.get_running_loop().time() * 1000)
