"""Writes the journal of this version, for later ones to read: NAME.sqlite, and in NAME.json what it folds to,
in words that stay the same. `python tests/store/journals/make.py NAME`, where NAME is the version.

The journal of a version that was released is never written again. The story below tells every kind of fact; a
test fails when a new kind is not in it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysched.core import decide
from raysched.core.commands import (
    AddHost,
    Cancel,
    Command,
    Cordon,
    CutRefused,
    Denied,
    Gone,
    Held,
    HostOut,
    HostSeen,
    Inventory,
    JobRequest,
    Measured,
    NodeGone,
    NodeSeen,
    Once,
    Outside,
    OwnerLost,
    Placed,
    Release,
    RemoveHost,
    Report,
    SetClock,
    Submit,
    Tick,
    Usage,
)
from raysched.core.host import Host
from raysched.core.lease import Group, Place, Slice
from raysched.core.measured import Policy, Stretch, TenantUse
from raysched.core.mig import Instance, Layout
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import WHOLE, Request
from raysched.core.scheduler import Scheduler
from raysched.core.state import State
from raysched.core.wanted import partitions
from raysched.core.work import Run, Seen
from raysched.gpu.geometries import geometry_of
from raysched.store.journal import Journal

HERE = Path(__file__).parent
FRACTION = Request(share=2500, memory=20480, sharing="fraction", cpus=WHOLE, host_memory=1024)
MEMORY = Request(memory=8192, sharing="fraction", gpu_types=("A100",), backends=("ray", "vm"))
WHOLE_GPU = Request(share=WHOLE)
INSTANCE = Request(sharing="mig", mig_profile="3g.40gb", isolation="hard")


class Story:
    """What happens to a ledger, written down as it does it."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.core = Scheduler()
        self.now = 1_700_000_000_000

    def tell(self, *told: Command) -> None:
        """Decide commands one after the other, a tenth of a second apart."""
        for command in told:
            self.now += 100
            facts = self.core.handle(command, self.now) + self.core.schedule(self.now)
            if facts:
                self.seq = self.journal.append(facts)

    def submit(self, id: str, request: Request, kind: Any = "command", **fields: Any) -> None:
        """Submit one job or one array."""
        spec = {"name": id, "entrypoint": "python train.py --name '\u00fc'", "resources": {"gpus": 1}}
        asked = JobRequest(id, id, kind, request, spec, **fields)
        self.tell(Submit(f"key-{id}", "ana", (asked,)))

    def lease(self, job: str) -> str:
        """The lease that a job has."""
        return self.core.state.jobs[job].lease or ""

    def hold(self, job: str) -> None:
        """Ray holds a job's lease."""
        self.tell(Held(self.lease(job), (Group(f"pg-{job}", 0),)))

    def report(self, job: str, state: Any, code: int | None = None) -> None:
        """A backend saw a job's run."""
        attempt = self.core.state.jobs[job].attempt
        self.tell(Report(Seen(Run(job, attempt, 0), state, code=code)))

    def run(self, job: str, code: int | None = None) -> None:
        """A job runs, and with a code it ends."""
        self.hold(job)
        self.report(job, "running")
        if code is not None:
            lease = self.lease(job)
            self.report(job, "exited", code)
            self.tell(Gone(lease))


def nodes(story: Story) -> None:
    """Two nodes of a Ray cluster and one beside it; what others use of them; one is lost."""
    for name, count, ray in (("node-a", 2, True), ("node-b", 1, True), ("node-c", 1, False)):
        gpus = tuple(GPUInfo(f"GPU-{name}-{index}", index, "A100-80GB", 81920) for index in range(count))
        backends = ("ray", "vm") if ray else ("vm",)
        ray_id = f"ray-{name}" if ray else None
        story.tell(NodeSeen(NodeInfo(name, backends, gpus, 64 * WHOLE, 262_144, ray_id, "550.54")))
    story.tell(Usage("node-b", "GPU-node-b-0", 512), Outside("node-b", ("GPU-node-b-0",)))


