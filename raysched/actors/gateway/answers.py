"""The shapes of the HTTP API, as docs/api.md has them; OpenAPI is made from these.

Answers are not built from them, since the ledger's views are JSON already: the tests hold the two together.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raysched.core.jobs import JobState, Kind
from raysched.core.measured import Action
from raysched.core.node import Mechanism, Mode, Path
from raysched.core.request import Isolation, Sharing
from raysched.core.usage import By

MiB = Annotated[int, Field(description="MiB")]
Share = Annotated[int, Field(description="Part of a GPU's compute in ten-thousandths: 2500 is a quarter.")]
Seconds = Annotated[float, Field(description="Seconds")]
Json = dict[str, Any]


class Shape(BaseModel):
    """An object with exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class Health(Shape):
    """That the gateway answers."""

    status: Literal["ok"]
    version: str


class Problem(Shape):
    """What went wrong, in one sentence. `code` names it for scripts, as raysched/errors.py lists them."""

    code: str
    message: str


class ErrorAnswer(Shape):
    """Every answer with a status of 400 or more."""

    error: Problem


class GPUCounts(Shape):
    """How many GPUs there are, by what they are used for, and the sum of all granted shares."""

    total: int
    free: int
    shared: int
    exclusive: int
    mig: int
    share_used: Share


class Status(Shape):
    """What runs. `jobs` counts those that the ledger remembers, by state."""

    version: str
    since: datetime
    simulated: bool
    nodes: int
    gpus: GPUCounts
    jobs: dict[str, int]


class Host(Shape):
    """A machine that SSH reaches. `origin` says who named it: the configuration's file, or a command. `node`
    is the node that it is: its own, or one of Ray's. `gpus` are the models of its GPUs, `jobs` counts those
    that hold something there by the vm backend."""

    name: str
    address: str
    user: str | None
    port: int | None
    jump: str | None
    labels: dict[str, str]
    origin: Literal["file", "command"]
    state: Literal["new", "ready", "out", "cordoned", "leaving"]
    reason: str
    node: str
    gpus: list[str]
    jobs: int


class Hosts(Shape):
    """The inventory."""

    hosts: list[Host]


class Offered(Shape):
    """What each node of a group offers `count` of. `by` says who gives it out, `shares` in which way parts of
    it are had (null: only whole), in how many equal `parts` (null: of any size), and `held_by` what holds a
    pod to its part (null: nothing does)."""

    count: int
    model: str
    memory_mib: int | None
    resource: str
    by: Literal["device plugin", "scheduler", "claim"]
    shares: str | None
    parts: int | None
    held_by: str | None


class NodeGroup(Shape):
    """Nodes of a Kubernetes cluster that offer the same."""

    nodes: list[str]
    offers: list[Offered]


class Becomes(Shape):
    """What a request becomes there: `pod` is what each pod says; null where `refused` says why not."""

    asks: str
    pod: str | None
    refused: str | None


class ClusterSharing(Shape):
    """What shares the GPUs of the Kubernetes cluster."""

    groups: list[NodeGroup]
    requests: list[Becomes]


class HostCheck(Shape):
    """Whether a host can be used, and why not."""

    name: str
    ok: bool
    reason: str


class NewHost(Shape):
    """A host, with the fields of `backends.vm.hosts` in the configuration."""

    host: Json


class Checking(Shape):
    """`accept_new` adds the key of a host that is not known to the known hosts of who started raysched."""

    accept_new: bool = False


class PlacedGPU(Shape):
    """What a lease has of one GPU. `index` and `model` are null once the GPU is gone. Of a GPU that is cut
    it is the instance of `profile` at memory slice `start`; `instance` is its UUID once it exists."""

    uuid: str
    index: int | None
    model: str | None
    share: Share
    memory_mib: MiB
    profile: str | None
    start: int | None
    instance: str | None


class Place(Shape):
    """What a lease has on one node; `cpus` in cores, `memory_mib` of the host."""

    node: str
    cpus: float
    memory_mib: MiB
    gpus: list[PlacedGPU]


class Lease(Shape):
    """The lease that a job has, or the last one that it had."""

    id: str
    state: Literal["granted", "held", "bound", "releasing", "released"]
    sharing: Sharing
    isolation: Isolation
    mechanism: str
    places: list[Place]


class Rank(Shape):
    """What became of the command on one node of the job's attempt. One that was `lost` left no exit code, an
    `unstarted` one was ended before it began."""

    rank: int
    node: str
    state: Literal["starting", "running", "succeeded", "failed", "lost", "unstarted"]
    exit_code: int | None


