"""What must exist at a backend now, and what was seen there: the words between ledger and backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from raysched.core.lease import Group, Place
from raysched.core.mig import Cut
from raysched.core.request import Sharing
from raysched.core.site import Demand


@dataclass(frozen=True, slots=True, order=True)
class Run:
    """One start of one job on one of its nodes: the identity of a process tree, everywhere.

    `rank` numbers the nodes of the job from 0. A report about an attempt that is no longer the current one
    changes nothing.
    """

    job: str
    attempt: int
    rank: int

    def __str__(self) -> str:
        return f"{self.job}.{self.attempt}.{self.rank}"

    @classmethod
    def parse(cls, text: str) -> Run:
        """The run whose `str()` is `text`. Raises ValueError on anything else."""
        job, attempt, rank = text.rsplit(".", 2)
        return cls(job, int(attempt), int(rank))


@dataclass(frozen=True, slots=True)
class Order:
    """What a launch asks of a site: devices, at most `limit` ms (None: the site's own limit), and what the
    spec says to this backend alone. `ranks` has the variables of each node where there are several
    (`environment.site_ranks`). `queue` is the job's queue."""

    demand: Demand
    limit: int | None = None
    options: tuple[tuple[str, Any], ...] = ()
    ranks: tuple[tuple[tuple[str, str], ...], ...] = ()
    queue: str = "default"


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that a backend needs to start a run; starting one that runs or has ended is silent.

    `entrypoint` is a command line for a shell (a string) or a list that is run without one. `env` holds the
    spec's variables and the lease's. `package` is the digest of the packed working directory. With an
    `image` the command runs in a container of it, which gets the `devices`: real GPUs and MIG instances, by
    UUID. A launch at a site has no place yet but an `order`. `limited`: the kernel holds it to its memory.
    `host` is the host of the inventory that the node is, where that has another name. `mark` is the lease's.
    """

    run: Run
    lease: str
    place: Place
    name: str
    entrypoint: str | tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    package: str | None
    image: str | None = None
    devices: tuple[str, ...] = ()
    order: Order | None = None
    limited: bool = False
    host: str = ""
    mark: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """A run to end, with the seconds between SIGTERM and SIGKILL; stopping what is gone is silent. `node` is
    where it is, for the vm backend the name of the host; empty where the ledger does not know."""

    run: Run
    grace: float
    node: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Hold:
    """A lease that Ray must know of, one place at a time held in a placement group.

    `resident` asks for an actor that keeps the share for as long as the lease lasts; without it the client
    puts its own actors there. `hosts` tells the vm backend which host of the inventory each place is.
    """

    lease: str
    job: str
    label: str
    sharing: Sharing
    places: tuple[Place, ...]
    resident: bool
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """What must exist at one backend of one lease: the runs to be there and those to be ended, what is held
    of it, and what must be gone (`release`) before its capacity is free again."""

    launches: tuple[Launch, ...] = ()
    stops: tuple[Stop, ...] = ()
    hold: Hold | None = None
    release: Hold | None = None


NOTHING = Part()


@dataclass(frozen=True, slots=True)
class Change:
    """What is wanted of one backend otherwise at `version` than it was at `since`: the new parts of leases,
    by their ids, NOTHING where none is left. Without a `since` it is all that is wanted."""

    version: int
    since: int | None
    parts: Mapping[str, Part]


@dataclass(frozen=True)
class Wanted:
    """What must exist at one backend: its part of each lease, by the lease's id."""

    parts: Mapping[str, Part] = field(default_factory=dict[str, Part])

    def after(self, change: Change) -> Wanted:
        """What is wanted after this change."""
        parts = {} if change.since is None else dict(self.parts)
        parts.update(change.parts)
        for lease, part in change.parts.items():
            if part == NOTHING:
                del parts[lease]
        return Wanted(parts)

    @cached_property
    def launches(self) -> tuple[Launch, ...]:
        """The runs that must be there."""
        return tuple(launch for part in self.parts.values() for launch in part.launches)

    @cached_property
    def stops(self) -> tuple[Stop, ...]:
        """The runs that must end."""
        return tuple(stop for part in self.parts.values() for stop in part.stops)

    @cached_property
    def holds(self) -> tuple[Hold, ...]:
        """The leases that must be held."""
        return tuple(part.hold for part in self.parts.values() if part.hold is not None)

    @cached_property
    def releases(self) -> tuple[Hold, ...]:
        """The leases of which nothing may be left."""
        return tuple(part.release for part in self.parts.values() if part.release is not None)


@dataclass(frozen=True, slots=True)
class Partition:
    """How a node agent has to change one GPU: first `destroy` these instances, then turn the MIG mode on or
    off as `mig` says, then `create` these; a daemon for MPS runs for it after that, or none, as `mps` says.
    What is so already is left as it is; all else on the GPU too."""

    gpu: str
    mig: bool
    destroy: tuple[Cut, ...] = ()
    create: tuple[Cut, ...] = ()
    mps: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A run as a backend observes it. `code` is set once it has ended: its exit code, 128 + the signal's
    number if a signal ended it. `started` and `ended` are milliseconds since 1970 by the node's clock.

    lost: it had been started and is gone without leaving an exit code (a reboot, a deleted folder).
    queued: its engine has it and has not started it, for the `reason`. taken: its engine took it away, for
    others or as a node failed, or its image or the port of its ranks could not be had for now, and it may be
    started again. `begun` is false where it is known that its command never began. `mark` is that of its
    launch; 0: unknown.
    """

    run: Run
    state: Literal["queued", "running", "exited", "lost", "taken"]
    started: int | None = None
    ended: int | None = None
    code: int | None = None
    reason: str = ""
    begun: bool = True
    mark: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client process asks for: `count` leases of the checked keyword arguments `resources`, under the
    name that people see. `owner` is the process; the same `key` again asks for nothing more."""

    key: str
    user: str
    owner: str
    name: str
    queue: str
    resources: dict[str, Any]
    count: int


@dataclass(frozen=True, slots=True)
class Owned:
    """A job of kind `lease` as its owner sees it. `groups` and `env` are there once it is bound.

    waiting: with the reason in `reason`; bound: work may be put into the groups, with `env` set for it;
    ended: released, cancelled, or never to be granted (`reason` says which).
    """

    job: str
    state: Literal["waiting", "bound", "ended"]
    reason: str = ""
    lease: str | None = None
    places: tuple[Place, ...] = ()
    groups: tuple[Group, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
