"""The slurm backend passes what every backend passes, on a real Slurm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ordered import OrderedHands
from slurm_site import SlurmSite

from raysched.backends.base import Backend
from raysched.backends.slurm.backend import SlurmBackend
from raysched.backends.slurm.commands import CommandController
from raysched.core.lease import Place
from raysched.testing.conformance import Hands, ProcessConformance


class TestSlurm(ProcessConformance):
    """By Slurm's commands."""

    @pytest.fixture
    def make(
        self, site: SlurmSite, folder: Path, base_env: dict[str, str], packages: Path
    ) -> Callable[[], Backend]:
        return lambda: SlurmBackend(folder, CommandController(environment=site.env), base_env, packages)

    @pytest.fixture
    def hands(self, make: Callable[[], Backend], place: Place) -> Iterator[Hands]:
        hands = OrderedHands(make, place)
        yield hands
        hands.close()
