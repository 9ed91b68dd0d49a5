"""The vm backend, on real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raysched.backends.vm import VMBackend
from raysched.testing.conformance import ProcessConformance


class TestVM(ProcessConformance):
    @pytest.fixture
    def make(self, folder: Path, base_env: dict[str, str], packages: Path) -> Callable[[], VMBackend]:
        return lambda: VMBackend(folder, base_env, packages)
