"""What node agents measured of GPUs and tenants, and what is done about it: the words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Action = Literal["report", "warn", "end"]
"""report: it is shown and counted; warn: the owner of the job is told; end: told, and ended after a grace."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is done about a tenant that holds more memory of a GPU than it was given (`over_memory`), about
    processes whose lease is over (`orphans`), and about those that never had one (`without_lease`); `grace`
    is the time in ms between the first sight and the end."""

    over_memory: Action = "warn"
    orphans: Action = "end"
    without_lease: Action = "report"
    grace: int = 60_000


USUAL = Policy()


@dataclass(frozen=True, slots=True)
class Tenancy:
    """What a lease has of one GPU: `share` in ten-thousandths, `memory` in MiB. `job` is its job's name."""

    gpu: str
    lease: str
    job: str
    user: str
    queue: str
    share: int
    memory: int


@dataclass(frozen=True, slots=True)
class Guidance:
    """What a node's agent has to know of the leases there: who has a part of a GPU and may use it, and of the
    leases that it told of those that are over, so that nothing of them should run any more. `elsewhere`: the
    node's GPUs are another's to watch."""

    tenants: tuple[Tenancy, ...] = ()
    orphans: frozenset[str] = frozenset()
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class TenantUse:
    """What the processes of a lease hold of a device (a GPU or a MIG instance, by UUID) in MiB; None: the
    driver does not tell."""

    lease: str
    device: str
    memory: int | None


@dataclass(frozen=True, slots=True)
class Over:
    """A lease whose processes were seen, `since` a time in ms, to hold `used` MiB of a device of which it has
    `held` MiB: 0 where the device is not one of its own. With `until` it is ended if it is so then."""

    lease: str
    device: str
    used: int
    held: int
    since: int
    action: Action = "report"
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Stretch:
    """The use that a lease made of one GPU over `ms` milliseconds: mean and peak of its memory in MiB, and of
    the part of the GPU's compute that it kept busy, in ten-thousandths (None: not measured). `end` is when it
    was closed, in ms since 1970: a stretch that ends no later than one that is known is known."""

    lease: str
    gpu: str
    end: int
    ms: int
    memory: int
    memory_peak: int
    busy: int | None = None
    busy_peak: int | None = None