class Job(Shape):
    """One job. Times are null until they come; `index` is the element's number in an array. `warning` says
    what is wrong with the GPUs that it runs on. `ranks` has an entry a node, none while it waits; `outputs`
    counts what can be read: the output of each rank, or at a site one of all together."""

    id: str
    group: str
    index: int | None
    name: str
    display: str
    kind: Kind
    user: str
    queue: str
    priority: int
    backend: str
    state: JobState
    reason: str
    warning: str
    attempt: int
    submitted: datetime
    granted: datetime | None
    started: datetime | None
    ended: datetime | None
    wait_s: Seconds | None
    run_s: Seconds | None
    exit_code: int | None
    asks: str
    grace_s: Seconds
    spec: Json | None = Field(description="null where several jobs are listed")
    lease: Lease | None
    ranks: list[Rank]
    outputs: int


class Jobs(Shape):
    """Jobs in the order in which they were submitted."""

    jobs: list[Job]


class Waiting(Shape):
    """A job that waits, and why. One that waits where it was handed to has no position."""

    position: int | None
    id: str
    group: str
    display: str
    kind: Kind
    user: str
    queue: str
    asks: str
    submitted: datetime
    waits_s: Seconds
    why: str


class Queue(Shape):
    """The waiting jobs in the order in which they are looked at, then those that wait where they were handed
    to."""

    waiting: list[Waiting]


class Explanation(Shape):
    """Why a job waits, or what became of it: what is short, the nearest fit, the smallest change; and the
    command with which one gets into a pod of it, while it runs on Kubernetes."""

    id: str
    display: str
    state: JobState
    why: str
    short_of: str | None
    nearest: str | None
    change: str | None
    enter: str | None


class Excess(Shape):
    """A tenant holds more memory than it has; `ends` is when it is ended if it still does."""

    used_mib: MiB
    held_mib: MiB
    since: datetime
    action: Action
    ends: datetime | None


class Stranger(Shape):
    """A process on a GPU of which it has no part; `lease` is the one that it names, if any."""

    pid: int
    name: str
    user: str
    memory_mib: MiB | None
    lease: str | None


class Tenant(Shape):
    """Who holds part of a GPU. `busy` is the part of the GPU's compute that it used lately, `busy_mean` in
    the last minute; null where that is not measured."""

    job: str
    display: str
    kind: Kind
    user: str
    backend: str
    state: str
    since: datetime | None
    for_s: Seconds | None
    share: Share
    memory_mib: MiB
    memory_used_mib: MiB | None
    busy: Share | None
    busy_mean: Share | None
    over: Excess | None
    isolation: Isolation
    mechanism: str


class Instance(Shape):
    """A MIG instance that exists (`uuid`), or is held and will be made: `size` memory slices from `start`.
    held: by `job`; foreign: processes without a lease use it; free: taken or destroyed as jobs need it."""

    uuid: str | None
    profile: str
    start: int
    size: int | None
    memory_mib: MiB | None
    state: Literal["held", "free", "foreign"]
    job: str | None
    display: str | None


class Cutting(Shape):
    """How a GPU is cut by MIG. `fits` says how many instances of each profile could be had beside those that
    are held, `refusals` what the driver would not do, `switchable` whether the mode may be switched."""

    enabled: bool
    switchable: bool
    cells: int = Field(description="Memory slices")
    instances: list[Instance]
    fits: dict[str, int]
    refusals: list[str]


class WantedLayout(Shape):
    """How a GPU shall be cut: exactly these instances, by their profiles, or (null) no MIG mode. With `plan`
    nothing is changed."""

    profiles: list[str] | None
    plan: bool = False
    user: str | None = None


class NewInstance(Shape):
    """A MIG instance: `size` memory slices from `start`."""

    profile: str
    start: int
    size: int | None
    memory_mib: MiB | None


class NewLayout(Shape):
    """What is done for it, or would be; `mode` is null where it stays, `job` the id of the job that does it
    (null: nothing is done)."""

    gpu: str
    node: str
    index: int
    model: str
    cells: int
    destroy: list[NewInstance]
    mode: Literal["on", "off"] | None
    create: list[NewInstance]
    keep: list[NewInstance]
    job: str | None


