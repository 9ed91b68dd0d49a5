"""Fixtures for tests of whole systems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from running import System


@pytest.fixture
def submit(system: System) -> Iterator[Callable[..., str]]:
    """Submits jobs to the module's system, for a GPU of a type or for none; they are ended after the test."""
    jobs: list[str] = []

    def submit(entrypoint: Any, gpu_type: str | None = None, **fields: Any) -> str:
        resources = {"gpus": 1, "gpu_type": gpu_type} if gpu_type else {"gpus": 0}
        resources |= fields.pop("resources", {})
        jobs.append(system.submit("submitted", entrypoint, resources=resources, **fields))
        return jobs[-1]

    yield submit
    for job in jobs:
        system.client().cancel(job)
    for job in jobs:
        system.ended(job)
