"""Nodes and their GPUs, and what of them is taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from raysched.core.lease import Slice
from raysched.core.measured import Over
from raysched.core.mig import UNCUT, Cut, Geometry, Instance, Layout
from raysched.core.request import WHOLE, Sharing

Mode = Literal["free", "exclusive", "shared", "mig"]
Mechanism = Literal["mig", "mps", "memory_limit", "hami", "nvfractions"]
"""What can hold a tenant to its share of a GPU (hard isolation)."""
Way = Literal["", "kai", "hami", "volcano", "dra"]
"""How a Kubernetes cluster gives a GPU out: by a device plugin that knows whole devices and equal parts only
(empty), by a scheduler that gives shares of any size, or by claims (DRA)."""

REPLICAS = 4
"""Tenants that a time-sliced GPU takes, where the node does not say otherwise."""


Path = Literal["nvlink", "pix", "pxb", "phb", "node", "sys"]
"""How data goes from one GPU to another, in the words of `nvidia-smi topo`, the fastest first: NVLink, one
PCIe switch, several, the CPU's PCIe bridge, within its NUMA node, between NUMA nodes."""


@dataclass(frozen=True, slots=True)
class Link:
    """The way to another GPU of the same node."""

    gpu: str
    path: Path


@dataclass(frozen=True, slots=True)
class GPUInfo:
    """A physical GPU as a node agent found it. `index` is the one that Ray and CUDA use on the node;
    `memory` in MiB; `model` without the vendor's name, such as `A100-80GB`. `mig` says what it can be cut
    into (None: it has no MIG) and `layout` how it is cut now. `mechanisms` are those that its node can
    enforce on it, `replicas` the tenants that it takes when time-sliced. `fault` says in words why it must
    not be used (an XID error, failed row remapping); empty: it is healthy. `pci` is its address on the PCI
    bus and `capability` its CUDA compute capability, such as `8.0`; empty: not known. `links` are the ways
    to the node's other GPUs, where they are known. `parts`: into how many equal parts a site gives it out, 0:
    only whole; a site's GPU has the memory 0 where nobody knows it. `resource` is the name under which
    Kubernetes gives it out, `way` how."""

    uuid: str
    index: int
    model: str
    memory: int
    mig: Geometry | None = None
    layout: Layout = UNCUT
    mechanisms: tuple[Mechanism, ...] = ()
    replicas: int = REPLICAS
    fault: str = ""
    pci: str = ""
    capability: str = ""
    links: tuple[Link, ...] = ()
    parts: int = 0
    resource: str = ""
    way: Way = ""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node as its agent describes it. `ray_id` is Ray's id of it, None where Ray does not manage it;
    `cpus` in ten-thousandths of a core, `memory` in MiB; `backends` are those that reach it; `address` is
    the host name or IP address by which the other nodes do (empty: its name). `driver` and `cuda` are the
    versions of NVIDIA's driver and of the newest CUDA that it runs; `problem` says why its GPUs can't be
    read, empty if they can. `containers` names the engine that runs containers there (empty: none).
    `labels` are names and values that jobs can ask for.
    `site`: it is of a cluster whose own scheduler chooses the GPUs (`core/site.py`); `closed` says why that
    starts nothing new on it. `lease` is the one under which a site lends it (`core/lent.py`; empty: none)."""

    name: str
    backends: tuple[str, ...]
    gpus: tuple[GPUInfo, ...]
    cpus: int
    memory: int
    ray_id: str | None = None
    driver: str | None = None
    simulated: bool = False
    address: str = ""
    cuda: str | None = None
    problem: str = ""
    containers: str = ""
    site: bool = False
    closed: str = ""
    lease: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def managed(self) -> bool:
        """Whether Ray or a site gives its GPUs out too: somebody may have one without asking raysched."""
        return self.ray_id is not None or self.site


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the driver would not do at `at` (ms since 1970): make or destroy the instance at `cut`, or without
    one switch the MIG mode."""

    cut: Cut | None
    reason: str
    at: int


