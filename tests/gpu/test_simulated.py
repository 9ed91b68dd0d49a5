"""The driver whose GPUs are made up."""

from __future__ import annotations

import pytest

from raysched.errors import ConfigError
from raysched.gpu.driver import GPUUse, open_driver
from raysched.gpu.models import MODELS


def test_a_simulated_a100_has_the_memory_that_cases_count_on() -> None:
    """Case spec-03: one simulated GPU of 81920 MiB."""
    (gpu,) = open_driver("1xA100-80GB", "node-a").discover().gpus
    assert (gpu.index, gpu.model, gpu.memory) == (0, "A100-80GB", 81920)


def test_a_simulated_l40s_holds_23_times_2000_mib() -> None:
    """Case sharing-01: a card that reports 46068 MiB."""
    (gpu,) = open_driver("l40s", "node-a").discover().gpus
    assert gpu.memory == 46068
    assert gpu.memory // 2000 == 23


def test_models_mix_and_are_counted_on() -> None:
    found = open_driver("2xA100-80GB, 1xA30", "node-a").discover()
    assert [(gpu.index, gpu.model) for gpu in found.gpus] == [(0, "A100-80GB"), (1, "A100-80GB"), (2, "A30")]
    assert found.simulated
    assert found.driver_version is None


def test_uuids_stay_over_restarts_and_differ_between_nodes() -> None:
    first, again, other = (open_driver("2xT4", node).discover().gpus for node in ("a", "a", "b"))
    assert first == again
    assert len({gpu.uuid for gpu in first + other}) == 4


def test_no_use_is_invented() -> None:
    driver = open_driver("2xT4", "node-a")
    assert list(driver.sample().values()) == [GPUUse(memory_mib=None)] * 2
    assert driver.sample().keys() == {gpu.uuid for gpu in driver.discover().gpus}


@pytest.mark.parametrize("text", ["", "3xFOO", "0xT4", "2x", "T4,", "-1xT4", "2 x T4", "1.5xT4", "٣xFOO"])
def test_what_cannot_be_simulated_is_refused_with_the_list(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_driver(text, "node-a")
    assert "--simulate" in str(caught.value)
    assert all(model in str(caught.value) for model in MODELS)


@pytest.mark.parametrize("text", ["129xT4", "100xT4,100xT4", "999999999xT4"])
def test_too_many_are_refused_with_the_limit(text: str) -> None:
    with pytest.raises(ConfigError, match="128"):
        open_driver(text, "node-a")
