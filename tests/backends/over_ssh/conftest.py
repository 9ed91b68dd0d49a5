"""A world of hosts for the tests here, and the home that their SSH configuration is read from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ssh_hosts import HostWorld, world


@pytest.fixture(scope="module")
def hosts() -> Iterator[HostWorld]:
    """Hosts that the tests of a module share."""
    with world() as made:
        yield made


@pytest.fixture(autouse=True)
def home(hosts: HostWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects has the world's key and its known hosts."""
    monkeypatch.setenv("HOME", str(hosts.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
