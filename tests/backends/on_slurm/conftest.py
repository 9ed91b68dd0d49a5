"""One Slurm for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurm_site import SlurmSite


@pytest.fixture(scope="session")
def site() -> Iterator[SlurmSite]:
    """A running Slurm, which tests share: leave no job behind."""
    running = SlurmSite()
    yield running
    running.close()