@dataclass(slots=True)
class GPU:
    """A GPU in the ledger: what it is, who holds it, and what somebody without a lease uses of it.

    `tenants` maps a lease to its slices: several where it has several MIG instances.
    `foreign` is the memory in MiB that processes without a lease hold, `strangers` the MIG instances that
    they use, by UUID; `outside` is true while somebody holds the GPU in Ray without asking raysched;
    `present` is false once the node no longer reports it. `refusals` are what its driver would not do, `over`
    the leases whose processes hold more of it than they have.
    """

    info: GPUInfo
    node: str
    sharing: Sharing | None = None
    tenants: dict[str, tuple[Slice, ...]] = field(default_factory=dict[str, "tuple[Slice, ...]"])
    share_used: int = 0
    memory_used: int = 0
    foreign: int = 0
    outside: bool = False
    present: bool = True
    strangers: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    over: tuple[Over, ...] = ()

    @property
    def mode(self) -> Mode:
        """free, exclusive, shared or mig: the first tenant sets it, the last one frees it."""
        if self.sharing is None:
            return "free"
        if self.sharing == "exclusive":
            return "exclusive"
        return "mig" if self.sharing == "mig" else "shared"

    @property
    def closed(self) -> bool:
        """Whether nobody else can get a part of it."""
        return self.outside or not self.present or self.sharing == "exclusive"

    @property
    def share_free(self) -> int:
        """The share, in ten-thousandths, that a further tenant could still get."""
        if self.closed:
            return 0
        return WHOLE - self.share_used

    @property
    def memory_free(self) -> int:
        """The memory in MiB that nobody holds and nobody uses."""
        if self.closed:
            return 0
        return max(0, self.info.memory - self.memory_used - self.foreign)

    @property
    def used_by_strangers(self) -> bool:
        """Whether a process without a lease was seen on it."""
        return self.foreign > 0 or bool(self.strangers)

    @property
    def untouched(self) -> bool:
        """Whether a whole-GPU request could have it: nobody holds it and nobody uses it."""
        free = self.sharing is None and not self.closed and not self.info.layout.mps
        return free and not self.used_by_strangers

    def held_cuts(self) -> list[Cut]:
        """The placements that tenants hold, whether or not their instances exist yet."""
        return [slice.cut for held in self.tenants.values() for slice in held if slice.cut is not None]

    def instance(self, cut: Cut) -> Instance | None:
        """The instance that exists at a placement."""
        return next((there for there in self.info.layout.instances if there.cut == cut), None)

    def refusal(self, *cuts: Cut | None) -> Refusal | None:
        """What the driver said when it would not do one of these (None: switch the MIG mode)."""
        return next((refusal for refusal in self.refusals if refusal.cut in cuts), None)


@dataclass(slots=True)
class Node:
    """A machine with GPUs. `lost` is when it was lost (ms since 1970), None while it is there; `draining`:
    nothing new is placed on it. `host` is the host of the inventory by which the vm backend reaches it, where
    Ray manages it and it can be reached so, and `labels` that host's. `remembered` and `empty` are what
    `placement` worked out about it, the node as it is and as it would be with nothing on it; they are neither
    compared nor written down.
    """

    info: NodeInfo
    gpus: dict[str, GPU]
    cpus_used: int = 0
    memory_used: int = 0
    lost: int | None = None
    draining: bool = False
    host: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    remembered: dict[Any, Any] = field(default_factory=dict[Any, Any], init=False, repr=False, compare=False)
    empty: Node | None = field(default=None, init=False, repr=False, compare=False)

    def changed(self, *, described: bool = False) -> None:
        """Forget what was worked out: who is on the node changed, or (`described`) what the node is."""
        self.remembered.clear()
        if described:
            self.empty = None

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that reach it."""
        return (*self.info.backends, "vm") if self.host else self.info.backends

    @property
    def cpus_free(self) -> int:
        """Ten-thousandths of cores that no lease holds."""
        return self.info.cpus - self.cpus_used

    @property
    def memory_free(self) -> int:
        """Host memory in MiB that no lease holds."""
        return self.info.memory - self.memory_used
