"""Random lives of the core beside its model: on nodes of Ray, and on hosts and a site."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from raysched.core import decide
from tests.core.lives_beyond_ray import BeyondRay
from tests.core.lives_on_ray import OnRay
from tests.core.twins import KEPT


@pytest.fixture(autouse=True)
def few_jobs_are_kept(monkeypatch):
    monkeypatch.setattr(decide, "JOBS_KEPT", KEPT)


LIVES = settings(
    max_examples=int(os.environ.get("MODEL_EXAMPLES", "60")), stateful_step_count=50, deadline=None
)
TestOnRay = OnRay.TestCase
TestOnRay.settings = LIVES
TestBeyondRay = BeyondRay.TestCase
TestBeyondRay.settings = LIVES
