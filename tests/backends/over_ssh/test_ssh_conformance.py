"""The vm backend on hosts behind real sshds."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ssh_hosts import HostWorld

from raysched.backends.ssh.hosts import Hosts
from raysched.backends.vm import VMBackend
from raysched.core.host import Host
from raysched.core.lease import Place
from raysched.core.work import Run
from raysched.testing.conformance import Hands, ProcessConformance


class OverSSH(VMBackend):
    """A vm backend with one host, which it connects to at its first call."""

    def __init__(self, folder: Path, packages: Path, host: Host) -> None:
        self.inventory = Hosts()
        super().__init__(folder / "here", {}, packages, self.inventory)
        self.host = host

    async def ready(self) -> None:
        """Connect."""
        await self.inventory.use((self.host,))
        await self.inventory.tried()
        remote = self.inventory.get(self.host.name)
        assert remote is not None
        assert remote.connected, remote.reason

    async def stop(self, run: Run, grace: float) -> None:
        """Stop a run of the host, as the reconciler does, which knows where it is."""
        self.locate({run: self.host.name})
        await self.ready()
        await super().stop(run, grace)


for _call in ("observe", "start", "logs", "forget"):

    def _first_connected(name: str) -> Callable[..., Any]:
        async def call(self: OverSSH, *arguments: Any) -> Any:
            await self.ready()
            return await getattr(VMBackend, name)(self, *arguments)

        return call

    setattr(OverSSH, _call, _first_connected(_call))


@pytest.fixture(scope="module")
def host(hosts: HostWorld) -> str:
    """A host whose sessions have some variables that jobs must not get."""
    outside = {"STAGE": "outside", "CUDA_VISIBLE_DEVICES": "7", "NVIDIA_VISIBLE_DEVICES": "7"}
    gets = {**outside, "RAY_JOB_ID": "01000000", "RAYSCHED_ARRAY_INDEX": "5", "PATH": os.environ["PATH"]}
    return hosts.add(socket.gethostname(), environment=gets).address


class TestOverSSH(ProcessConformance):
    @pytest.fixture
    def place(self) -> Place:
        return Place(socket.gethostname(), (), 0, 0)

    @pytest.fixture
    def made(self) -> list[OverSSH]:
        """Every backend that the test made: those that it left are hung up on at its end."""
        return []

    @pytest.fixture
    def make(self, host: str, folder: Path, packages: Path, made: list[OverSSH]) -> Callable[[], VMBackend]:
        there = Host(
            socket.gethostname(), host, user="user", python=sys.executable, folder=str(folder / "there")
        )
        folder.mkdir(exist_ok=True)

        def new() -> VMBackend:
            made.append(OverSSH(folder, packages, there))
            return made[-1]

        return new

    @pytest.fixture
    def hands(self, make: Callable[[], VMBackend], place: Place, made: list[OverSSH]) -> Iterator[Hands]:
        hands = Hands(make, place)
        yield hands
        for left in made:
            if left is not hands.backend:
                hands.do(left.close())
        hands.close()
