"""Random lives on nodes of Ray: jobs of all kinds on GPUs that are cut, shared, used by others, and fail."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import rule

from raysched.core.commands import (
    JobRequest,
    Submit,
    Usage,
)
from raysched.core.mig import Cut, Instance
from tests.core.fleet import CARDS, EVERYWHERE, NODES, requests
from tests.core.model_room import cells
from tests.core.twins import Twins, layout_of

KEPT = 2
"""How many ended jobs the ledger of these tests remembers: few, so that some are forgotten."""


ON_RAY = sorted({gpu.uuid for info in NODES.values() for gpu in info.gpus})


class OnRay(Twins):
    """Rules about GPUs."""

    there = tuple(NODES)

    @rule(data=st.data(), fault=st.booleans())
    def a_gpu_fails_or_is_well_again(self, data, fault):
        name = self.pick(data, self.there)
        self.faults[self.pick(data, self.gpus)] = "XID 79" if fault else ""
        self.describe(name)

    @rule(gpu=st.sampled_from([gpu.uuid for gpu in NODES["b"].gpus]))
    def a_daemon_dies(self, gpu):
        self.layouts[gpu] = replace(self.layouts[gpu], mps="")
        self.describe("b")

    @rule(
        data=st.data(),
        gpu=st.sampled_from(sorted(uuid for uuid in ON_RAY if CARDS[uuid].mig)),
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
        for name in self.there:
            if any(one.uuid == gpu for one in EVERYWHERE[name].gpus):
                self.describe(name)

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

    @rule(request=requests, code=st.sampled_from([0, 1]), retries=st.integers(0, 1))
    def a_job_comes_and_everything_is_done(self, request, code, retries):
        """So that there is room again, and some are forgotten."""
        self.submit_one(request, retries=retries)
        for _ in range(3):
            self.the_work_goes_on(True, code)

    @rule(gpu=st.sampled_from(ON_RAY), foreign=st.sampled_from([0, 0, 500, 24_576, 80_000]))
    def a_stranger_uses_memory_of_a_gpu(self, gpu, foreign):
        self.do(Usage(gpu.split("-")[1], gpu, foreign))

    @rule(gpu=st.sampled_from(ON_RAY), which=st.sets(st.integers(0, 6), max_size=2))
    def a_stranger_uses_mig_instances(self, gpu, which):
        there = [instance.uuid for instance in self.layouts[gpu].instances]
        used = tuple(uuid for at, uuid in enumerate(there) if at in which)
        self.do(Usage(gpu.split("-")[1], gpu, 100 * len(used), used))
