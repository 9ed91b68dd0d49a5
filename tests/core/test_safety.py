"""Random lives of a ledger. Each step checks every invariant; each test is named after what it promises."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raysched.core.codec import decode_fact, decode_state, encode_fact, encode_state
from raysched.core.commands import (
    Cancel,
    Cordon,
    CutRefused,
    Denied,
    Gone,
    Held,
    JobRequest,
    Measured,
    NodeGone,
    NodeSeen,
    Outside,
    OwnerLost,
    Release,
    Report,
    Submit,
    Tick,
    Usage,
)
from raysched.core.decide import NODE_PATIENCE
from raysched.core.evolve import evolve
from raysched.core.facts import Fact
from raysched.core.gpu_views import Usage as Readings
from raysched.core.gpu_views import gpus_view
from raysched.core.jobs import ENDED, NEXT
from raysched.core.measured import Policy, Stretch, TenantUse
from raysched.core.mig import DAEMON, UNCUT, Cut, Instance, Layout
from raysched.core.node import NodeInfo
from raysched.core.request import Request
from raysched.core.scheduler import Scheduler
from raysched.core.state import State
from raysched.core.validate import validate
from raysched.core.views import jobs_view, queue_view
from raysched.core.wanted import partitions, wanted
from raysched.core.work import Partition, Run, Seen
from raysched.errors import NotFound, Refused
from tests.core.world import mig_node, node

NODES = {
    "a": mig_node("a", 2, mechanisms=("hami",)),
    "b": mig_node("b", 3, model="A30", memory=24576, cpus=4, mechanisms=("mps",)),
    "c": node("c", 1, ray_id=None, backends=("vm",)),
    "d": mig_node("d", 1, ray_id=None, backends=("vm",), switchable=False, enabled=True),
}
INFOS = {gpu.uuid: gpu for info in NODES.values() for gpu in info.gpus}
CUTTABLE = sorted(uuid for uuid, info in INFOS.items() if info.mig is not None)

shares = st.builds(
    Request,
    gpus=st.integers(1, 3),
    share=st.integers(1, 9999),
    memory=st.none() | st.integers(1, 30_000),
    sharing=st.just("fraction"),
    cpus=st.sampled_from([0, 0, 5000, 40_000]),
    backends=st.sampled_from([("vm",), ("ray",), ("vm", "ray")]),
)
memories = st.builds(Request, memory=st.integers(1, 60_000), sharing=st.just("fraction"))
wholes = st.builds(
    Request,
    gpus=st.integers(0, 5),
    gpu_types=st.sampled_from([(), ("A30",), ("A100", "H100")]),
    cpus=st.sampled_from([0, 10_000]),
    host_memory=st.sampled_from([0, 30_000]),
    backends=st.sampled_from([("vm",), ("ray",)]),
)
isolations = st.sampled_from(["soft", "soft", "hard"])
instances = st.builds(
    Request,
    gpus=st.integers(1, 3),
    mig_profile=st.sampled_from(
        ["1g.10gb", "1g.10gb+me", "2g.20gb", "3g.39gb", "7g.80gb", "1g.6gb", "2g.12gb"]
    ),
    sharing=st.just("mig"),
    isolation=isolations,
    backends=st.sampled_from([("vm",), ("ray",)]),
)
sized = st.builds(
    Request,
    memory=st.integers(1, 50_000),
    sharing=st.sampled_from(["mig", "fraction"]),
    isolation=isolations,
    or_mig=st.booleans(),
    or_mps=st.booleans(),
    limitable=st.booleans(),
)
turns = st.builds(
    Request,
    gpus=st.integers(1, 2),
    share=st.none() | st.integers(1, 10_000),
    memory=st.none() | st.integers(1, 30_000),
    sharing=st.sampled_from(["time_slice", "time_slice", "mps"]),
    isolation=isolations,
)
requests = shares | memories | wholes | instances | sized | turns


class Ledger(RuleBasedStateMachine):
    """Everything that can happen to a ledger, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Scheduler()
        self.facts: list[Fact] = []
        self.now = 1
        self.count = 0
        self.before: dict[str, str] = {}
        self.layouts = {uuid: info.layout for uuid, info in INFOS.items()}
        self.faults: dict[str, str] = {}
        self.made = 0

    def described(self, name: str, count: int = 3) -> NodeInfo:
        """A node as its agent sees it: how its first GPUs are cut and whether they are well."""
        gpus = (
            replace(gpu, layout=self.layouts[gpu.uuid], fault=self.faults.get(gpu.uuid, ""))
            for gpu in NODES[name].gpus[:count]
        )
        return replace(NODES[name], gpus=tuple(gpus))

    def cut(self, change: Partition) -> None:
        """What a driver does that is asked for this; it would not destroy or switch what is in use."""
        layout = self.layouts[change.gpu]
        left = [there for there in layout.instances if there.cut not in change.destroy]
        made = [cut for cut in change.create if cut not in {there.cut for there in left}]
        self.made += len(made)
        left += [Instance(f"MIG-{self.made}-{cut.profile}-{cut.start}", cut) for cut in made]
        mps = f"pipe-{change.gpu}" if change.mps else ""
        instances = tuple(sorted(left, key=lambda there: there.cut.start))
        self.layouts[change.gpu] = Layout(change.mig, instances, mps)

    def do(self, *commands) -> None:
        for command in commands:
            with suppress(Refused, NotFound):
                self.facts += self.core.handle(command, self.now)
        self.facts += self.core.schedule(self.now)

    def pick(self, data, things):
        return data.draw(st.sampled_from(sorted(things)))

    @rule(name=st.sampled_from(sorted(NODES)), gpus=st.integers(0, 3))
    def node_joins_or_changes(self, name, gpus):
        self.do(NodeSeen(self.described(name, gpus)))

    @rule(name=st.sampled_from(sorted(NODES)), refused=st.sampled_from([False, False, True]), data=st.data())
    def an_agent_cuts_its_gpus(self, name, refused, data):
        asked = partitions(self.core.state, name)
        for change in asked:
            if refused:
                cuts = [None, DAEMON, *change.destroy, *change.create]
                self.do(CutRefused(name, change.gpu, data.draw(st.sampled_from(cuts)), "no"))
            else:
                self.cut(change)
        if asked:
            self.do(NodeSeen(self.described(name)))

    @rule(gpu=st.sampled_from(CUTTABLE), data=st.data())
    def somebody_cuts_a_gpu_by_hand(self, gpu, data):
        profiles = INFOS[gpu].mig.profiles  # type: ignore[union-attr]
        places = [(profile, start) for profile in profiles for start in profile.starts]
        taken, left = 0, []
        for profile, start in data.draw(st.lists(st.sampled_from(places), max_size=3)):
            cells = (1 << profile.size) - 1 << start
            if not taken & cells:
                taken |= cells
                self.made += 1
                left.append(Instance(f"MIG-hand-{self.made}", Cut(profile.id, start)))
        self.layouts[gpu] = data.draw(st.sampled_from([UNCUT, Layout(True, tuple(left))]))
        self.do(NodeSeen(self.described(gpu.split("-")[1])))

    @rule(gpu=st.sampled_from(sorted(INFOS)), fault=st.sampled_from(["", "XID 79"]))
    def a_gpu_fails_or_is_well_again(self, gpu, fault):
        self.faults[gpu] = fault
        self.do(NodeSeen(self.described(gpu.split("-")[1])))

    @rule(name=st.sampled_from(sorted(NODES)), on=st.booleans())
    def a_node_is_drained_or_used_again(self, name, on):
        self.do(Cordon(name, on))

    @rule(name=st.sampled_from(sorted(NODES)))
    def node_is_lost(self, name):
        self.do(NodeGone(name))

    @rule(
        request=requests,
        array=st.none() | st.integers(2, 5),
        kind=st.sampled_from(["command", "command", "lease"]),
        retries=st.integers(0, 2),
        priority=st.integers(-1, 1),
    )
    def submit(self, request, array, kind, retries, priority):
        self.count += 1
        id = f"j{self.count}"
        owner = f"owner{self.count % 3}" if kind == "lease" else None
        spec = {"entrypoint": "true"}
        asked = JobRequest(
            id, id, kind, request, spec, array, owner=owner, retries=retries, priority=priority
        )
        self.do(Submit(f"k{self.count}", "ana", (asked,)))

    @precondition(lambda self: self.core.state.leases)
    @rule(data=st.data())
    def ray_holds_a_lease(self, data):
        self.do(Held(self.pick(data, self.core.state.leases), ()))

    @precondition(lambda self: self.core.state.leases)
    @rule(data=st.data(), final=st.booleans())
    def an_engine_says_no(self, data, final):
        self.do(Denied(self.pick(data, self.core.state.leases), "no", final))

    @precondition(lambda self: self.core.state.leases)
    @rule(data=st.data())
    def a_lease_is_gone(self, data):
        self.do(Gone(self.pick(data, self.core.state.leases)))

    @precondition(lambda self: self.core.state.jobs)
    @rule(
        data=st.data(),
        state=st.sampled_from(["running", "exited", "lost"]),
        code=st.sampled_from([0, 0, 1, 137]),
        rank=st.integers(0, 2),
        old=st.integers(0, 1),
    )
    def a_run_is_reported(self, data, state, code, rank, old):
        job = self.core.state.jobs[self.pick(data, self.core.state.jobs)]
        run = Run(job.id, job.attempt - old, rank)
        self.do(Report(Seen(run, state, code=code if state == "exited" else None)))

    @precondition(lambda self: self.core.state.jobs)
    @rule(data=st.data(), release=st.booleans())
    def a_job_is_cancelled_or_released(self, data, release):
        job = self.core.state.jobs[self.pick(data, self.core.state.jobs)]
        self.do(Release(job.id) if release and job.kind == "lease" else Cancel(job.id, "ana"))

    @rule(number=st.integers(0, 2))
    def an_owner_dies(self, number):
        self.do(OwnerLost(f"owner{number}"))

    @rule(
        gpu=st.integers(0, 1),
        foreign=st.sampled_from([0, 0, 500, 80_000]),
        outside=st.booleans(),
        which=st.booleans(),
    )
    def a_stranger_uses_a_gpu(self, gpu, foreign, outside, which):
        uuid = f"GPU-a-{gpu}"
        known = [there.uuid for there in self.layouts[uuid].instances[:1]] if which and foreign else []
        self.do(Usage("a", uuid, foreign, tuple(known)), Outside("a", (uuid,) if outside else ()))

    @rule(
        data=st.data(),
        gpu=st.integers(0, 1),
        memory=st.sampled_from([None, 0, 500, 30_000, 80_000]),
        action=st.sampled_from(["report", "warn", "end"]),
    )
    def leases_are_measured(self, data, gpu, memory, action):
        uuid, known = f"GPU-a-{gpu}", self.core.state.leases
        ids = data.draw(st.lists(st.sampled_from([*known, "unknown.1"]), max_size=3, unique=True))
        uses = tuple(TenantUse(id, uuid, memory) for id in ids)
        stretches = tuple(Stretch(id, uuid, self.now, 2_000, memory or 0, memory or 0) for id in ids)
        self.do(Usage("a", uuid, 0, (), uses, Policy(action, grace=5_000)), Measured("a", stretches))
        over = [o for node in self.core.state.nodes.values() for gpu in node.gpus.values() for o in gpu.over]
        assert all(each.used > each.held for each in over), "nobody is told of who keeps to its share"

    @rule(step=st.sampled_from([1, 5_000, NODE_PATIENCE]))
    def time_goes_by(self, step):
        self.now += step
        self.do(Tick())

    @invariant()
    def no_gpu_is_granted_beyond_its_share_or_memory(self):
        validate(self.core.state)

    @invariant()
    def a_job_only_goes_where_the_table_lets_it(self):
        for id, job in self.core.state.jobs.items():
            was = self.before.get(id, "waiting")
            # one step may go through several states, such as granted and bound at once
            assert job.state == was or was not in ENDED, f"{id} left its end {was}"
            assert job.state == was or _reachable(was, job.state), f"{id}: {was} -> {job.state}"
        self.before = {id: job.state for id, job in self.core.state.jobs.items()}

    @invariant()
    def nothing_is_launched_without_a_bound_lease(self):
        for backend in ("vm", "ray"):
            for launch in wanted(self.core.state, backend).launches:
                assert self.core.state.leases[launch.lease].state == "bound"
                assert self.core.state.jobs[launch.run.job].lease == launch.lease

    @invariant()
    def a_bound_lease_has_what_it_was_given(self):
        """Each of its instances exists as the node was last seen, and no other tenant or stranger is told of
        it."""
        told: set[str] = set()
        for lease in self.core.state.leases.values():
            if lease.state != "bound":
                continue
            for place in lease.places:
                gpus = self.core.state.nodes[place.node].gpus
                for slice in place.slices:
                    if slice.cut is None:
                        assert not gpus[slice.gpu].info.layout.enabled or not gpus[slice.gpu].present
                        continue
                    there = gpus[slice.gpu].instance(slice.cut)
                    assert not gpus[slice.gpu].present or (there and there.uuid == slice.instance)
                    assert slice.device not in told
                    told.add(slice.device)

    @invariant()
    def every_view_can_be_shown(self):
        state = self.core.state
        views = [queue_view(state, self.now), gpus_view(state, Readings(), self.now)]
        json.dumps([*views, jobs_view(state, state.jobs.values(), self.now)])

    def teardown(self):
        self.the_journal_folds_to_the_same_state()
        self.everything_comes_to_an_end()

    def the_journal_folds_to_the_same_state(self):
        folded = State()
        for fact in self.facts:
            evolve(folded, decode_fact(*json.loads(json.dumps(encode_fact(fact)))))
        assert folded == self.core.state
        assert decode_state(json.loads(json.dumps(encode_state(folded)))) == folded

    def everything_comes_to_an_end(self):
        """Liveness: with all nodes back and every report coming in, all jobs end and nothing is held."""
        self.faults = {}
        self.layouts["GPU-d-0"] = NODES["d"].gpus[0].layout  # nobody else can switch it
        self.do(*(NodeSeen(self.described(name)) for name in NODES), Outside("a", ()))
        self.do(*(Cordon(name, on=False) for name in NODES))
        self.do(*(Usage("a", f"GPU-a-{index}", 0) for index in range(2)))
        self.do(*(OwnerLost(f"owner{number}") for number in range(3)))
        for _ in range(200):
            state = self.core.state
            if not state.leases and not state.waiting:
                break
            self.now += 10_000
            self.do(Tick(), *(Held(lease, ()) for lease in state.leases))
            for name in NODES:
                for change in partitions(state, name):
                    self.cut(change)
                self.do(NodeSeen(self.described(name)))
            self.do(*(_exit(launch.run) for name in ("vm", "ray") for launch in wanted(state, name).launches))
            self.do(*(_exit(stop.run) for name in ("vm", "ray") for stop in wanted(state, name).stops))
            self.do(*(Gone(lease) for lease in list(state.leases)))
            validate(state)
        assert not self.core.state.leases
        assert all(job.state in ENDED for job in self.core.state.jobs.values())


def _exit(run: Run) -> Report:
    return Report(Seen(run, "exited", code=0))


def _reachable(start: str, end: str) -> bool:
    seen, todo = set(), [start]
    while todo:
        for state in NEXT[todo.pop()] - seen:  # type: ignore[index]
            seen.add(state)
            todo.append(state)
    return end in seen


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