def jobs(story: Story) -> None:
    """Jobs that succeed, fail, are tried again, given back, cancelled, timed out and forgotten."""
    story.submit("good", FRACTION)
    story.run("good", 0)
    story.submit("again", MEMORY, retries=1)
    story.run("again", 1)
    story.run("again")
    story.submit("many", FRACTION, array=3, priority=5, package="ab" * 32)
    story.run("many.0", 137)
    story.run("many.1")
    story.tell(Once("key-cancel", "digest", ("many.1",), (Cancel("many.1", "ben"),)))
    story.submit("slow", FRACTION, max_runtime=1000)
    story.run("slow")
    story.now += 5000
    story.tell(Tick())
    story.submit("denied", FRACTION)
    story.tell(Denied(story.lease("denied"), "image registry down"))
    story.tell(Gone("denied.1"))


def leases(story: Story) -> None:
    """Leases of programs: given back, lost with their owner, and held."""
    for id, owner in (("pool", "program-1"), ("lost", "program-2"), ("kept", "program-1")):
        story.submit(id, FRACTION, "lease", owner=owner)
        story.hold(id)
    story.tell(Release("pool"), Gone("pool.1"), OwnerLost("program-2"), Gone("lost.1"))


def clock(story: Story) -> None:
    """The ledger starts, and later the wall clock jumps back by a minute."""
    story.tell(SetClock("boot-1", 60_000, 0))
    story.submit("early", FRACTION)
    story.now -= 60_000
    story.tell(SetClock("boot-1", 61_000, -60_000))


def mig(story: Story) -> None:
    """A GPU is cut for a job, after its driver refused; it fails; its node is drained."""
    geometry = geometry_of("A100-80GB", 81920)
    gpu = GPUInfo("GPU-node-d-0", 0, "A100-80GB", 81920, geometry, mechanisms=("mig",))
    node = NodeInfo("node-d", ("ray", "vm"), (gpu,), 64 * WHOLE, 262_144, "ray-node-d", "550.54")
    story.tell(NodeSeen(node))
    story.submit("sliced", INSTANCE)
    story.hold("sliced")
    (change,) = partitions(story.core.state, "node-d")
    story.tell(CutRefused("node-d", gpu.uuid, None, "in use by another client"), Gone("sliced.1"))
    story.now += 600_000
    story.tell(Tick())
    story.hold("sliced")
    (change,) = partitions(story.core.state, "node-d")
    instances = tuple(Instance(f"MIG-{cut.start}", cut) for cut in change.create)
    cut = replace(gpu, layout=Layout(change.mig, instances))
    story.tell(NodeSeen(replace(node, gpus=(cut,))))
    story.run("sliced")
    story.tell(Usage("node-d", gpu.uuid, 64, ("MIG-of-a-stranger",)))
    story.tell(NodeSeen(replace(node, gpus=(replace(cut, fault="XID 79"),))), Cordon("node-d", True))


def hosts(story: Story) -> None:
    """Hosts behind SSH: one is out of reach, one is removed once its job has ended."""
    story.tell(Inventory((Host("host-a", "10.0.0.5"),)), HostOut("host-a", "it does not answer"))
    story.tell(AddHost(Host("host-b", "10.0.0.6", "ana", 2222)))
    gpu = GPUInfo("GPU-host-b-0", 0, "T4", 15360)
    story.tell(HostSeen(NodeInfo("host-b", ("vm",), (gpu,), 8 * WHOLE, 32_768)))
    story.submit("far", Request(share=WHOLE, gpu_types=("T4",)))
    story.report("far", "running")
    story.tell(RemoveHost("host-b"))
    lease = story.lease("far")
    story.report("far", "exited", 0)
    story.tell(Gone(lease, ("host-b",)), Tick())
    twin(story)


def twin(story: Story) -> None:
    """A host was a node, and is then found to be one of Ray's, on which a job of the vm backend ends."""
    gpu = GPUInfo("GPU-host-c-0", 0, "L4", 23_034)
    story.tell(AddHost(Host("host-c", "10.0.0.7")))
    story.tell(HostSeen(NodeInfo("host-c", ("vm",), (gpu,), 8 * WHOLE, 32_768)))
    story.tell(NodeSeen(NodeInfo("node-r", ("ray",), (gpu,), 8 * WHOLE, 32_768, ray_id="ray-r")))
    story.tell(HostSeen(NodeInfo("host-c", ("vm",), (gpu,), 8 * WHOLE, 32_768)))
    story.submit("both", Request(share=WHOLE, gpu_types=("L4",), backends=("vm",)))
    lease = story.lease("both")
    story.tell(Held(lease, (Group("group-of-both", 0),)))
    story.report("both", "running")
    story.report("both", "exited", 0)
    story.tell(Gone(lease, ("node-r",), "vm"))


