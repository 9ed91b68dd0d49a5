"""Fixtures for tests on a real system, and the rule for engines that are not installed."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable, Iterator

import pytest
from engines import need
from hypothesis import HealthCheck, settings
from running import System

SIMULATED = "2xA100-80GB"

# Started in the background by a shell, pytest and all its children would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests never time things: on a busy machine Hypothesis would call a draw or an example too slow.
settings.register_profile(
    "patient",
    settings.get_profile(settings.get_current_profile_name()),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def engine() -> Callable[[object, str], None]:
    """`engine(there, install)`, the rule of `engines.need`."""
    return need


@pytest.fixture(scope="session")
def _ray(engine: Callable[[object, str], None]) -> None:
    engine(importlib.util.find_spec("ray") is not None, "pip install 'ray[default]'")


@pytest.fixture(scope="session")
def system(_ray: None) -> Iterator[System]:
    """A running system with two simulated GPUs, which all tests share: leave no job behind."""
    running = System(SIMULATED)
    try:
        running.up()
        yield running
    finally:
        running.close()


@pytest.fixture
def make_system(_ray: None) -> Iterator[Callable[..., System]]:
    """Makes a system of the test's own, which it may break; it is not up yet."""
    made: list[System] = []

    def make(simulate: str | None = SIMULATED) -> System:
        made.append(System(simulate))
        return made[-1]

    yield make
    for running in made:
        running.close()
