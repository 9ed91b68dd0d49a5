"""The production core beside the model of `model.py`: the same random commands, and agreement after each.

Each property is named after what it promises.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from raysched.core import decide, facts
from raysched.core.codec import encode_state
from raysched.core.commands import (
    Cancel,
    Command,
    CutRefused,
    Denied,
    Drain,
    Gone,
    Held,
    HostSeen,
    Inventory,
    JobRequest,
    NodeGone,
    NodeSeen,
    Once,
    Outside,
    OwnerLost,
    Release,
    Report,
    Submit,
    Tick,
    Usage,
)
from raysched.core.host import Host
from raysched.core.mig import DAEMON, Cut, Instance, Layout
from raysched.core.request import WHOLE
from raysched.core.scheduler import Scheduler
from raysched.core.validate import validate
from raysched.core.wanted import partitions, wanted
from raysched.core.work import Run, Seen
from raysched.errors import RayschedError
from tests.core.beyond_ray import BeyondRay
from tests.core.fleet import CARDS, EVERYWHERE, GPUS, HOSTS, NODES, SITE, requests
from tests.core.model import LOST, PATIENCE, REFUSAL, REST, Forbidden, Model
from tests.core.model_room import cells

KEPT = 2
"""How many ended jobs the ledger of these tests remembers: few, so that some are forgotten."""


nodes = st.sampled_from(sorted(EVERYWHERE))


class Twins(BeyondRay):
    """The core and the model, told the same."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Scheduler()
        self.model = Model(KEPT)
        self.now = 1_000_000
        self.count = 0
        self.answers: dict[str, tuple[Submit, tuple[str, ...]]] = {}
        self.layouts = {uuid: gpu.layout for uuid, gpu in CARDS.items()}
        self.faults: dict[str, str] = {}
        self.made = 0

    # ------------------------------------------------------------ one step

    def do(self, command: Command) -> None:
        """Tell both, see that both obey or both refuse, and let the model judge every grant."""
        try:
            self.model.do(command, self.now)
            allowed = True
        except Forbidden:
            allowed = False
        try:
            decided = self.core.handle(command, self.now)
            obeyed = True
        except RayschedError:
            decided, obeyed = [], False
        assert obeyed == allowed, f"the core {'obeys' if obeyed else 'refuses'} {command}, unlike the model"
        for fact in decided:
            if isinstance(fact, facts.Forgotten):
                self.model.forget(fact.jobs)
        self.schedule()

    def schedule(self) -> None:
        """Whoever's turn it is gets a place where there is one; nobody gets what the model forbids."""
        first = self.model.head()
        due = first is not None and self.model.fits(first.asked.request)
        for fact in self.core.schedule(self.now):
            if isinstance(fact, facts.Granted):
                assert not due or fact.lease.job == first.id, f"{first.id} is first, and was passed over"
                due = False
                self.model.grant(fact.lease)
        assert not due, f"{first.id} is first and fits, and has to wait"

    def frozen(self) -> dict:
        """All that the core knows, to see that nothing of it changes."""
        return encode_state(self.core.state)

    def pick(self, data, things):
        """One of them; the newest first, where most is going on."""
        return data.draw(st.sampled_from(list(things)[::-1]))

    # ------------------------------------------------------------ what happens

    @initialize()
    def the_nodes_join(self):
        self.do(Inventory((Host("h", "h"),)))
        for name in [*NODES, "h", *SITE]:
            self.describe(name)

    def describe(self, name, gpus=3):
        """The agent of a node says what is there: the first so many GPUs, as they are now."""
        there = EVERYWHERE[name].gpus[:gpus]
        now = [
            replace(gpu, layout=self.layouts[gpu.uuid], fault=self.faults.get(gpu.uuid, "")) for gpu in there
        ]
        seen = HostSeen if name in HOSTS else NodeSeen
        self.do(seen(replace(EVERYWHERE[name], gpus=tuple(now))))

    @rule(name=nodes, gpus=st.sampled_from([0, 1, 2, 3, 3]))
    def a_node_joins_or_changes(self, name, gpus):
        self.describe(name, gpus)

    @rule(name=nodes, gpu=st.sampled_from(GPUS), fault=st.booleans())
    def a_gpu_fails_or_is_well_again(self, name, gpu, fault):
        self.faults[gpu] = "XID 79" if fault else ""
        self.describe(name)

    @rule(name=st.sampled_from([*EVERYWHERE, "nowhere"]), on=st.booleans())
    def a_node_is_drained(self, name, on):
        self.do(Drain(name, on))

    @rule(refuse=st.booleans())
    def the_agents_cut_their_gpus(self, refuse):
        """Each agent does what is asked of it, or its driver refuses the first thing."""
        for name, info in EVERYWHERE.items():
            for gpu in info.gpus:
                asked = [part for part in partitions(self.core.state, name) if part.gpu == gpu.uuid]
                for part in asked:
                    self.nobody_loses_anything_by(name, part)
                    self.refuse(name, part) if refuse else self.cut(name, part)

    def refuse(self, name, part):
        """A driver does not do the first thing."""
        first = (*part.destroy, *part.create, DAEMON)[0]
        switches = part.mig != self.layouts[part.gpu].enabled
        self.do(CutRefused(name, part.gpu, None if switches else first, "busy"))

    def nobody_loses_anything_by(self, name, part):
        """No agent is asked to take from anybody what he has or uses."""
        card = self.model.machines[name].cards[part.gpu]
        busy = [there.cut for there in self.model.busy(card)]
        assert not set(part.destroy) & {*self.model.held_cuts(card), *busy}
        if part.mig != card.info.layout.enabled:
            assert not card.used_by_strangers
            assert all(grant.state != "bound" for grant, _ in self.model.slices(part.gpu))

    def cut(self, name, part):
        """A driver does it all, and the agent tells."""
        there = self.layouts[part.gpu].instances
        left = [instance for instance in there if instance.cut not in part.destroy]
        assert part.mig or not left, "the mode is to be switched off while instances are there"
        for cut in part.create:
            self.made += 1
            beside = [cells(CARDS[part.gpu].mig, other.cut) for other in left]
            assert not set().union(*beside) & cells(CARDS[part.gpu].mig, cut), "two MIG instances overlap"
            left.append(Instance(f"MIG-{self.made}", cut))
        mps = self.layouts[part.gpu].mps or f"pipe-{self.made}" if part.mps else ""
        self.made += 1
        self.layouts[part.gpu] = replace(layout_of(part.mig, left), mps=mps)
        self.describe(name)

    @rule(gpu=st.sampled_from([gpu.uuid for gpu in NODES["b"].gpus]))
    def a_daemon_dies(self, gpu):
        self.layouts[gpu] = replace(self.layouts[gpu], mps="")
        self.describe("b")

    @rule(
        data=st.data(),
        gpu=st.sampled_from(sorted(uuid for uuid in GPUS if CARDS[uuid].mig)),
        anew=st.booleans(),
    )
    def somebody_cuts_a_gpu_by_hand(self, data, gpu, anew):
        """An instance is made, whatever there was; or all are destroyed and the mode is switched."""
        geometry, layout = CARDS[gpu].mig, self.layouts[gpu]
        if anew:
            profile = data.draw(st.sampled_from(geometry.profiles))
            cut = Cut(profile.id, data.draw(st.sampled_from(profile.starts)))
            self.made += 1
            left = [one for one in layout.instances if not cells(geometry, one.cut) & cells(geometry, cut)]
            self.layouts[gpu] = layout_of(True, [*left, Instance(f"MIG-{self.made}", cut)])
        else:
            self.layouts[gpu] = layout_of(not geometry.switchable or not layout.enabled, [])
        for name, info in EVERYWHERE.items():
            if any(one.uuid == gpu for one in info.gpus):
                self.describe(name)

    @rule(name=nodes)
    def a_node_is_lost(self, name):
        self.do(NodeGone(name))

    # ------------------------------------------------------------ jobs

    @rule(
        request=requests,
        array=st.none() | st.integers(2, 4),
        kind=st.sampled_from(["command", "command", "lease"]),
        retries=st.integers(0, 2),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        max_runtime=st.none() | st.just(5_000),
        preemptible=st.booleans(),
    )
    def a_job_comes(self, request, array, kind, **fields):
        self.submit_one(request, kind, array=array, **fields)

    def submit_one(self, request, kind="command", preemptible=True, **fields):
        self.count += 1
        owner = f"owner{self.count % 3}" if kind == "lease" else None
        spec = {"entrypoint": "true", "preemptible": preemptible}
        asked = JobRequest(f"j{self.count}", "job", kind, request, spec, owner=owner, **fields)
        command = Submit(f"k{self.count}", "ana", (asked,), f"digest{self.count}")
        self.do(command)
        if command.key in self.core.state.keys:
            self.answers[command.key] = command, self.core.state.keys[command.key]

    @rule(one=requests, other=requests)
    def two_jobs_come_together_or_none_does(self, one, other):
        self.count += 1
        spec = {"entrypoint": "true"}
        jobs = [
            JobRequest(f"j{self.count}{letter}", "job", "command", request, spec)
            for letter, request in (("x", one), ("y", other))
        ]
        self.do(Submit(f"k{self.count}", "ana", tuple(jobs)))
        known = {job.id for job in jobs} & self.core.state.jobs.keys()
        assert len(known) in (0, 2), "a submission was taken in part"

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def a_repeated_key_gets_the_first_answer(self, data):
        command, answer = self.answers[data.draw(st.sampled_from(sorted(self.answers)))]
        before = self.frozen()
        assert self.core.handle(command, self.now) == []
        assert self.core.state.keys[command.key] == answer
        assert self.frozen() == before

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def a_used_key_is_refused_for_anything_else(self, data):
        command, _ = self.answers[data.draw(st.sampled_from(sorted(self.answers)))]
        self.do(replace(command, digest="another"))

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), key=st.sampled_from(["one", "two"]), again=st.booleans())
    def a_command_is_given_once(self, data, key, again):
        """The key of another job's command is refused."""
        id = self.pick(data, self.model.jobs)
        command = Once(key, id, (id,), (Cancel(id, "ana"),))
        self.do(command)
        if again:
            self.do(command)

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data())
    def ray_holds_a_lease(self, data):
        self.do(Held(self.pick(data, self.model.leases), ()))

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data(), final=st.booleans())
    def an_engine_says_no(self, data, final):
        self.do(Denied(self.pick(data, self.model.leases), "no", final))

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data())
    def a_lease_is_gone(self, data):
        grant = self.model.leases[self.pick(data, self.model.leases)]
        nodes = data.draw(st.sets(st.sampled_from([place.node for place in grant.places] or ["a"])))
        self.do(Gone(grant.id, tuple(sorted(nodes))))

    @precondition(lambda self: self.model.jobs)
    @rule(
        data=st.data(),
        state=st.sampled_from(["queued", "running", "exited", "exited", "lost", "taken"]),
        code=st.sampled_from([0, 0, 1, 137]),
        rank=st.sampled_from([0, 0, 1, 2]),
        clock=st.sampled_from([None, -PATIENCE, 0, PATIENCE]),
    )
    def a_run_is_reported(self, data, state, code, rank, clock):
        job = self.model.jobs[self.pick(data, self.model.jobs)]
        started = None if clock is None else self.now + clock
        seen = Seen(Run(job.id, job.attempt, rank), state, started, code=code if state == "exited" else None)
        self.do(Report(seen))

    @precondition(lambda self: self.model.jobs)
    @rule(
        data=st.data(),
        state=st.sampled_from(["running", "exited", "lost"]),
        off=st.sampled_from([-2, -1, 1]),
    )
    def a_report_of_another_attempt_changes_nothing(self, data, state, off):
        job = self.model.jobs[self.pick(data, self.model.jobs)]
        before = self.frozen()
        run = Run(job.id, job.attempt + off, 0)
        assert self.core.handle(Report(Seen(run, state, code=1)), self.now) == []
        assert self.frozen() == before

    @rule(end=st.booleans(), code=st.sampled_from([0, 0, 1]))
    def the_work_goes_on(self, end, code):
        """Ray holds what was granted, what is bound runs or ends, what is over is seen to be gone."""
        for grant in list(self.model.leases.values()):
            self.do(Gone(grant.id) if grant.state == "releasing" else Held(grant.id, ()))
        self.the_agents_cut_their_gpus(False)
        launches, stops = self.model.runs()
        for run in sorted(launches | stops):
            self.do(Report(Seen(run, "exited", code=code) if end else Seen(run, "running")))

    @rule(request=requests, code=st.sampled_from([0, 1]), retries=st.integers(0, 1))
    def a_job_comes_and_everything_is_done(self, request, code, retries):
        """So that there is room again, and some are forgotten."""
        self.submit_one(request, retries=retries)
        for _ in range(3):
            self.the_work_goes_on(True, code)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data())
    def a_job_is_cancelled(self, data):
        self.do(Cancel(self.pick(data, self.model.jobs), "ana"))

    @precondition(lambda self: any(job.asked.kind == "lease" for job in self.model.jobs.values()))
    @rule(data=st.data())
    def a_lease_is_given_back(self, data):
        leases = [id for id, job in self.model.jobs.items() if job.asked.kind == "lease"]
        self.do(Release(self.pick(data, leases)))

    @rule()
    def somebody_names_a_job_that_is_not_known(self):
        self.do(Cancel("nobody", "ana"))
        self.do(Release("nobody"))

    @rule(number=st.integers(0, 2))
    def an_owner_dies(self, number):
        self.do(OwnerLost(f"owner{number}"))

    @rule(gpu=st.sampled_from(GPUS), foreign=st.sampled_from([0, 0, 500, 24_576, 80_000]))
    def a_stranger_uses_memory_of_a_gpu(self, gpu, foreign):
        self.do(Usage(gpu.split("-")[1], gpu, foreign))

    @rule(gpu=st.sampled_from(GPUS), which=st.sets(st.integers(0, 6), max_size=2))
    def a_stranger_uses_mig_instances(self, gpu, which):
        there = [instance.uuid for instance in self.layouts[gpu].instances]
        used = tuple(uuid for at, uuid in enumerate(there) if at in which)
        self.do(Usage(gpu.split("-")[1], gpu, 100 * len(used), used))

    @rule(node=nodes, gpus=st.sets(st.sampled_from(GPUS), max_size=2))
    def somebody_holds_gpus_in_ray(self, node, gpus):
        self.do(Outside(node, tuple(sorted(gpus))))

    @rule(step=st.sampled_from([1, REST - 1, REST, 5_000, PATIENCE - 1, PATIENCE, REFUSAL, LOST]))
    def time_goes_by(self, step):
        self.now += step
        self.do(Tick())

    # ------------------------------------------------------------ what is promised

    def tenants(self, uuid: str):
        """The leases on a GPU with their slices, read from the leases alone."""
        return [
            (lease, slice)
            for lease in self.core.state.leases.values()
            for place in lease.places
            for slice in place.slices
            if slice.gpu == uuid
        ]

    @invariant()
    def no_gpu_is_granted_beyond_its_memory(self):
        for uuid, info in CARDS.items():
            assert sum(slice.memory for _, slice in self.tenants(uuid)) <= info.memory

    @invariant()
    def no_gpu_is_granted_beyond_its_compute(self):
        for uuid in GPUS:
            assert sum(slice.share for _, slice in self.tenants(uuid)) <= WHOLE

    @invariant()
    def an_exclusive_gpu_has_one_tenant(self):
        for uuid in GPUS:
            tenants = self.tenants(uuid)
            assert len(tenants) <= 1 or all(lease.sharing != "exclusive" for lease, _ in tenants)

    @invariant()
    def two_mig_instances_never_overlap(self):
        for uuid in GPUS:
            taken = set()
            for _, slice in self.tenants(uuid):
                if slice.cut is not None:
                    assert not taken & cells(CARDS[uuid].mig, slice.cut)
                    taken |= cells(CARDS[uuid].mig, slice.cut)

    @invariant()
    def a_mig_instance_has_one_tenant(self):
        held = [slice.instance for uuid in GPUS for _, slice in self.tenants(uuid) if slice.instance]
        assert len(held) == len(set(held))

    @invariant()
    def a_time_sliced_gpu_takes_at_most_its_replicas(self):
        for uuid, info in CARDS.items():
            turns = [lease for lease, _ in self.tenants(uuid) if lease.sharing == "time_slice"]
            assert len(turns) <= info.replicas

    @invariant()
    def a_hard_tenant_is_held_by_something(self):
        for lease in self.core.state.leases.values():
            assert lease.isolation == "soft" or lease.mechanism != "variables"

    @invariant()
    def a_gpu_is_shared_in_one_way_at_a_time(self):
        for uuid in GPUS:
            assert len({lease.sharing for lease, _ in self.tenants(uuid)}) <= 1

    @invariant()
    def no_node_is_granted_beyond_its_cpus_or_its_memory(self):
        places = [place for lease in self.core.state.leases.values() for place in lease.places]
        for name, info in (NODES | HOSTS).items():
            assert sum(place.cpus for place in places if place.node == name) <= info.cpus
            assert sum(place.memory for place in places if place.node == name) <= info.memory

    @invariant()
    def a_gang_is_granted_whole_or_not_at_all(self):
        for lease in self.core.state.leases.values():
            job = self.core.state.jobs.get(lease.job)
            if job is not None and lease.state != "releasing" and not job.single:
                assert sum(len(place.slices) for place in lease.places) == job.request.gpus
                assert len(lease.places) == (job.request.nodes or len(lease.places))

    @invariant()
    def what_is_free_is_what_the_model_counts(self):
        for name, known in self.core.state.nodes.items():
            machine = self.model.machines[name]
            assert known.gpus.keys() == machine.cards.keys()
            assert known.cpus_free == self.model.cpus_free(machine)
            assert known.memory_free == self.model.host_memory_free(machine)
            for uuid, gpu in known.gpus.items():
                card = machine.cards[uuid]
                assert gpu.share_free == self.model.share_free(card), uuid
                assert gpu.memory_free == self.model.memory_free(card), uuid

    @invariant()
    def every_job_and_lease_is_where_the_model_has_it(self):
        core, model = self.core.state.jobs, self.model.jobs
        assert {id: where(job) for id, job in core.items()} == {id: where(job) for id, job in model.items()}
        leases = {lease.id: (lease.job, lease.state) for lease in self.core.state.leases.values()}
        assert leases == {grant.id: (grant.job, grant.state) for grant in self.model.leases.values()}

    @invariant()
    def whoever_has_a_gpu_that_fails_is_told(self):
        told = {id: bool(job.warning) for id, job in self.core.state.jobs.items() if job.lease}
        assert told == {id: job.warned for id, job in self.model.jobs.items() if job.lease}

    @invariant()
    def a_bound_lease_has_the_instances_that_exist(self):
        for lease in self.core.state.leases.values():
            if lease.state == "bound":
                slices = [slice for place in lease.places for slice in place.slices]
                given = {(slice.gpu, slice.cut): slice.instance for slice in slices if slice.cut}
                assert given == self.model.leases[lease.id].instances

    @invariant()
    def what_must_run_is_what_the_model_says(self):
        all_wanted = [wanted(self.core.state, backend, 0) for backend in ("vm", "ray", "slurm")]
        launches, stops = self.model.runs()
        assert {launch.run for each in all_wanted for launch in each.launches} == launches
        assert {stop.run for each in all_wanted for stop in each.stops} == stops

    @invariant()
    def the_core_finds_nothing_wrong_with_itself(self):
        validate(self.core.state)


def layout_of(on, left):
    """A layout; its instances are in the order of their start."""
    return Layout(on, tuple(sorted(left, key=lambda one: one.cut.start)))


def where(job):
    """The place of a job in its life."""
    return job.state, job.attempt, job.lease, job.code


@pytest.fixture(autouse=True)
def few_jobs_are_kept(monkeypatch):
    monkeypatch.setattr(decide, "JOBS_KEPT", KEPT)


TestTwins = Twins.TestCase
TestTwins.settings = settings(
    max_examples=int(os.environ.get("MODEL_EXAMPLES", "60")), stateful_step_count=50, deadline=None
)
