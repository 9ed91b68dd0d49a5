"""What the ledger granted: exact GPUs on exact nodes, held until released."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raysched.core.mig import Cut
from raysched.core.request import Isolation, Sharing

LeaseState = Literal["granted", "held", "bound", "releasing"]
"""granted: written down; held: held in Ray, and its GPUs are being cut for it; bound: work may start;
releasing: the work is over, its processes and holds are being ended, and the capacity is not free yet."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of one GPU: `share` in ten-thousandths, `memory` in MiB. Of a GPU in MIG mode it is the instance
    at `cut`, whose UUID is `instance` once it exists; under MPS `pipe` is the directory by which the GPU's
    daemon is reached, once it runs. `total` is all the memory of the GPU (MiB; 0: not known, or MIG)."""

    gpu: str
    share: int
    memory: int
    cut: Cut | None = None
    instance: str | None = None
    pipe: str = ""
    total: int = 0

    @property
    def device(self) -> str:
        """The UUID by which CUDA knows it: the instance's, else the GPU's. An instance that does not exist
        yet has none, and is called `MIG-new`, which no device is."""
        if self.cut is None:
            return self.gpu
        return self.instance or "MIG-new"


@dataclass(frozen=True, slots=True)
class Place:
    """What one node gives to a lease. `cpus` in ten-thousandths of a core, `memory` (host) in MiB."""

    node: str
    slices: tuple[Slice, ...]
    cpus: int
    memory: int


@dataclass(frozen=True, slots=True)
class Group:
    """Where Ray holds one place of a lease: a placement group's id (hex) and the bundle in it."""

    id: str
    bundle: int


@dataclass(slots=True)
class Lease:
    """A grant to one attempt of a job. All its places are granted together or not at all (a gang).

    `mechanism` names what holds the tenant to its share: "exclusive", "mig", "mps", "memory_limit", "hami",
    or "variables" where only the environment tells it (soft). `groups` has one entry a place once the lease
    is held in Ray. `measured` says for each of its GPUs until when (ms since 1970) its use is known. On
    the nodes of Ray in `cleared` nothing is left of what the vm backend started there. `mark` tells it from
    one of the same id that was granted after the backup was made that is this journal now; 0: unknown.
    """

    id: str
    job: str
    attempt: int
    backend: str
    sharing: Sharing
    isolation: Isolation
    mechanism: str
    places: tuple[Place, ...]
    state: LeaseState = "granted"
    groups: tuple[Group, ...] = ()
    measured: dict[str, int] = field(default_factory=dict[str, int])
    cleared: tuple[str, ...] = ()
    mark: int = 0
