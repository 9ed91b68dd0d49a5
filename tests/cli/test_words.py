"""How amounts, times and names read."""

from __future__ import annotations

import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysched.cli import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (725, "12m"),
        (10_800, "3h"),
        (200_000, "2d"),
        (-5, "0s"),
        (None, ""),
    ],
)
def test_a_duration_has_its_largest_unit(seconds: float | None, text: str) -> None:
    """Case ui-03: a clock that is slow shows no negative duration."""
    assert words.duration(seconds) == text


def test_a_duration_in_two_parts() -> None:
    assert words.duration(725, parts=2) == "12m 5s"
    assert words.duration(3_605, parts=2) == "1h 5s"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (4, "<0.1 %"), (1250, "12.5 %"), (3333, "33.3 %"), (9999, "99.9 %"), (10_000, "100 %")],
)
def test_a_share_is_rounded_down(share: int, text: str) -> None:
    assert words.percent(share) == text


def test_memory_is_in_the_unit_of_the_larger() -> None:
    assert words.memory(512) == "512 MiB"
    assert words.memory(20_377) == "19.9 GiB"
    assert words.memory_of(0, 81_510) == "0.0 of 79.6 GiB"
    assert words.memory_of(100, 512) == "100 of 512 MiB"


def test_counts_agree_with_their_noun() -> None:
    assert (words.count(1, "job"), words.count(2, "job")) == ("1 job", "2 jobs")
    assert [words.count(cpus, "CPU") for cpus in (1.0, 0.5, 4.0)] == ["1 CPU", "0.5 CPUs", "4 CPUs"]


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/New_York", "UTC"])
def test_a_time_carries_its_offset_and_is_the_same_instant(
    zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case ui-03."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        shown = words.instant("2025-03-30T00:30:00.000Z")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert datetime.fromisoformat(shown) == datetime.fromisoformat("2025-03-30T00:30:00+00:00")


@given(st.text())
def test_cleaned_text_can_not_control_the_terminal(text: str) -> None:
    assert words.clean(text).isprintable()
