"""What the ledger decided and wrote down. Facts are the only thing in the journal, and `evolve` the only
code that turns them into state; a fact never loses a field or changes a meaning without a new version.

Times (`at`) are milliseconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raysched.core.host import Host, Origin
from raysched.core.jobs import GRACE, Kind, Outcome
from raysched.core.lease import Group, Lease, Place
from raysched.core.measured import Over, Stretch
from raysched.core.mig import Cut, Layout
from raysched.core.node import NodeInfo
from raysched.core.request import Request


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """A node is there, for the first time, again, or with other GPUs than before."""

    at: int
    node: NodeInfo


@dataclass(frozen=True, slots=True)
class NodeLost:
    """A node is gone; nothing new is placed on it, and its leases wait for it to come back."""

    at: int
    node: str


@dataclass(frozen=True, slots=True)
class NodeLeft:
    """A node that was lent is no more."""

    at: int
    node: str


@dataclass(frozen=True, slots=True)
class GPUObserved:
    """Somebody without a lease uses a GPU: `foreign` MiB of it, or all of it in Ray (`outside`), or MIG
    instances of it, by their UUIDs."""

    at: int
    node: str
    gpu: str
    foreign: int
    outside: bool
    instances: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OverShare:
    """The processes of a lease hold more memory of a GPU than it has, or what is done about it changed."""

    at: int
    node: str
    gpu: str
    over: Over


@dataclass(frozen=True, slots=True)
class BackInShare:
    """The processes of a lease no longer hold more memory of a device than it has."""

    at: int
    node: str
    gpu: str
    lease: str
    device: str


@dataclass(frozen=True, slots=True)
class Used:
    """The use that a lease made of a GPU for a while."""

    at: int
    node: str
    use: Stretch


@dataclass(frozen=True, slots=True)
class LayoutChanged:
    """A GPU is cut differently than before, or its MIG mode was switched."""

    at: int
    node: str
    gpu: str
    layout: Layout


@dataclass(frozen=True, slots=True)
class CutRefused:
    """The driver would not make or destroy the instance at `cut`, or (without one) switch the MIG mode: that
    is not tried again until the GPU's layout changes or the refusal lapses."""

    at: int
    node: str
    gpu: str
    cut: Cut | None
    reason: str


@dataclass(frozen=True, slots=True)
class RefusalLapsed:
    """What the driver refused on a GPU at `before` or earlier may be tried again."""

    at: int
    node: str
    gpu: str
    before: int


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing new is placed on a node any more, or (`on` is false) it is used again."""

    at: int
    node: str
    on: bool


@dataclass(frozen=True, slots=True)
class HostAdded:
    """A machine belongs to the inventory, or is reached otherwise than before."""

    at: int
    host: Host
    origin: Origin


@dataclass(frozen=True, slots=True)
class HostObserved:
    """A host of the inventory can't be used, for a reason; with none it can."""

    at: int
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class HostIs:
    """A host is the machine of that node of Ray, which the vm backend reaches by it; with no node it is one
    of its own."""

    at: int
    name: str
    node: str


@dataclass(frozen=True, slots=True)
class NodeRemoved:
    """Nobody holds anything on a node, and it is no more: its machine is another node."""

    at: int
    node: str


@dataclass(frozen=True, slots=True)
class NodeRenamed:
    """A node is called `name` from now on: another machine has the name that it had."""

    at: int
    node: str
    name: str


@dataclass(frozen=True, slots=True)
class HostLeaving:
    """A host is taken out of the inventory once nobody holds anything there."""

    at: int
    name: str


@dataclass(frozen=True, slots=True)
class HostRemoved:
    """A host, and the node that it was, is no more."""

    at: int
    name: str


@dataclass(frozen=True, slots=True)
class Submitted:
    """Jobs were accepted: one, or `array` of them with the same spec. `key` is the caller's idempotency key,
    `digest` that of all that was submitted under it.

    The ids are `id` for one job and `id.0`, `id.1`, ... for an array.
    """

    at: int
    id: str
    name: str
    kind: Kind
    spec: dict[str, Any]
    request: Request
    user: str
    key: str
    array: int | None = None
    package: str | None = None
    owner: str | None = None
    queue: str = "default"
    priority: int = 0
    retries: int = 0
    max_runtime: int | None = None
    grace: int = GRACE
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """What was asked under an idempotency key was done; the facts of it follow. `about` are the jobs that the
    answer is about."""

    at: int
    key: str
    digest: str
    about: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Granted:
    """A job got a lease."""

    at: int
    lease: Lease


@dataclass(frozen=True, slots=True)
class Held:
    """The lease is held everywhere, and its GPUs have to be cut for it before its work may start."""

    at: int
    lease: str
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """The lease is held everywhere; its work may start. `instances` are the UUIDs of its MIG instances, one
    a slice in the order of its places, `pipes` the pipe directories of its MPS daemons; none where it has
    none."""

    at: int
    lease: str
    groups: tuple[Group, ...]
    instances: tuple[str, ...] = ()
    pipes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """A site has put a lease here, and not where it was before."""

    at: int
    lease: str
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Queued:
    """The job's engine has not started it, for this reason."""

    at: int
    job: str
    reason: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something is wrong with what a job runs on, and it goes on; an empty warning: all is well again."""

    at: int
    job: str
    warning: str


@dataclass(frozen=True, slots=True)
class Returned:
    """An engine said no after the grant: the job waits again with that reason, no retry used up, and is not
    looked at before `until`."""

    at: int
    job: str
    reason: str
    until: int


@dataclass(frozen=True, slots=True)
class Started:
    """A rank of the job's current attempt runs."""

    at: int
    job: str
    rank: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A rank of the job's current attempt ended; without a code it was lost. `reason` says how, empty where
    it succeeded."""

    at: int
    job: str
    rank: int
    code: int | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Retried:
    """An attempt failed and the job waits for the next one."""

    at: int
    job: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """A job is being ended; `outcome` is what it will have been."""

    at: int
    job: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A job's end."""

    at: int
    job: str
    outcome: Outcome
    code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Releasing:
    """A lease's work is over; its capacity is free once its processes are seen to be gone."""

    at: int
    lease: str


@dataclass(frozen=True, slots=True)
class Cleared:
    """What the vm backend started under a lease is gone from these nodes of Ray, where the lease is still
    held."""

    at: int
    lease: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Released:
    """A lease's capacity is free: on these nodes, or on all of it that is left (`nodes` is empty)."""

    at: int
    lease: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClockSet:
    """It was `at` when the start `boot` of the machine had been up for `uptime` ms. All times before this
    fact move by `shift` ms: the wall clock jumped by so much, and no time went by."""

    at: int
    boot: str
    uptime: int
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Ended jobs that the ledger no longer remembers."""

    at: int
    jobs: tuple[str, ...]


Fact = (
    NodeJoined
    | NodeLost
    | NodeLeft
    | GPUObserved
    | OverShare
    | BackInShare
    | Used
    | LayoutChanged
    | CutRefused
    | RefusalLapsed
    | Drained
    | HostAdded
    | HostObserved
    | HostIs
    | NodeRemoved
    | NodeRenamed
    | HostLeaving
    | HostRemoved
    | Submitted
    | Done
    | Granted
    | Held
    | Bound
    | Placed
    | Queued
    | Warned
    | Returned
    | Started
    | Exited
    | Retried
    | Stopping
    | Ended
    | Releasing
    | Cleared
    | Released
    | ClockSet
    | Forgotten
)
