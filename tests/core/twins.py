"""The production core beside the model of `model.py`, told the same, and what is promised of both.

Each property is named after what it promises.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raysched.core import facts
from raysched.core.codec import encode_state
from raysched.core.commands import (
    AddHost,
    Cancel,
    Command,
    Cordon,
    CutRefused,
    Denied,
    Evict,
    Gone,
    Held,
    HostSeen,
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
)
from raysched.core.following import Following
from raysched.core.host import Host
from raysched.core.mig import DAEMON, Instance, Layout
from raysched.core.namesakes import own_name
from raysched.core.request import WHOLE
from raysched.core.scheduler import Scheduler
from raysched.core.validate import validate
from raysched.core.wanted import partitions, wanted
from raysched.core.work import Run, Seen, Wanted
from raysched.errors import RayschedError
from tests.core.fleet import CARDS, EVERYWHERE, GPUS, HOSTS, NODES, SITE
from tests.core.model import LOST, PATIENCE, REFUSAL, REST, Forbidden, Model
from tests.core.model_room import cells

BACKENDS = ("vm", "ray", "slurm")
KEPT = 2
"""How many ended jobs the ledger of these tests remembers: few, so that some are forgotten."""


class Twins(RuleBasedStateMachine):
    """The core and the model, told the same. `there` names the nodes that there may be."""

    there: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        self.core = Scheduler(hear=self.hear)
        self.followed = {backend: Following(backend, 0) for backend in BACKENDS}
        # What each backend knows, which asks now and then, and the version of that.
        self.told = dict.fromkeys(BACKENDS, (-1, Wanted()))
        self.model = Model(KEPT)
        self.now = 1_000_000
        self.count = 0
        self.answers: dict[str, tuple[Submit, tuple[str, ...]]] = {}
        self.gpus = sorted({gpu.uuid for name in self.there for gpu in EVERYWHERE[name].gpus})
        self.layouts = {uuid: gpu.layout for uuid, gpu in CARDS.items()}
        self.faults: dict[str, str] = {}
        self.made = 0

    def hear(self, state, fact):
        for each in self.followed.values():
            each.hear(state, fact)

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
        for name in self.there:
            self.join(name)

    def join(self, name):
        """A node comes; a host is told of first."""
        if name in HOSTS:
            self.do(AddHost(Host(name, f"{name}.one")))
        self.describe(name)

    def describe(self, name, gpus=3):
        """The agent of a node says what is there: the first so many GPUs, as they are now."""
        there = EVERYWHERE[name].gpus[:gpus]
        now = [
            replace(gpu, layout=self.layouts[gpu.uuid], fault=self.faults.get(gpu.uuid, "")) for gpu in there
        ]
        seen = HostSeen if name in HOSTS else NodeSeen
        self.do(seen(replace(EVERYWHERE[name], name=self.called(name), gpus=tuple(now))))

    def called(self, name):
        """A node's name; a site looks which it can have."""
        if name not in SITE:
            return name
        taken = {known: node.info.backends for known, node in self.core.state.nodes.items()}
        return own_name(name, "slurm", taken)

    @rule(data=st.data(), gpus=st.sampled_from([0, 1, 2, 3, 3]))
    def a_node_joins_or_changes(self, data, gpus):
        self.describe(self.pick(data, self.there), gpus)

    @rule(data=st.data(), on=st.booleans())
    def a_node_is_drained(self, data, on):
        self.do(Cordon(self.pick(data, [*self.there, "nowhere"]), on))

    @rule(data=st.data())
    def who_may_be_stopped_leaves_a_node(self, data):
        self.do(Evict(self.pick(data, [*self.there, "nowhere"]), "ana"))

    @rule(data=st.data())
    def a_node_is_lost(self, data):
        name = self.pick(data, self.there)
        self.do(NodeGone(name, "slurm" if name in SITE else ""))

    @rule(data=st.data(), count=st.integers(0, 2))
    def somebody_else_holds_gpus(self, data, count):
        """In Ray, or by the site's own queue."""
        gpus = {self.pick(data, self.gpus) for _ in range(count)}
        self.do(Outside(self.pick(data, self.there), tuple(sorted(gpus))))

    @rule(refuse=st.booleans())
    def the_agents_cut_their_gpus(self, refuse):
        """Each agent does what is asked of it, or its driver refuses the first thing."""
        for name in self.there:
            for gpu in EVERYWHERE[name].gpus:
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

    # ------------------------------------------------------------ jobs

    def submit_one(self, request, kind="command", preemptible=True, **fields):
        self.count += 1
        owner = f"owner{self.count % 3}" if kind == "lease" else None
        spec = {"entrypoint": "true", "preemptible": preemptible}
        asked = JobRequest(f"j{self.count}", "job", kind, request, spec, owner=owner, **fields)
        command = Submit(f"k{self.count}", "ana", (asked,), f"digest{self.count}")
        self.do(command)
        if command.key in self.core.state.keys:
            self.answers[command.key] = command, self.core.state.keys[command.key]

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
        all_wanted = [wanted(self.core.state, backend) for backend in BACKENDS]
        launches, stops = self.model.runs()
        assert {launch.run for each in all_wanted for launch in each.launches} == launches
        assert {stop.run for each in all_wanted for stop in each.stops} == stops

    @invariant()
    def what_is_kept_for_a_backend_is_what_must_be_there(self):
        for backend, following in self.followed.items():
            following.version(self.core.state)
            assert following.since(-1).parts == wanted(self.core.state, backend).parts

    @rule(backend=st.sampled_from(BACKENDS))
    def a_backend_that_applies_what_changed_has_all_that_must_be_there(self, backend):
        version, known = self.told[backend]
        following = self.followed[backend]
        following.version(self.core.state)
        change = following.since(version)
        assert (change.since is None) == (version == -1)
        self.told[backend] = change.version, known.after(change)
        assert self.told[backend][1].parts == wanted(self.core.state, backend).parts

    @invariant()
    def the_core_finds_nothing_wrong_with_itself(self):
        validate(self.core.state)


def layout_of(on, left):
    """A layout; its instances are in the order of their start."""
    return Layout(on, tuple(sorted(left, key=lambda one: one.cut.start)))


def where(job):
    """The place of a job in its life."""
    return job.state, job.attempt, job.lease, job.code
