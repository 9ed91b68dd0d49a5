"""The production core beside the model of `model.py`: the same random commands, and agreement after each.

Each property is named after what it promises.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raysched.core import decide, facts
from raysched.core.codec import encode_state
from raysched.core.commands import (
    Cancel,
    Command,
    Denied,
    Gone,
    Held,
    JobRequest,
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
from raysched.core.request import WHOLE, Request
from raysched.core.scheduler import Scheduler
from raysched.core.validate import validate
from raysched.core.wanted import wanted
from raysched.core.work import Run, Seen
from raysched.errors import RayschedError
from tests.core.model import PATIENCE, REST, Forbidden, Model
from tests.core.world import node

KEPT = 2
"""How many ended jobs the ledger of these tests remembers: few, so that some are forgotten."""

NODES = {
    "a": node("a", 2),
    "b": node("b", 3, model="A30", memory=24576, cpus=4),
    "c": node("c", 1, ray_id=None, backends=("vm",)),
}
GPUS = sorted(gpu.uuid for info in NODES.values() for gpu in info.gpus)

small = st.builds(
    Request,
    gpus=st.integers(1, 3),
    share=st.sampled_from([1, 2500, 3333, 5000, 9999]),
    memory=st.none() | st.sampled_from([1, 6_000, 24_576]),
    sharing=st.just("fraction"),
    cpus=st.sampled_from([0, 0, 5000, 40_000]),
    backends=st.sampled_from([("vm",), ("ray",), ("ray", "vm")]),
)
by_memory = st.builds(
    Request,
    memory=st.sampled_from([1, 8_192, 24_576, 24_577, 81_920, 81_921]),
    sharing=st.just("fraction"),
    isolation=st.sampled_from(["soft", "soft", "hard"]),
)
whole = st.builds(
    Request,
    gpus=st.integers(0, 6),
    gpu_types=st.sampled_from([(), ("A30",), ("a100", "H100"), ("A3",), ("80gb",)]),
    cpus=st.sampled_from([0, 10_000, 160_000, 160_001]),
    host_memory=st.sampled_from([0, 30_000]),
    backends=st.sampled_from([("vm",), ("ray",), ("slurm",)]),
)
gangs = st.builds(
    lambda nodes, each, request: replace(request, nodes=nodes, gpus=nodes * each),
    st.integers(1, 3),
    st.integers(1, 2),
    st.one_of(small, whole),
)
requests = small | by_memory | whole | gangs


class Twins(RuleBasedStateMachine):
    """The core and the model, told the same."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Scheduler()
        self.model = Model(KEPT)
        self.now = 1_000_000
        self.count = 0
        self.answers: dict[str, tuple[Submit, tuple[str, ...]]] = {}

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
        for info in NODES.values():
            self.do(NodeSeen(info))

    @rule(name=st.sampled_from(sorted(NODES)), gpus=st.sampled_from([0, 1, 2, 3, 3, 3]))
    def a_node_joins_or_changes(self, name, gpus):
        self.do(NodeSeen(replace(NODES[name], gpus=NODES[name].gpus[:gpus])))

    @rule(name=st.sampled_from(sorted(NODES)))
    def a_node_is_lost(self, name):
        self.do(NodeGone(name))

    @rule(
        request=requests,
        array=st.none() | st.integers(2, 4),
        kind=st.sampled_from(["command", "command", "lease"]),
        retries=st.integers(0, 2),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        max_runtime=st.none() | st.just(5_000),
    )
    def a_job_comes(self, request, array, kind, **fields):
        self.submit_one(request, kind, array=array, **fields)

    def submit_one(self, request, kind="command", **fields):
        self.count += 1
        owner = f"owner{self.count % 3}" if kind == "lease" else None
        spec = {"entrypoint": "true"}
        asked = JobRequest(f"j{self.count}", "job", kind, request, spec, owner=owner, **fields)
        command = Submit(f"k{self.count}", "ana", (asked,))
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
        self.do(Gone(self.pick(data, self.model.leases)))

    @precondition(lambda self: self.model.jobs)
    @rule(
        data=st.data(),
        state=st.sampled_from(["running", "exited", "exited", "lost"]),
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

    @rule(node=st.sampled_from(sorted(NODES)), gpus=st.sets(st.sampled_from(GPUS), max_size=2))
    def somebody_holds_gpus_in_ray(self, node, gpus):
        self.do(Outside(node, tuple(sorted(gpus))))

    @rule(step=st.sampled_from([1, REST - 1, REST, 5_000, PATIENCE - 1, PATIENCE]))
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
        for info in (gpu for known in NODES.values() for gpu in known.gpus):
            assert sum(slice.memory for _, slice in self.tenants(info.uuid)) <= info.memory

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
    def a_gpu_is_shared_in_one_way_at_a_time(self):
        for uuid in GPUS:
            assert len({lease.sharing for lease, _ in self.tenants(uuid)}) <= 1

    @invariant()
    def no_node_is_granted_beyond_its_cpus_or_its_memory(self):
        places = [place for lease in self.core.state.leases.values() for place in lease.places]
        for name, info in NODES.items():
            assert sum(place.cpus for place in places if place.node == name) <= info.cpus
            assert sum(place.memory for place in places if place.node == name) <= info.memory

    @invariant()
    def a_gang_is_granted_whole_or_not_at_all(self):
        for lease in self.core.state.leases.values():
            job = self.core.state.jobs.get(lease.job)
            if job is not None:
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
    def what_must_run_is_what_the_model_says(self):
        all_wanted = [wanted(self.core.state, backend, 0) for backend in ("vm", "ray")]
        launches, stops = self.model.runs()
        assert {launch.run for each in all_wanted for launch in each.launches} == launches
        assert {stop.run for each in all_wanted for stop in each.stops} == stops

    @invariant()
    def the_core_finds_nothing_wrong_with_itself(self):
        validate(self.core.state)


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
