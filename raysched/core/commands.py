"""What somebody wants or reports. `decide` answers each with facts, or refuses it.

Ids come in with the command, so that deciding it again gives the same facts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raysched.core.host import Host
from raysched.core.jobs import GRACE, Kind
from raysched.core.lease import Group, Place
from raysched.core.measured import USUAL, Policy, Stretch, TenantUse
from raysched.core.mig import Cut
from raysched.core.node import NodeInfo
from raysched.core.request import Request
from raysched.core.work import Seen


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One job, or one array, of a submission. `spec` is the checked job file as JSON; times in ms."""

    id: str
    name: str
    kind: Kind
    request: Request
    spec: dict[str, Any] = field(default_factory=dict[str, Any])
    array: int | None = None
    package: str | None = None
    owner: str | None = None
    queue: str = "default"
    priority: int = 0
    retries: int = 0
    max_runtime: int | None = None
    grace: int = GRACE


@dataclass(frozen=True, slots=True)
class Submit:
    """Accept all these jobs or none. A key that was seen before gets the first answer again, and is refused
    where `digest`, that of what is submitted, is another one."""

    key: str
    user: str
    jobs: tuple[JobRequest, ...]
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Once:
    """Do this unless it was done under the same key. `digest` is that of what the client asked; under another
    one the key is refused. `about` are the jobs that the answer is about."""

    key: str
    digest: str
    about: tuple[str, ...]
    commands: tuple[Cancel | Cordon | Evict | AddHost | RemoveHost, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a job; ending one that has ended is silent."""

    job: str
    by: str


@dataclass(frozen=True, slots=True)
class Release:
    """The holder of a job of kind `lease` gives it back."""

    job: str


@dataclass(frozen=True, slots=True)
class OwnerLost:
    """A client process that held leases, or waited for some, is gone, or counts as gone for a reason."""

    owner: str
    reason: str = "its program ended"


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A node agent describes its node."""

    node: NodeInfo


@dataclass(frozen=True, slots=True)
class NodeGone:
    """A node no longer answers. `site` is the backend of the site that says so, which speaks of its own nodes
    only; empty: the ledger itself says it."""

    node: str
    site: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The hosts that the configuration names: those of an earlier one that it does not are taken out."""

    hosts: tuple[Host, ...]


@dataclass(frozen=True, slots=True)
class AddHost:
    """Use a machine over SSH."""

    host: Host


@dataclass(frozen=True, slots=True)
class RemoveHost:
    """Use a machine no more: it is drained, and taken out once nobody holds anything there."""

    name: str


@dataclass(frozen=True, slots=True)
class HostSeen:
    """A host of the inventory was reached, and describes itself."""

    node: NodeInfo


@dataclass(frozen=True, slots=True)
class HostOut:
    """A host of the inventory can't be reached or used, for a reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Cordon:
    """Place nothing new on a node, or (`on` is false) use it again. What runs there goes on."""

    node: str
    on: bool


@dataclass(frozen=True, slots=True)
class Evict:
    """Have the jobs that may be stopped leave a node and wait again, as somebody drains it."""

    node: str
    by: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes without a lease hold on one GPU, in MiB, and the UUIDs of the MIG instances that they
    use; what those with one do, and what is to be done about it."""

    node: str
    gpu: str
    foreign: int
    instances: tuple[str, ...] = ()
    tenants: tuple[TenantUse, ...] = ()
    policy: Policy = USUAL


@dataclass(frozen=True, slots=True)
class Measured:
    """The use that leases made of the GPUs of a node for a while."""

    node: str
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True)
class Outside:
    """All GPUs of a node that somebody holds in Ray without asking raysched."""

    node: str
    gpus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CutRefused:
    """The driver would not make or destroy the instance at `cut`, or (without one) switch the MIG mode."""

    node: str
    gpu: str
    cut: Cut | None
    reason: str


@dataclass(frozen=True, slots=True)
class SetLayout:
    """Cut a GPU so that it has exactly instances of these profiles, or (None) no MIG mode. It becomes the job
    `id`, which keeps the GPU meanwhile."""

    id: str
    key: str
    user: str
    gpu: str
    profiles: tuple[str, ...] | None
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """A lease is held in Ray; one group a place."""

    lease: str
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Denied:
    """An engine said no to a lease or a launch. `final`: it would say no every time."""

    lease: str
    reason: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What a backend saw of one run."""

    seen: Seen


@dataclass(frozen=True, slots=True)
class Placed:
    """A site has put a lease here; told again and again while it runs."""

    lease: str
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Gone:
    """No process and no hold of the lease that `backend` (empty: any) looks after is left on these nodes;
    anywhere, where none is named."""

    lease: str
    nodes: tuple[str, ...] = ()
    backend: str = ""


@dataclass(frozen=True, slots=True)
class SetClock:
    """The ledger's clock, at its start and whenever the wall clock jumped by `shift` ms; `boot` names this
    start of the machine, which has been up for `uptime` ms."""

    boot: str
    uptime: int
    shift: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by: time-outs are looked at, and old jobs forgotten."""


Command = (
    Submit
    | Once
    | Cancel
    | Release
    | OwnerLost
    | NodeSeen
    | NodeGone
    | Inventory
    | AddHost
    | RemoveHost
    | HostSeen
    | HostOut
    | Cordon
    | Evict
    | Usage
    | Measured
    | Outside
    | CutRefused
    | SetLayout
    | Held
    | Denied
    | Report
    | Placed
    | Gone
    | SetClock
    | Tick
)
