"""Who counts as silent, and for whom silence is not counted."""

from __future__ import annotations

from raysched.actors.heartbeats import STEP_S, Heartbeats


def test_who_is_not_heard_of_for_the_whole_patience_is_silent() -> None:
    """And stays so until heard of, so that telling it may fail."""
    hearts = Heartbeats(10)
    for _ in range(9):
        assert hearts.passed(1, ["a", "b"]) == []
    hearts.heard("b")
    assert hearts.passed(1, ["a", "b"]) == ["a"]
    assert hearts.passed(1, ["a", "b"]) == ["a"]
    hearts.heard("a")
    assert hearts.passed(1, ["a", "b"]) == []


def test_a_ledger_that_stood_still_takes_nobody_s_lease() -> None:
    """Suspended for a day with its machine: the day counts as one step."""
    hearts = Heartbeats(10)
    assert hearts.passed(86_400, ["a"]) == []
    for _ in range(3):
        assert hearts.passed(1, ["a"]) == []
    assert hearts.passed(10 - STEP_S - 3, ["a"]) == []
    assert hearts.passed(1, ["a"]) == ["a"]


def test_who_holds_nothing_begins_anew() -> None:
    hearts = Heartbeats(10)
    for _ in range(5):
        hearts.passed(1.9, ["a"])
    hearts.passed(1, [])
    assert hearts.passed(1, ["a"]) == []
