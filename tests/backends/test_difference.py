"""What a backend does about the difference between wanted and seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from raysched.backends.difference import STRAY_GRACE, Actions, difference
from raysched.core.lease import Place
from raysched.core.work import Launch, Part, Run, Seen, Stop, Wanted

Situation = tuple[Wanted, list[Seen], dict[Run, Seen]]
RUNS = [Run(f"job-{i}", attempt, 0) for i in range(3) for attempt in (1, 2)]


def launch(run: Run) -> Launch:
    return Launch(run, f"lease-{run}", Place("node-a", (), 0, 0), "name", "true", (), None)


def all_of(launches: Sequence[Launch] = (), stops: Sequence[Stop] = ()) -> Wanted:
    return Wanted({"lease": Part(tuple(launches), tuple(stops))})


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """What is wanted, what is seen, and what of it was reported."""
    subsets = st.sets(st.sampled_from(RUNS))
    wanted = all_of(
        [launch(run) for run in sorted(draw(subsets))], [Stop(run, 5.0) for run in sorted(draw(subsets))]
    )
    states: st.SearchStrategy[Literal["running", "exited", "lost"]]
    states = st.sampled_from(["running", "exited", "lost"])
    seen = [Seen(run, draw(states)) for run in sorted(draw(subsets))]
    told = draw(st.sets(st.sampled_from(seen))) if seen else set()
    return wanted, seen, {each.run: each for each in told}


@given(situations())
def test_no_run_that_left_a_trace_is_started(situation: Situation) -> None:
    actions = difference(*situation)
    assert not {each.run for each in actions.start} & {each.run for each in situation[1]}


@given(situations())
def test_nothing_is_started_and_stopped_at_once(
    situation: Situation,
) -> None:
    actions = difference(*situation)
    assert not {each.run for each in actions.start} & {each.run for each in actions.stop}


@given(situations())
def test_nothing_runs_on_that_is_not_launched(situation: Situation) -> None:
    wanted, seen, told = situation
    stopped = {each.run for each in difference(wanted, seen, told).stop}
    launched = {each.run for each in wanted.launches}
    for each in seen:
        assert each.state != "running" or each.run in launched | stopped


@given(situations())
def test_each_sight_is_reported_until_it_is_noted(
    situation: Situation,
) -> None:
    wanted, seen, told = situation
    assert set(difference(wanted, seen, told).report) == set(seen) - set(told.values())
    assert difference(wanted, seen, {each.run: each for each in seen}).report == ()


@given(situations())
def test_actions_that_had_their_effect_leave_nothing_to_do(
    situation: Situation,
) -> None:
    wanted, seen, told = situation
    actions = difference(wanted, seen, told)
    after = {each.run: each for each in seen}
    after.update({each.run: Seen(each.run, "running") for each in actions.start})
    after.update({each.run: Seen(each.run, "exited", code=143) for each in actions.stop})
    assert difference(wanted, list(after.values()), after) == Actions()


def test_a_stop_keeps_its_grace_and_a_stray_gets_a_default_one() -> None:
    wanted = all_of(stops=[Stop(RUNS[0], 60.0)])
    seen = [Seen(RUNS[0], "running"), Seen(RUNS[1], "running")]
    assert difference(wanted, seen, {}).stop == (Stop(RUNS[0], 60.0), Stop(RUNS[1], STRAY_GRACE))


def test_a_run_to_be_stopped_that_nobody_saw_is_stopped_all_the_same() -> None:
    """It may be just about to start."""
    stop = Stop(RUNS[0], 1.0)
    assert difference(all_of([launch(RUNS[0])], [stop]), [], {}) == Actions(stop=(stop,))


def test_a_run_of_another_mark_is_ended_and_deleted_and_not_reported() -> None:
    """It was started for a lease that a restored backup knows nothing of; one without a mark may be ours."""
    run = RUNS[0]
    wanted = all_of([replace(launch(run), mark=7)])
    for mark in (0, 7):
        ours = Seen(run, "exited", code=0, mark=mark)
        assert difference(wanted, [ours], {}) == Actions(report=(ours,))
    assert difference(wanted, [Seen(run, "running", mark=6)], {}) == Actions(stop=(Stop(run, STRAY_GRACE),))
    assert difference(wanted, [Seen(run, "exited", code=0, mark=6)], {}) == Actions(forget=(run,))
    assert difference(all_of(), [Seen(run, "exited", mark=6)], {}).forget == (), "no lease of the run"
