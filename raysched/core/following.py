"""What is wanted of a backend, kept up to date as facts come, and what of it changed since a version.

A fact changes what is wanted of the few leases that it is about, so only these are derived anew; one that
says what a node or a host is may change all.
"""

from __future__ import annotations

from collections.abc import Iterable

from raysched.core import facts
from raysched.core.facts import Fact
from raysched.core.state import State
from raysched.core.wanted import parts
from raysched.core.work import NOTHING, Change, Part

KEPT = 10_000
"""Leases of which it is remembered when their part changed last, those that are gone among them."""

_OF_NO_LEASE = (
    facts.Submitted,
    facts.Done,
    facts.Queued,
    facts.Warned,
    facts.Used,
    facts.GPUObserved,
    facts.OverShare,
    facts.BackInShare,
    facts.CutRefused,
    facts.RefusalLapsed,
    facts.Drained,
    facts.ClockSet,
    facts.Forgotten,
)
_OF_A_LEASE = (facts.Held, facts.Bound, facts.Placed, facts.Releasing, facts.Cleared, facts.Released)
_OF_A_JOB = (
    facts.Started,
    facts.Exited,
    facts.Stopping,
    facts.Returned,
    facts.Retried,
    facts.Ended,
)


def about(state: State, fact: Fact) -> Iterable[str] | None:
    """The leases of which something else may be wanted after `fact`, which is not folded yet; None: any."""
    if isinstance(fact, _OF_NO_LEASE):
        return ()
    if isinstance(fact, facts.Granted):
        return (fact.lease.id,)
    if isinstance(fact, _OF_A_LEASE):
        return (fact.lease,)
    if isinstance(fact, _OF_A_JOB):
        lease = state.jobs[fact.job].lease
        return () if lease is None else (lease,)
    return None


class Following:
    """What is wanted of one backend. Its versions begin at `version`, when nothing was wanted. `hear` has to
    be told of each fact before that is folded, and `lose_track` where facts were folded without."""

    def __init__(self, backend: str, version: int) -> None:
        self._backend = backend
        self._version = self._oldest = version
        self._parts: dict[str, Part] = {}
        # The version at which the part of a lease changed last, the oldest first.
        self._changed: dict[str, int] = {}
        self._touched: dict[str, None] | None = None

    def hear(self, state: State, fact: Fact) -> None:
        """A fact is about to be folded into `state`."""
        if self._touched is not None:
            leases = about(state, fact)
            if leases is None:
                self._touched = None
            else:
                self._touched.update(dict.fromkeys(leases))

    def lose_track(self) -> None:
        """What is wanted of any lease may have changed."""
        self._touched = None

    def version(self, state: State) -> int:
        """The version of what is wanted now that all facts are folded into `state`."""
        touched = {**self._parts, **dict.fromkeys(state.leases)} if self._touched is None else self._touched
        now = dict(parts(state, self._backend, touched))
        self._touched = {}
        changed = [id for id in touched if now.get(id, NOTHING) != self._parts.get(id, NOTHING)]
        if changed:
            self._version += 1
            for id in changed:
                self._change(id, now.get(id, NOTHING))
        return self._version

    def _change(self, id: str, part: Part) -> None:
        self._parts[id] = part
        if part == NOTHING:
            del self._parts[id]
        self._changed.pop(id, None)
        self._changed[id] = self._version
        if len(self._changed) > KEPT:
            self._oldest = self._changed.pop(next(iter(self._changed)))

    def since(self, version: int) -> Change:
        """What changed since `version`, as of the last question for the version; all where that is not one of
        these, or too old."""
        if not self._oldest <= version <= self._version:
            return Change(self._version, None, dict(self._parts))
        changed: list[str] = []
        for id in reversed(self._changed):
            if self._changed[id] <= version:
                break
            changed.append(id)
        return Change(self._version, version, {id: self._parts.get(id, NOTHING) for id in reversed(changed)})
