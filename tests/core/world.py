"""A small world for tests of the core: nodes are described in a line, jobs submitted in another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raysched.core import explain
from raysched.core.commands import Command, Gone, Held, HostSeen, JobRequest, NodeSeen, Report, Submit
from raysched.core.facts import Fact
from raysched.core.jobs import Job
from raysched.core.lease import Lease
from raysched.core.mig import Cut, Instance, Layout
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.queue import survey
from raysched.core.request import WHOLE, Request
from raysched.core.scheduler import Scheduler
from raysched.core.validate import validate
from raysched.core.wanted import partitions
from raysched.core.work import Partition, Run, Seen
from raysched.gpu.geometries import geometry_of

A100 = 81920


def node(
    name: str, gpus: int, *, memory: int = A100, model: str = "A100-80GB", cpus: int = 16, **other: Any
) -> NodeInfo:
    """A node that Ray manages."""
    infos = tuple(GPUInfo(f"GPU-{name}-{index}", index, model, memory) for index in range(gpus))
    defaults: dict[str, Any] = {"backends": ("ray", "vm"), "ray_id": f"ray-{name}"}
    return NodeInfo(name=name, gpus=infos, cpus=cpus * WHOLE, memory=65536, **{**defaults, **other})


def mig_node(
    name: str,
    gpus: int = 1,
    *,
    model: str = "A100-80GB",
    memory: int = A100,
    enabled: bool = False,
    switchable: bool = True,
    mechanisms: tuple[Any, ...] = (),
    **other: Any,
) -> NodeInfo:
    """A node whose GPUs can be cut."""
    plain = node(name, gpus, model=model, memory=memory, **other)
    geometry = geometry_of(model, memory)
    assert geometry is not None, f"{model} can't be cut"
    geometry = replace(geometry, switchable=switchable)
    layout = Layout(enabled=enabled)
    infos = (replace(gpu, mig=geometry, layout=layout, mechanisms=mechanisms) for gpu in plain.gpus)
    return replace(plain, gpus=tuple(infos))


def changed(info: NodeInfo, index: int = 0, **fields: Any) -> NodeInfo:
    """The node with other fields of one of its GPUs."""
    gpus = list(info.gpus)
    gpus[index] = replace(gpus[index], **fields)
    return replace(info, gpus=tuple(gpus))


def instances(*cuts: tuple[int, int], name: str = "") -> tuple[Instance, ...]:
    """Instances that exist, each by its profile id and its start."""
    return tuple(Instance(f"MIG-{name}{profile}-{start}", Cut(profile, start)) for profile, start in cuts)


class World:
    """A scheduler whose invariants are checked after each step. Its clock stands still until moved."""

    def __init__(self, *nodes: NodeInfo) -> None:
        self.core = Scheduler()
        self.now = 1_000_000
        self.made = 0
        self.told: list[Fact] = []
        for info in nodes:
            self.do(NodeSeen(info))

    @property
    def state(self):
        return self.core.state

    def do(self, command: Command) -> list[Fact]:
        """Decide a command, grant what fits, check every invariant."""
        facts = self.core.handle(command, self.now)
        facts += self.core.schedule(self.now)
        validate(self.state)
        self.told += facts
        return facts

    def submit(self, id: str, request: Request, **fields: Any) -> Job:
        """Submit one job, or with `array` several; the first is returned."""
        kind = fields.pop("kind", "command")
        asked = JobRequest(id, fields.pop("name", id), kind, request, {"entrypoint": "true"}, **fields)
        self.do(Submit(f"key-{id}", "ana", (asked,)))
        return self.state.jobs.get(id) or self.state.jobs[f"{id}.0"]

    def job(self, id: str) -> Job:
        return self.state.jobs[id]

    def lease(self, job: str) -> Lease:
        """The lease that a job has now."""
        id = self.state.jobs[job].lease
        assert id is not None, f"{job} has no lease: it is {self.state.jobs[job].state}"
        return self.state.leases[id]

    def hold(self, job: str) -> list[Fact]:
        """Ray holds the job's lease."""
        return self.do(Held(self.lease(job).id, ()))

    def cut(self) -> list[Partition]:
        """The agents of all nodes do at once what they are asked to; what that was."""
        done: list[Partition] = []
        for name in list(self.state.nodes):
            for change in partitions(self.state, name):
                self.layout(name, change.gpu, self._changed(name, change))
                done.append(change)
        return done

    def _changed(self, name: str, change: Partition) -> Layout:
        layout = self.state.nodes[name].gpus[change.gpu].info.layout
        left = [there for there in layout.instances if there.cut not in change.destroy]
        for cut in change.create:
            self.made += 1
            left.append(Instance(f"MIG-{self.made}", cut))
        instances = tuple(sorted(left, key=lambda there: there.cut.start))
        return Layout(change.mig, instances, f"/tmp/{change.gpu}" if change.mps else "")

    def layout(self, name: str, gpu: str, layout: Layout) -> list[Fact]:
        """A GPU is cut like this now."""
        info = self.state.nodes[name].info
        gpus = tuple(replace(one, layout=layout) if one.uuid == gpu else one for one in info.gpus)
        seen = HostSeen if name in self.state.hosts else NodeSeen
        return self.do(seen(replace(info, gpus=gpus)))

    def start_of(self, job: str) -> list[int]:
        """Where the instances of a job's lease start."""
        slices = [slice for place in self.lease(job).places for slice in place.slices]
        return [slice.cut.start for slice in slices if slice.cut is not None]

    def run(self, job: str) -> None:
        """The job's lease is held, its GPUs are cut, and each of its ranks runs."""
        self.hold(job)
        self.cut()
        for rank in range(len(self.lease(job).places)):
            self.report(job, "running", rank=rank)

    def report(
        self, job: str, state: Any, *, code: int | None = None, rank: int = 0, attempt: int | None = None
    ) -> list[Fact]:
        number = self.job(job).attempt if attempt is None else attempt
        return self.do(Report(Seen(Run(job, number, rank), state, code=code)))

    def exit(self, job: str, code: int = 0, rank: int = 0) -> list[Fact]:
        """One rank of the job ends."""
        return self.report(job, "exited", code=code, rank=rank)

    def finish(self, job: str, code: int = 0) -> None:
        """The job runs, ends, and what it held is seen to be gone."""
        lease = self.lease(job)
        self.run(job)
        for rank in range(len(lease.places)):
            self.exit(job, code, rank)
        self.do(Gone(lease.id))

    def gpus(self, job: str) -> list[str]:
        """The GPUs of a job's lease."""
        return [slice.gpu for place in self.lease(job).places for slice in place.slices]

    def states(self) -> dict[str, str]:
        return {job.display: job.state for job in self.state.jobs.values()}

    def why(self, job: str) -> explain.Explanation:
        """Why a waiting job waits, with the smallest change."""
        look = next(look for look in survey(self.state, self.now) if look.job.id == job)
        return explain.waiting(self.state, look, change=True)


def share(fraction: float, **fields: Any) -> Request:
    """A request for a fraction of a GPU."""
    return Request(share=round(fraction * WHOLE), sharing="fraction", **fields)


def memory(mib: int, **fields: Any) -> Request:
    """A request for so much of a GPU's memory."""
    return Request(memory=mib, sharing="fraction", **fields)


def mig(profile: str, **fields: Any) -> Request:
    """A request for MIG instances."""
    return Request(mig_profile=profile, sharing="mig", **fields)


def whole(count: int = 1, **fields: Any) -> Request:
    """A request for whole GPUs."""
    return Request(gpus=count, **fields)
