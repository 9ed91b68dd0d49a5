"""Sizes, durations, fractions and counts: each spelling has one meaning, or is refused in words."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysched.specs import units

POWERS = {
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}


@pytest.mark.parametrize(
    ("text", "mebibytes"),
    [
        ("10GB", 9537),
        ("10GiB", 10240),
        ("10Gi", 10240),
        ("1.5GiB", 1536),
        (" 10 GB ", 9537),
        ("10gb", 9537),
        (".5GiB", 512),
        ("1B", 1),
        ("1TiB", 2**20),
        ("80GB", 76294),
    ],
)
def test_a_size_with_a_unit(text: str, mebibytes: int) -> None:
    """Case spec-03: GB counts in powers of ten, GiB and Gi in powers of two."""
    assert units.parse_size(text) == mebibytes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10G", ["10GB", "10GiB"]),
        ("10k", ["10kB", "10KiB"]),
        ("10", ["unit", "10GB", "10GiB"]),
        (10, ["unit", "10GB", "10GiB"]),
        ("10Gb/s", ["10GB"]),
        ("10XB", ["XB", "GiB"]),
        ("-1GB", ["-1GB"]),
        ("1,5GB", ["1,5GB"]),
        ("0GB", ["more than 0"]),
        (True, ["true"]),
        (None, ["null"]),
    ],
)
def test_a_size_that_could_be_two_things_or_none_is_refused(text: object, words: list[str]) -> None:
    """Case spec-03: never a guess."""
    with pytest.raises(ValueError) as refused:
        units.parse_size(text)
    assert all(word in str(refused.value) for word in words)


@given(st.decimals(min_value="0.001", max_value=10**6, places=3), st.sampled_from(sorted(POWERS)))
@settings(deadline=None)
def test_a_size_never_compiles_to_less_memory_than_it_says(number: object, unit: str) -> None:
    """Case spec-03: bytes are rounded up to MiB, and by less than one."""
    said = Fraction(str(number)) * POWERS[unit]
    held = units.parse_size(f"{number}{unit}") * 2**20
    assert said <= held < said + 2**20


@given(st.integers(min_value=1, max_value=10**15))
@settings(deadline=None)
def test_a_size_is_read_back_as_it_was_written(mebibytes: int) -> None:
    """Specs are checked again by the gateway."""
    assert units.parse_size(units.format_size(mebibytes)) == mebibytes


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("90s", 90_000),
        ("15m", 900_000),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
        ("1h30m", 5_400_000),
        ("1h 30m", 5_400_000),
        ("1.5h", 5_400_000),
        ("500ms", 500),
        ("0s", 0),
    ],
)
def test_a_duration(text: str, milliseconds: int) -> None:
    """Units from days to milliseconds, the larger first."""
    assert units.parse_duration(text) == milliseconds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("90", ["90s", "90m"]),
        (90, ["90s", "90m"]),
        ("12:00:00", ["12:00:00", "1h30m"]),
        ("30m1h", ["30m1h"]),
        ("2 hours", ["2 hours", "h"]),
        ("", ["duration"]),
        ("-5s", ["-5s"]),
        (False, ["false"]),
    ],
)
def test_a_duration_without_a_clear_unit_is_refused(text: object, words: list[str]) -> None:
    """The two likely meanings are named."""
    with pytest.raises(ValueError) as refused:
        units.parse_duration(text)
    assert all(word in str(refused.value) for word in words)


@given(st.integers(min_value=0, max_value=10**15))
@settings(deadline=None)
def test_a_duration_is_read_back_as_it_was_written(milliseconds: int) -> None:
    """Specs are checked again by the gateway."""
    assert units.parse_duration(units.format_duration(milliseconds)) == milliseconds


@pytest.mark.parametrize(
    ("value", "share"),
    [
        ("0.25", 2500),
        (0.25, 2500),
        ("1/4", 2500),
        ("25%", 2500),
        (".25", 2500),
        ("1/3", 3333),
        ("2/3", 6667),
        ("12.5%", 1250),
        ("1", 10_000),
        (1, 10_000),
        ("1.0", 10_000),
        ("0.0001", 1),
        ("0.00005", 1),
        (1e-4, 1),
    ],
)
def test_a_fraction(value: object, share: int) -> None:
    """A decimal, a ratio and a per cent are the same, to the nearest ten-thousandth."""
    assert units.parse_fraction(value) == share


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0", ["more than 0"]),
        ("0.00001", ["0.0001"]),
        ("1.5", ["gpus:"]),
        ("250%", ["gpus:"]),
        ("3/2", ["gpus:"]),
        ("1/0", ["divides by 0"]),
        ("-0.5", ["more than 0"]),
        ("half", ["half", "0.25"]),
        (float("nan"), ["nan"]),
        (float("inf"), ["inf"]),
        (True, ["true"]),
        ([0.5], ["a list"]),
    ],
)
def test_what_is_no_part_of_a_gpu_is_refused(value: object, words: list[str]) -> None:
    """Nothing, less than the least, more than a whole."""
    with pytest.raises(ValueError) as refused:
        units.parse_fraction(value)
    assert all(word in str(refused.value) for word in words)


@given(st.integers(min_value=1, max_value=units.WHOLE))
@settings(deadline=None)
def test_a_fraction_is_read_back_as_it_was_written(share: int) -> None:
    """Specs are checked again by the gateway."""
    assert units.parse_fraction(units.format_fraction(share)) == share


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0.5", ["whole number", "gpu_fraction: 0.5"]),
        (0.5, ["whole number", "gpu_fraction: 0.5"]),
        ("1/2", ["whole number", "gpu_fraction"]),
        ("2.5", ["whole number", "gpu_fraction"]),
        ("2.0", ["gpus: 2"]),
        ("all", ["all", "whole number"]),
        ("A100:2", ["gpus: 2", "gpu_type: A100"]),
        (True, ["true"]),
        ("010", ["010"]),
        ("1e3", ["1e3"]),
        ("", ["''"]),
        (None, ["null"]),
        ("9" * 5000, ["whole number"]),
    ],
)
def test_a_count_of_gpus_that_is_no_whole_number_is_refused(value: object, words: list[str]) -> None:
    """Case spec-02: never a silent other number."""
    with pytest.raises(ValueError) as refused:
        units.parse_gpus(value)
    assert all(word in str(refused.value) for word in words)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(("value", "count"), [("2", 2), (2, 2), ("0", 0), ("-1", -1)])
def test_a_count_of_gpus(value: object, count: int) -> None:
    """Quotes do not matter."""
    assert units.parse_gpus(value) == count


@pytest.mark.parametrize(("value", "cpus"), [("4", 40_000), ("0.5", 5000), (0, 0), (1.5, 15_000)])
def test_cpus(value: object, cpus: int) -> None:
    """Cores may have decimals."""
    assert units.parse_cpus(value) == cpus


@pytest.mark.parametrize("value", ["-1", "many", True, "0.00001", None])
def test_what_is_no_number_of_cpus_is_refused(value: object) -> None:
    """Each in words."""
    with pytest.raises(ValueError):
        units.parse_cpus(value)