def site(story: Story) -> None:
    """A site of another scheduler: a job waits there, is put somewhere, and a second one still waits.
    Ray then has a node of the same name."""
    gpu = GPUInfo("SLURM-node-s-0", 0, "a100", 81920, parts=4)
    node = NodeInfo("node-s", ("slurm",), (gpu,), 64 * WHOLE, 262_144, site=True, closed="drained: fans")
    story.tell(NodeSeen(node))
    for id in ("queued", "waiting"):
        story.submit(id, Request(share=3000, sharing="fraction", backends=("slurm",)))
        story.tell(Report(Seen(Run(id, 1, 0), "queued", reason="others are before it (Priority)")))
    story.report("queued", "running")
    place = Place("node-s", (Slice(gpu.uuid, 5000, 40960),), WHOLE, 0)
    story.tell(Placed(story.lease("queued"), (place,)))
    lent = NodeInfo("node-s-gone.1", ("ray",), (), 64 * WHOLE, 262_144, "ray-node-s", lease="gone.1")
    story.tell(NodeSeen(lent), NodeGone(lent.name), Tick())
    story.tell(NodeSeen(NodeInfo("node-s", ("ray",), (), 64 * WHOLE, 262_144, "ray-node-s")))


def use(story: Story) -> None:
    """What a lease uses is measured: more than it has, then less."""
    lease = story.lease("kept")
    gpu = story.core.state.leases[lease].places[0].slices[0].gpu
    node = story.core.state.leases[lease].places[0].node
    for memory in (50_000, 10_000, 60_000):
        seen = (TenantUse(lease, gpu, memory),)
        story.tell(Usage(node, gpu, 0, (), seen, Policy(over_memory="end")))
    story.tell(Measured(node, (Stretch(lease, gpu, 90_000, 60_000, 30_000, 60_000, 2_000, 9_000),)))
    story.tell(Measured(node, (Stretch(lease, gpu, 99_000, 9_000, 30_000, 60_000),)))


def last_things(story: Story) -> None:
    """A whole GPU, jobs that wait, a node that is lost, old jobs that are forgotten."""
    story.submit("whole", WHOLE_GPU)
    story.submit("waits", Request(gpus=2, share=WHOLE))
    story.submit("first", Request(gpus=2, share=WHOLE), priority=9)
    story.tell(NodeGone("node-b"))
    decide.JOBS_KEPT = 2  # so that the story need not be long
    story.tell(Tick())


def told(state: State) -> dict[str, Any]:
    """A state in words that stay the same from version to version."""
    return {
        "jobs": {
            job.id: {
                "state": job.state,
                "user": job.user,
                "attempt": job.attempt,
                "failures": job.failures,
                "code": job.code,
                "reason": job.reason,
                "lease": job.lease,
                "submitted": job.submitted,
                "ended": job.ended,
                "gpus": [slice.gpu for place in job.places for slice in place.slices],
            }
            for job in sorted(state.jobs.values(), key=lambda job: job.id)
        },
        "leases": {lease.id: lease.state for _, lease in sorted(state.leases.items())},
        "waiting": [id for *_, id in state.waiting],
        "keys": sorted(state.keys),
        "gpus": {
            gpu.info.uuid: {
                "mode": gpu.mode,
                "tenants": sorted(gpu.tenants),
                "share_used": gpu.share_used,
                "memory_used": gpu.memory_used,
                "foreign": gpu.foreign,
                "outside": gpu.outside,
            }
            for node in state.nodes.values()
            for gpu in node.gpus.values()
        },
        "lost": sorted(node.info.name for node in state.nodes.values() if node.lost is not None),
    }


def main(name: str) -> None:
    path = HERE / f"{name}.sqlite"
    path.unlink(missing_ok=True)
    journal = Journal(f"sqlite:///{path}")
    story = Story(journal)
    nodes(story)
    clock(story)
    jobs(story)
    journal.snapshot(story.core.state, story.seq)
    leases(story)
    mig(story)
    hosts(story)
    site(story)
    use(story)
    last_things(story)
    journal.close()
    for beside in ("lock", "mark"):
        path.with_suffix(f".sqlite.{beside}").unlink(missing_ok=True)
    text = json.dumps(told(story.core.state), indent=1, ensure_ascii=True)
    path.with_suffix(".json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
