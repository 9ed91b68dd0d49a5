"""A second ledger, written to be read: plain lists, no index, and nothing kept that can be counted.

The production core is compared with it (`test_model.py`). The model obeys the same commands. Where the core
has a choice - which GPUs a job gets, and when - the model makes none: it says whether what the core chose
was allowed, and whether there was a choice at all. What there is room for stands in `model_room.py`, what
becomes of nodes and hosts in `model_nodes.py`, and what a site can give in `model_site.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from raysched.core import commands
from raysched.core.commands import Command, JobRequest
from raysched.core.lease import Lease, Place, Slice
from raysched.core.mig import DAEMON, Cut
from raysched.core.node import NodeInfo
from raysched.core.request import Request
from raysched.core.work import Run, Seen
from tests.core.model_asked import ways
from tests.core.model_nodes import Forbidden, Nodes
from tests.core.model_room import WHOLE, Card, Grant, Machine, cells, profile_for
from tests.core.model_site import gives, sharing_at

PATIENCE = 60_000
LOST = 86_400_000
REST = 3_000
LONGEST_REST = 300_000
REFUSAL = 600_000
CUTTING = 300_000


@dataclass
class Work:
    """A job. `lease` is the one it has now; `single`: a site has it, and runs it as one."""

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
    warned: bool = False
    single: bool = False

    @property
    def ended(self) -> bool:
        return self.state in ("succeeded", "failed", "cancelled")


class Model(Nodes):
    """The whole ledger. `kept` is how many jobs have to end after a job until it may be forgotten."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.kept = kept
        self.jobs: dict[str, Work] = {}
        self.keys: dict[str, str] = {}
        self.ends: list[str] = []
        self.count = 0

    def do(self, command: Command, now: int) -> None:
        """Obey a command. Raises Forbidden, and then changes nothing, where it has to be refused."""
        self.now = now
        getattr(self, "_" + type(command).__name__)(command)

    # ------------------------------------------------------------ grants

    def head(self) -> Work | None:
        """The waiting job whose turn it is."""
        waiting = [job for job in self.jobs.values() if job.state == "waiting" and job.until <= self.now]
        return min(waiting, key=lambda job: (-job.asked.priority, job.order), default=None)

    def objection(self, lease: Lease) -> str | None:
        """Why this grant is not allowed; None where it is."""
        job = self.jobs[lease.job]
        if job.state != "waiting" or job.until > self.now:
            return f"{job.id} is {job.state} until {job.until}"
        if lease.attempt != job.attempt + 1 or lease.id in self.leases:
            return f"it is not attempt {job.attempt + 1}"
        if lease.backend not in job.asked.request.backends:
            return "another backend was asked for"
        if site := self.site(lease.backend):
            return self._site_objection(site, lease, job.asked.request)
        request = next((way for way in ways(job.asked.request) if way.sharing == lease.sharing), None)
        if request is None:
            return "another way of sharing was asked for"
        return self._uneven(lease, request) or next(
            (words for place in lease.places if (words := self._place_objection(lease, place, request))), None
        )

    def _site_objection(self, site: list[NodeInfo], lease: Lease, request: Request) -> str | None:
        if lease.places:
            return "a site finds the places itself"
        given = [way for way in ways(request) if gives(site, way)]
        return None if lease.sharing in map(sharing_at, given) else "the site never has that"

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
        if machine.lost is not None or machine.draining or lease.backend not in machine.info.backends:
            return f"{place.node} takes nothing new"
        if (place.cpus, place.memory) != (request.cpus, request.host_memory):
            return "the CPUs or the memory are not what was asked for"
        if place.cpus > self.cpus_free(machine) or place.memory > self.host_memory_free(machine):
            return f"{place.node} has no such CPUs or memory"
        if request.sharing != "mig" and len({slice.gpu for slice in place.slices}) < len(place.slices):
            return "two shares of one GPU"
        for at, slice in enumerate(place.slices):
            card = machine.cards[slice.gpu]
            if not self.room(card, request):
                return f"{slice.gpu} has no room"
            if slice.cut is None and (request.sharing == "mig" or slice != self.part(card, request)):
                return f"{slice} is not what was asked for"
            earlier = [other.cut for other in place.slices[:at] if other.gpu == slice.gpu]
            if slice.cut is not None and (words := self._instance_objection(card, slice, earlier, request)):
                return f"{slice}: {words}"
        return None

    def _instance_objection(
        self, card: Card, slice: Slice, earlier: list[Cut], request: Request
    ) -> str | None:
        profile = profile_for(card.info, request)
        share = profile.slices * WHOLE // card.info.mig.slices
        if request.sharing != "mig" or slice.cut.profile != profile.id:
            return f"{profile.name} was asked for"
        if slice.cut.start not in profile.starts:
            return "it may not start there"
        if (slice.share, slice.memory) != (share, profile.memory):
            return "it has another size"
        return self.cut_objection(card, slice.cut, earlier)

    def grant(self, lease: Lease) -> None:
        """Take note of a grant that the core made. Raises AssertionError where it was not allowed."""
        assert (words := self.objection(lease)) is None, f"{lease}: {words}"
        job = self.jobs[lease.job]
        job.state, job.lease, job.attempt = "starting", lease.id, lease.attempt
        job.granted, job.started = self.now, None
        job.begun, job.exits, job.warned = set(), {}, False
        job.single = not lease.places
        self.leases[lease.id] = Grant(lease.id, job.id, lease.sharing, lease.places)
        if not self.managed(lease.places):
            self._hold(self.leases[lease.id])

    def _hold(self, grant: Grant) -> None:
        """Ray holds the lease, or need not: its work may start once its GPUs are cut as it needs them."""
        if any(not self.is_cut(grant, node, slice) for node, slice in grant.slices()):
            grant.state = "held"
            return
        grant.state = "bound"
        for node, slice in grant.slices():
            for there in self.machines[node].cards[slice.gpu].info.layout.instances:
                if there.cut == slice.cut:
                    grant.instances[slice.gpu, slice.cut] = there.uuid
            grant.daemons[slice.gpu] = self.machines[node].cards[slice.gpu].info.layout.mps
        job = self.jobs[grant.job]
        if job.asked.kind == "lease" and job.state == "starting":
            job.state = "running"

    def is_cut(self, grant: Grant, node: str, slice: Slice) -> bool:
        """Whether a GPU is cut as a lease needs it."""
        layout = self.machines[node].cards[slice.gpu].info.layout
        if bool(layout.mps) != (grant.sharing == "mps"):
            return False
        if slice.cut is None:
            return not layout.enabled
        return layout.enabled and slice.cut in [there.cut for there in layout.instances]

    def hindered(self, grant: Grant) -> bool:
        """Whether something stands in the way of cutting a held lease's GPUs."""
        return any(self._hinders(grant, node, slice) for node, slice in grant.slices())

    def _hinders(self, grant: Grant, node: str, slice: Slice) -> bool:
        card = self.machines[node].cards[slice.gpu]
        if not card.present:
            return True
        geometry, mig = card.info.mig, slice.cut is not None
        if card.info.layout.enabled != mig:
            return geometry is None or not geometry.switchable or card.used_by_strangers
        if not mig or self.is_cut(grant, node, slice):
            return False
        return any(cells(geometry, slice.cut) & cells(geometry, there.cut) for there in self.busy(card))

    # ------------------------------------------------------------ what must be there

    def runs(self) -> tuple[set[Run], set[Run]]:
        """The runs that must be there now, and those that must be ended."""
        launches: set[Run] = set()
        stops: set[Run] = set()
        for job in self.jobs.values():
            if job.asked.kind != "command" or job.lease is None or self.leases[job.lease].state != "bound":
                continue
            failed = any(code != 0 for code in job.exits.values())
            left = set(range(self._ranks(job))) - set(job.exits)
            runs = {Run(job.id, job.attempt, rank) for rank in left}
            (stops if failed or job.state == "stopping" else launches).update(runs)
        return launches, stops

    def releases(self) -> set[tuple[str, str]]:
        """The leases that are over, with each node that is there and where somebody has to look what is left
        of them."""
        over = [grant for grant in self.leases.values() if grant.state == "releasing"]
        places = [(grant.id, place) for grant in over for place in grant.places if self.watched(place)]
        return {(id, place.node) for id, place in places if self.machines[place.node].lost is None}

    # ------------------------------------------------------------ commands about jobs

    def _Submit(self, command: commands.Submit) -> None:
        if self._done_before(command.key, command.digest):
            return
        for asked in command.jobs:
            if not self.ever_fits(asked.request):
                raise Forbidden
        self.keys[command.key] = command.digest
        for asked in command.jobs:
            elements = [""] if asked.array is None else [f".{at}" for at in range(asked.array)]
            for id in (asked.id + element for element in elements):
                self.jobs[id] = Work(id, asked.id, self.count, asked)
                self.count += 1

    def _Once(self, command: commands.Once) -> None:
        if not self._done_before(command.key, command.digest):
            (one,) = command.commands
            self.do(one, self.now)
            self.keys[command.key] = command.digest

    def _done_before(self, key: str, digest: str) -> bool:
        """Whether something was done under a key; it may not have been something else."""
        if self.keys.get(key, digest) != digest:
            raise Forbidden
        return key in self.keys

    def _Cancel(self, command: commands.Cancel) -> None:
        job = self._known(command.job)
        if job.ended:
            return
        launched = (
            job.asked.kind == "command" and job.lease is not None and self.leases[job.lease].state == "bound"
        )
        if launched or job.state == "stopping":
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
        places = [place for place in grant.places if not self.watched(place)]
        self._free(grant, [place.node for place in places])

    def _free(self, grant: Grant, nodes: Iterable[str]) -> None:
        """A lease's capacity on these nodes is free; a GPU that vanished under it is forgotten with it."""
        grant.places = tuple(place for place in grant.places if place.node not in nodes)
        if not grant.places:
            del self.leases[grant.id]
        for machine in self.machines.values():
            self.forget_vanished(machine)

    # ------------------------------------------------------------ reports

    def _Report(self, command: commands.Report) -> None:
        seen = command.seen
        job = self.jobs.get(seen.run.job)
        if job is None or job.asked.kind != "command" or job.lease is None or seen.run.attempt != job.attempt:
            return
        if seen.run.rank in job.exits or seen.run.rank >= self._ranks(job) or seen.state == "queued":
            return
        if seen.state == "taken" and job.state != "stopping" and job.asked.spec.get("preemptible", True):
            self._take_back(job, self.now + REST)
            return
        if seen.state not in ("lost", "taken"):
            self._begin(job, seen)
        if seen.state != "running":
            job.exits[seen.run.rank] = seen.code if seen.state == "exited" else None
            if len(job.exits) == self._ranks(job):
                self._conclude(job)

    def _ranks(self, job: Work) -> int:
        return 1 if job.single else len(self.leases[job.lease].places)

    def _begin(self, job: Work, seen: Seen) -> None:
        if seen.run.rank in job.begun:
            return
        job.begun.add(seen.run.rank)
        if job.started is None:
            job.started = self.now if seen.started is None else min(self.now, max(seen.started, job.granted))
        if job.state == "starting":
            job.state = "running"

    def _conclude(self, job: Work) -> None:
        code = next((job.exits[rank] for rank in job.exits if job.exits[rank] != 0), 0)
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
            self._hold(grant)

    def _Denied(self, command: commands.Denied) -> None:
        grant = self.leases.get(command.lease)
        if grant is None or grant.state == "releasing":
            return
        job = self.jobs[grant.job]
        if job.state == "running":
            some_not_begun = len(job.begun) < self._ranks(job)
            if command.final and some_not_begun and job.asked.kind == "command":
                job.state, job.outcome = "stopping", "failed"
            return
        if job.state == "stopping":
            return
        if command.final:
            self._end(job, "failed")
        else:
            returned = job.attempt - 1 - job.failures if job.single else 0
            self._take_back(job, self.now + min(REST * 2**returned, LONGEST_REST))

    def _take_back(self, job: Work, until: int) -> None:
        """Give back the lease of a job that has not begun; no retry is used up."""
        job.until = until
        self._wait_again(job)

    def _Evict(self, command: commands.Evict) -> None:
        """Who may be stopped leaves a node; no retry is used up."""
        if command.node not in self.machines:
            raise Forbidden
        for job in [job for job in self.jobs.values() if job.state in ("starting", "running")]:
            there = any(place.node == command.node for place in self.leases[job.lease].places)
            if there and job.asked.kind == "command" and job.asked.spec.get("preemptible", True):
                self._take_back(job, self.now)

    def _Placed(self, command: commands.Placed) -> None:
        grant = self.leases.get(command.lease)
        if grant is None or grant.state != "bound" or not self.jobs[grant.job].single:
            return
        if all(self._site_has(grant, place) for place in command.places):
            grant.places = command.places
            for machine in self.machines.values():
                self.forget_vanished(machine)
            self._warn(grant, self.jobs[grant.job])

    def _site_has(self, grant: Grant, place: Place) -> bool:
        """Whether a site can have put a lease there: its own GPU, and nobody else has that part of it."""
        machine = self.machines.get(place.node)
        if machine is None or not machine.info.site:
            return False
        return all(
            slice.gpu in machine.cards and self._beside(grant, machine.cards[slice.gpu], slice)
            for slice in place.slices
        )

    def _beside(self, grant: Grant, card: Card, slice: Slice) -> bool:
        others = [(other, held) for other, held in self.slices(slice.gpu) if other is not grant]
        alone = grant.sharing == "exclusive" or any(other.sharing != grant.sharing for other, _ in others)
        used = sum(held.share for _, held in others)
        return card.present and (not others or (not alone and used + slice.share <= WHOLE))

    def _Gone(self, command: commands.Gone) -> None:
        grant = self.leases.get(command.lease)
        if grant is not None and grant.state == "releasing":
            self._free(grant, command.nodes or [place.node for place in grant.places])

    # ------------------------------------------------------------ nodes

    def tenant_sees(self, grant: Grant, machine: Machine) -> None:
        """What news of a node mean for a lease that has a part of it. What a site gave is cut by the site."""
        job = self.jobs.get(grant.job)
        if job is None or job.lease != grant.id:
            return None
        there = {
            gpu.uuid: {instance.cut: instance.uuid for instance in gpu.layout.instances}
            for gpu in machine.info.gpus
        }
        slices = [slice for node, slice in grant.slices() if node == machine.info.name and slice.gpu in there]
        if grant.state == "bound" and not machine.info.site:
            whole = all(self.is_cut(grant, machine.info.name, slice) for slice in slices)
            had = [(slice, uuid) for slice in slices if (uuid := grant.instances.get((slice.gpu, slice.cut)))]
            now = {gpu.uuid: gpu.layout.mps for gpu in machine.info.gpus}
            if any(now[slice.gpu] != grant.daemons[slice.gpu] for slice in slices):
                return self._lose(job)
            if not whole or any(there[slice.gpu].get(slice.cut) != uuid for slice, uuid in had):
                return self._lose(job)
        if grant.state == "held":
            self._hold(grant)
        self._warn(grant, job)
        return None

    def _warn(self, grant: Grant, job: Work) -> None:
        infos = {gpu.uuid: gpu for node, _ in grant.slices() for gpu in self.machines[node].info.gpus}
        job.warned = any(slice.gpu not in infos or infos[slice.gpu].fault for _, slice in grant.slices())

    def _CutRefused(self, command: commands.CutRefused) -> None:
        machine = self.machines.get(command.node)
        if machine is None or command.gpu not in machine.cards:
            return
        card = machine.cards[command.gpu]
        card.refused[command.cut] = self.now
        for grant in [grant for grant, _ in self.slices(command.gpu)]:
            if grant.state in ("granted", "held") and self._needs(grant, card, command.cut):
                self._cut_fails(grant)

    def _cut_fails(self, grant: Grant) -> None:
        """A lease whose GPUs are not cut goes back, unless its work runs all the same."""
        if self.jobs[grant.job].state == "starting":
            self._take_back(self.jobs[grant.job], self.now)

    def _needs(self, grant: Grant, card: Card, cut: Cut | None) -> bool:
        """Whether a lease that is not bound yet needs the instance at `cut` made or destroyed, or (without a
        cut) the mode switched."""
        mig = grant.sharing == "mig"
        if cut == DAEMON:
            return grant.sharing == "mps"
        if cut is None or not mig:
            return card.info.layout.enabled != mig
        exist = {there.cut for there in card.info.layout.instances}
        missing = [slice.cut for _, slice in grant.slices()
                   if slice.gpu == card.info.uuid and slice.cut not in exist]  # fmt: skip
        return any(cells(card.info.mig, cut) & cells(card.info.mig, other) for other in missing)

    # ------------------------------------------------------------ time

    def _Tick(self, _: commands.Tick) -> None:
        going = self.going()
        for grant in list(self.leases.values()):
            job = self.jobs.get(grant.job)
            if grant.state == "releasing":
                self._free(grant, [place.node for place in grant.places if self._away(place.node, LOST)])
            elif any(self._away(place.node, PATIENCE) for place in grant.places):
                self._lose(self.jobs[grant.job])
            elif job is not None and self._overdue(job):
                job.state, job.outcome = "stopping", "failed"
            elif grant.state != "held" or job is None or job.state != "starting":
                continue
            elif self.hindered(grant) or self.now - job.granted >= CUTTING:
                self._give_up_cutting(grant)
        for card in (card for machine in self.machines.values() for card in machine.cards.values()):
            card.refused = {cut: at for cut, at in card.refused.items() if at > self.now - REFUSAL}
        for name in going:
            self.remove(name)

    def _give_up_cutting(self, grant: Grant) -> None:
        """Another place is looked for. What a lease only waits for, for too long, counts as refused."""
        for node, slice in grant.slices() if not self.hindered(grant) else ():
            card = self.machines[node].cards[slice.gpu]
            if not self.is_cut(grant, node, slice):
                switched = card.info.layout.enabled == (slice.cut is not None)
                lacking = slice.cut or DAEMON
                card.refused[lacking if switched else None] = self.now
        self._cut_fails(grant)

    def _away(self, node: str, since: int) -> bool:
        lost = self.machines[node].lost
        return lost is not None and self.now - lost >= since

    def _lose(self, job: Work) -> None:
        """What a job ran on is gone."""
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
