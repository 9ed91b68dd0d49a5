"""What a backend has to do: the difference between what is wanted and what is seen there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raysched.core.work import Launch, Run, Seen, Stop, Wanted

STRAY_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL for a run that the ledger wants nothing of any more, and for which it
therefore names no grace."""

GOES_ON = ("running", "queued")
"""States in which a run has not ended, or may still begin."""


@dataclass(frozen=True, slots=True)
class Actions:
    """What is to be started, ended, deleted and told to the ledger."""

    start: tuple[Launch, ...] = ()
    stop: tuple[Stop, ...] = ()
    forget: tuple[Run, ...] = ()
    report: tuple[Seen, ...] = ()


def difference(wanted: Wanted, seen: Sequence[Seen], told: Mapping[Run, Seen]) -> Actions:
    """The actions that bring what is `seen` closer to what is `wanted`.

    A run starts only where no trace of it is seen: one that exited or was lost leaves its folder until it is
    forgotten, so no run starts twice. What is to be stopped and was never seen is stopped too, since it may
    be just about to start; the backend then shows it as ended. A run that goes on and is neither launched nor
    stopped belongs to an old attempt or to a job that is over, and is ended.

    A run of another mark than its launch has was started by a ledger of which this one is a restored backup,
    maybe on other GPUs: it is ended and deleted, and nobody is told of it; then the run starts.

    `told` has the sight of each run that the ledger has taken note of last; all others are reported.
    """
    marks = {launch.run: launch.mark for launch in wanted.launches}
    other = {each.run for each in seen if each.mark and each.mark != marks.get(each.run, each.mark)}
    states = {each.run: each.state for each in seen}
    named = {stop.run for stop in wanted.stops}
    known = named | {launch.run for launch in wanted.launches}
    start = [launch for launch in wanted.launches if launch.run not in states and launch.run not in named]
    stop = [stop for stop in wanted.stops if states.get(stop.run, "running") in GOES_ON]
    stop += [Stop(run, STRAY_GRACE) for run, state in states.items() if state in GOES_ON and run not in known]
    stop += [Stop(run, STRAY_GRACE) for run in other if states[run] in GOES_ON]
    forget = [run for run in other if states[run] not in GOES_ON]
    report = [each for each in seen if each.run not in other and told.get(each.run) != each]
    return Actions(tuple(start), tuple(stop), tuple(forget), tuple(report))