class GPU(Shape):
    """One GPU. `sharing` is how its tenants share it. `present` is false once the node no longer reports it.
    `outside`: somebody holds it in Ray without raysched. `fault` says why it is not used; empty: it is well.
    `mechanisms` can hold tenants to their share; `replicas` is how many it takes by time-slice.
    `memory_used_mib` is null where nothing was measured, `foreign_mib` is the memory that processes without
    a lease hold; `mig` is null where it can't be cut. `pci` is its address, `capability` its CUDA compute
    capability (empty: not known), `links` the ways to the node's other GPUs."""

    uuid: str
    index: int
    model: str
    pci: str
    capability: str
    links: dict[str, Path]
    mode: Mode
    sharing: Sharing | None
    present: bool
    outside: bool
    fault: str
    mechanisms: list[Mechanism]
    replicas: int
    share_used: Share
    share_free: Share
    memory_mib: MiB
    memory_held_mib: MiB
    memory_free_mib: MiB
    memory_used_mib: MiB | None
    foreign_mib: MiB
    busy: Share | None
    busy_mean: Share | None
    power_w: Annotated[int | None, Field(description="Watts")]
    temperature_c: Annotated[int | None, Field(description="Degrees Celsius")]
    strangers: list[Stranger]
    mig: Cutting | None
    tenants: list[Tenant]


class Cores(Shape):
    """CPU cores."""

    total: float
    used: float


class Memory(Shape):
    """Host memory in MiB."""

    total: MiB
    used: MiB


class Node(Shape):
    """A machine and its GPUs; `driver` is null without one, `cuda` the newest that it runs; `problem` says
    why its GPUs can't be read. Nothing new starts where it is `cordoned`; `closed` says why its site starts
    nothing new there, empty: it does."""

    name: str
    alive: bool
    cordoned: bool
    closed: str
    lease: str | None
    simulated: bool
    driver: str | None
    cuda: str | None
    problem: str
    backends: list[str]
    cpus: Cores
    memory_mib: Memory
    gpus: list[GPU]


class GPUs(Shape):
    """Every node."""

    simulated: bool
    nodes: list[Node]


class UsageRow(Shape):
    """What one queue, user, job or GPU was granted, and used of that. `gpu_hours_used` and `busy` (the part
    of the compute that it had) count while that was measured, `memory` (the part of the memory that it had)
    while that was; null where it never was."""

    name: str
    id: str | None = Field(description="Of a job: its submission")
    jobs: int
    leases: int
    gpu_hours: float
    gpu_hours_measured: float
    gpu_hours_used: float | None
    busy: Share | None
    memory: Share | None
    memory_peak_mib: MiB | None


class Usage(Shape):
    """What was granted and used between two times."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    by: By
    start: datetime = Field(alias="from")
    to: datetime
    rows: list[UsageRow]


class AdviceRow(Shape):
    """A job that could ask for `gpu_fraction` or `gpu_memory` instead. `share` and `memory_mib` are what it
    has of each GPU, `frees` what each of its leases would free of each."""

    name: str
    user: str
    queue: str
    leases: int
    measured_s: Seconds
    share: Share
    memory_mib: MiB
    memory_peak_mib: MiB
    busy_mean: Share
    busy_peak: Share
    gpu_fraction: float | None
    gpu_memory: str | None
    frees: Share
    gpu_hours: float
    gpu_hours_freed: float


class Advices(Shape):
    """What could be saved, by what was measured between two times."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    start: datetime = Field(alias="from")
    to: datetime
    advice: list[AdviceRow]


class Planned(Shape):
    """Where a job would run and why. `env` holds the variables that raysched would set; `script`, if that was
    asked for, what would be sent to a site: at the first element of an array for all that are sent with it.
    """

    name: str
    display: str
    asks: str
    backend: str
    outcome: Literal["starts", "waits", "refused"]
    why: str
    isolation: Isolation
    mechanism: str
    env: dict[str, str]
    places: list[Place]
    script: str | None


class Plan(Shape):
    """What would happen to each job of a submission."""

    jobs: list[Planned]


class SubmittedJob(Shape):
    """One job file's document, with the digest of its packed working directory."""

    spec: Json = Field(description="A job file as JSON; `raysched schema` prints its schema.")
    package: str | None = None


class Submission(Shape):
    """Jobs that are accepted together or not at all."""

    jobs: list[SubmittedJob] = Field(min_length=1)
    user: str = Field(min_length=1, max_length=256)


class Planning(Submission):
    """Jobs of which is asked what would happen to them; with `script` also what would be sent to a site."""

    script: bool = False


class Cancellation(Shape):
    """Who ends a job, for the reason that the job then shows."""

    user: str | None = Field(default=None, max_length=256)


class Kept(Shape):
    """A package that is there now."""

    digest: str
