"""Programs on a real system: one for all tests that leave it alive, and others to be killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from programs import Driver
from running import System


@pytest.fixture(scope="package")
def driver(system: System) -> Iterator[Driver]:
    """One program for all tests that leave it alive."""
    made = Driver(system)
    yield made
    made.close()


@pytest.fixture
def start_driver(system: System) -> Iterator[Callable[..., Driver]]:
    """Starts programs of the test's own."""
    made: list[Driver] = []

    def start(**environment: str) -> Driver:
        made.append(Driver(system, **environment))
        return made[-1]

    yield start
    for each in made:
        each.close()
