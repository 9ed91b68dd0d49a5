"""The life of a job, in one table.

    waiting ──granted──> starting ──started──> running ──exited──> succeeded | failed
       ^  ^                 │ │                   │
       │  └────returned─────┘ │                   │
       │ (the engine said no) │                   │
       ├───────retried────────┴───────────────────┤   (a failed attempt, retries left)
       └──────────────────────────── stopping <───┘   (cancel, time-out)
                                        └──ended──> cancelled | failed

A job of kind `command` is launched by a backend. One of kind `lease` is held by a client (a pool of
decorated calls, an actor, `raysched.lease`): it runs from the moment its lease is bound until it is
released. One of kind `layout` (`raysched mig set`) never waits, and ends when its lease is bound: its GPU is
cut then as it was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from raysched.core.lease import Place
from raysched.core.request import Request, Sharing

JobState = Literal["waiting", "starting", "running", "stopping", "succeeded", "failed", "cancelled"]
Kind = Literal["command", "lease", "layout"]
Outcome = Literal["succeeded", "failed", "cancelled"]

NEXT: dict[JobState, frozenset[JobState]] = {
    "waiting": frozenset({"starting", "cancelled", "failed"}),
    "starting": frozenset({"waiting", "running", "stopping", "succeeded", "failed", "cancelled"}),
    "running": frozenset({"waiting", "stopping", "succeeded", "failed", "cancelled"}),
    "stopping": frozenset({"succeeded", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
GRACE = 10_000
"""Milliseconds between SIGTERM and SIGKILL where the spec says nothing."""

ENDED: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(slots=True)
class Job:
    """One unit of submitted work. Times are milliseconds since 1970, None until they come.

    `group` is the id of the submission, shared by the elements of an array; `index` the element's number;
    `order` numbers jobs as they came. `attempt` counts grants from 1 and is 0 before the first; `failures`
    counts attempts that failed. A job that was given back is not looked at before `until`. `lease` is the
    lease it has now; `places`, `backend`, `sharing` and `mechanism` describe the last one it had, and
    `warning` what is wrong with the GPUs of the one it has. `begun` holds the ranks that started, `exits`
    the exit code of each that ended (None: lost), in the order in which they did; `failure` says how the
    first one ended that failed. `outcome` is what a stopping job will have been. `reason` says why it waits
    again or how it ended. `grace` is the time between SIGTERM and SIGKILL.
    `single`: a site has its attempt, and runs it as one.
    """

    id: str
    group: str
    name: str
    kind: Kind
    request: Request
    spec: dict[str, Any]
    user: str
    submitted: int
    index: int | None = None
    package: str | None = None
    owner: str | None = None
    queue: str = "default"
    priority: int = 0
    retries: int = 0
    max_runtime: int | None = None
    grace: int = GRACE
    order: int = 0
    state: JobState = "waiting"
    attempt: int = 0
    failures: int = 0
    until: int = 0
    lease: str | None = None
    backend: str | None = None
    sharing: Sharing | None = None
    mechanism: str = ""
    warning: str = ""
    places: tuple[Place, ...] = ()
    granted: int | None = None
    started: int | None = None
    ended: int | None = None
    exits: dict[int, int | None] = field(default_factory=dict[int, "int | None"])
    failure: str = ""
    begun: set[int] = field(default_factory=set[int])
    code: int | None = None
    outcome: Outcome | None = None
    reason: str = ""
    single: bool = False

    @property
    def runs(self) -> int:
        """How many runs an attempt has: one a node, at a site one for all of them."""
        return 1 if self.single else len(self.places)

    @property
    def display(self) -> str:
        """The name as people see it: `hpo[3]` for an element of an array."""
        return self.name if self.index is None else f"{self.name}[{self.index}]"
