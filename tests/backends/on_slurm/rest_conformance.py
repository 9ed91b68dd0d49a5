"""What every backend passes, by a real slurmrestd; too long for the suite beside the same by commands.

python -m pytest tests/backends/on_slurm/rest_conformance.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ordered import OrderedHands
from slurm_site import SlurmSite

from raysched.backends.base import Backend
from raysched.backends.slurm.backend import SlurmBackend
from raysched.backends.slurm.rest import RestController
from raysched.core.lease import Place
from raysched.testing.conformance import Hands, ProcessConformance


class TestSlurmRest(ProcessConformance):
    """By slurmrestd."""

    @pytest.fixture
    def make(
        self, site: SlurmSite, folder: Path, base_env: dict[str, str], packages: Path
    ) -> Callable[[], Backend]:
        url, token = site.rest(), site.token()

        def make() -> SlurmBackend:
            return SlurmBackend(folder, RestController(url, lambda: token, os.environ), base_env, packages)

        return make

    @pytest.fixture
    def hands(self, make: Callable[[], Backend], place: Place) -> Iterator[Hands]:
        hands = OrderedHands(make, place)
        yield hands
        hands.close()
