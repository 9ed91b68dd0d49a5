"""Fixtures for tests on a real system, and the rule for engines that are not installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator

import pytest
from running import System

SIMULATED = "2xA100-80GB"


@pytest.fixture(scope="session")
def engine() -> Callable[[bool, str], None]:
    """`engine(there, install)`: skips the test where a real engine is missing, and says how to install it.
    In continuous integration, where all are installed, that fails."""

    def need(there: bool, install: str) -> None:
        if not there:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs an engine: {install}")

    return need


@pytest.fixture(scope="session")
def _ray(engine: Callable[[bool, str], None]) -> None:
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
