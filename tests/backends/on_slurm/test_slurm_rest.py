"""A site that is reached by a real slurmrestd, with a token."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ordered import OrderedHands
from slurm_site import SlurmSite

from raysched.backends.base import Backend, EngineRefused
from raysched.backends.slurm.backend import SlurmBackend
from raysched.backends.slurm.controller import Batch, Refused, Target, Unanswered
from raysched.backends.slurm.rest import RestController, user_of
from raysched.core.lease import Place
from raysched.core.site import NOWHERE
from raysched.core.work import Launch, Run
from raysched.testing.conformance import Hands, ProcessConformance


class TestSlurmRest(ProcessConformance):
    """By slurmrestd."""

    @pytest.fixture
    def make(
        self, site: SlurmSite, folder: Path, base_env: dict[str, str], packages: Path
    ) -> Callable[[], Backend]:
        return lambda: SlurmBackend(folder, controller(site), base_env, packages)

    @pytest.fixture
    def hands(self, make: Callable[[], Backend], place: Place) -> Iterator[Hands]:
        hands = OrderedHands(make, place)
        yield hands
        hands.close()


def controller(site: SlurmSite) -> RestController:
    url, token = site.rest(), site.token()
    return RestController(url, lambda: token, os.environ)
