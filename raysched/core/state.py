"""All that the ledger knows. Changed by `evolve` alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from raysched.core.host import KnownHost
from raysched.core.jobs import Job
from raysched.core.lease import Lease
from raysched.core.node import Node
from raysched.core.site import Site


@dataclass(frozen=True, slots=True)
class Reading:
    """The ledger's clock at one moment: it was `at` (ms since 1970) when the start `boot` of the machine had
    been up for `uptime` ms."""

    at: int
    boot: str
    uptime: int


@dataclass(slots=True)
class State:
    """The folded journal.

    `groups` maps a submission to its jobs; `waiting` holds (-priority, order, id) of the waiting jobs,
    sorted; `ended` the ids of ended jobs, oldest first; `keys` has by idempotency key which jobs the answer
    was about, and `digests` the digest of what was asked; `owned` the ids of the jobs that a client process
    holds; `homes` the node that each GPU was last seen on; `hosts` the inventory of
    machines behind SSH, by name. `count` numbers jobs as they come. `clock` is the
    last reading of the ledger's clock, `latest` the latest time of a fact. `sites` are those that backends
    reach, as `placement` worked it out, and `unplaced` counts by backend the leases of which no site has told
    where they are; neither is compared or written down.
    """

    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    leases: dict[str, Lease] = field(default_factory=dict[str, Lease])
    groups: dict[str, list[str]] = field(default_factory=dict[str, "list[str]"])
    waiting: list[tuple[int, int, str]] = field(default_factory=list["tuple[int, int, str]"])
    ended: dict[str, None] = field(default_factory=dict[str, None])
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    digests: dict[str, str] = field(default_factory=dict[str, str])
    owned: dict[str, dict[str, None]] = field(default_factory=dict[str, dict[str, None]])
    homes: dict[str, str] = field(default_factory=dict[str, str])
    hosts: dict[str, KnownHost] = field(default_factory=dict[str, KnownHost])
    count: int = 0
    sites: dict[str, Site] | None = field(default=None, init=False, repr=False, compare=False)
    unplaced: Counter[str] = field(default_factory=Counter[str], init=False, repr=False, compare=False)
    clock: Reading | None = None
    latest: int = 0

    def __post_init__(self) -> None:
        """Work out what a state is written down without."""
        self.unplaced = Counter(lease.backend for lease in self.leases.values() if not lease.places)
        if not self.homes:
            self.homes = {uuid: name for name, node in self.nodes.items() for uuid in node.gpus}
