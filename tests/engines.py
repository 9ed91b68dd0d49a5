"""The rule for real engines that tests need: skipped where one is missing, with the command that installs it;
in continuous integration, where all of them are installed, that fails."""

from __future__ import annotations

import os

import pytest


def need(there: object, install: str) -> None:
    """Skip this test, or fail it in continuous integration, unless an engine is `there`."""
    if not there:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs an engine: {install}")
