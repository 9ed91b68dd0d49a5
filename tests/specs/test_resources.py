"""The same fields as keyword arguments in Python: numbers are numbers, and errors name the argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest

from raysched.errors import SpecError
from raysched.specs.job import load_jobs
from raysched.specs.resources import LeaseOptions, LeaseSpec, ResourceOptions, Resources, check_options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"gpus": 1, "gpu_fraction": None, "queue": "default"}),
        ({"gpu_fraction": 0.25, "cpus": 1}, {"gpu_fraction": 2500, "cpus": 10_000}),
        ({"gpu_fraction": "1/4", "cpus": 0.5}, {"gpu_fraction": 2500, "cpus": 5000}),
        ({"gpu_memory": "8GB", "queue": "research/nlp"}, {"gpu_memory": 7630, "queue": "research/nlp"}),
        ({"gpus": 2, "gpu_type": ["A100"], "priority": 5}, {"gpus": 2, "gpu_type": ("A100",), "priority": 5}),
        ({"gpu_fraction": None, "gpus": None}, {"gpus": 1, "gpu_fraction": None}),
    ],
)
def test_options(options: dict[str, Any], expected: dict[str, Any]) -> None:
    """Nothing given, or None, is the default."""
    spec = check_options(options)
    assert {name: getattr(spec, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_fracton": 0.25}, "gpu_fracton: is no field here; did you mean gpu_fraction?"),
        ({"gpus": True}, "gpus: must be a whole number, not true"),
        (
            {"gpus": 0.5},
            "gpus: must be a whole number, not 0.5: for part of a GPU write gpus: 1 with gpu_fraction: 0.5",
        ),
        ({"gpu_memory": 8}, "gpu_memory: 8 has no unit: write 8GB (10^9 bytes) or 8GiB (2^30 bytes)"),
        ({"queue": "a b"}, "queue: 'a b' is no name of a queue"),
        ({"priority": 10_000}, "priority: must be 1000 or less, not 10000"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    """The argument comes first; there is no file."""
    with pytest.raises(SpecError) as refused:
        check_options(options)
    assert str(refused.value).startswith(message)


def test_all_wrong_options_come_at_once() -> None:
    """One line each."""
    with pytest.raises(SpecError) as refused:
        check_options({"gpus": -1, "cpus": "x", "gpu": 1})
    assert len(refused.value.problems) == 3


def test_an_option_means_what_the_field_means() -> None:
    """The decorator's words are the file's."""
    text = b"entrypoint: a\nresources: {gpus: 2, gpu_fraction: 0.3, gpu_type: A100, memory: 1GB}\n"
    (job,) = load_jobs(Path("x.yaml"), text)
    options = check_options({"gpus": 2, "gpu_fraction": 0.3, "gpu_type": "A100", "memory": "1GB"})
    assert job.resources.model_dump() == {
        name: value for name, value in options.model_dump().items() if name in Resources.model_fields
    }


def test_the_typed_options_are_the_fields() -> None:
    """What an editor completes is what is read."""
    assert set(get_type_hints(ResourceOptions)) == set(Resources.model_fields)
    assert set(get_type_hints(LeaseOptions)) == set(LeaseSpec.model_fields)
