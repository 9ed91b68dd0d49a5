"""Runs in containers on a host behind a real sshd, by the podman of that host."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from podman import IMAGE, Podman, podman
from ssh_hosts import HostWorld
from test_ssh_conformance import OverSSH

from raysched.core.host import Host
from raysched.core.lease import Place
from raysched.testing.conformance import Hands

CGROUPS = """
mount -t tmpfs cgroups /sys/fs/cgroup
grep -q '^[1-9]' /proc/self/cgroup || mount -t cgroup2 cgroups /sys/fs/cgroup
sed -n 's/^[1-9][0-9]*:\\([a-z_,]\\{1,\\}\\):.*/\\1/p' /proc/self/cgroup | while read names; do
    mkdir "/sys/fs/cgroup/$names" && mount -t cgroup -o "$names" cgroups "/sys/fs/cgroup/$names"
done
"""
"""The control groups of this machine: a network namespace is entered without them, and podman needs some."""


@pytest.fixture(scope="module")
def box() -> Iterator[Podman]:
    with podman() as made:
        yield made


@pytest.fixture
def hands(hosts: HostWorld, box: Podman, tmp_path: Path) -> Iterator[Hands]:
    name = socket.gethostname()
    there = hosts.add("boxes", environment={**box.env, "PATH": os.environ["PATH"]}, more=CGROUPS)
    host = Host(name, there.address, user="root", python=sys.executable, folder=str(tmp_path / "there"))
    made = Hands(lambda: OverSSH(tmp_path, tmp_path, host), Place(name, (), 0, 0))
    yield made
    made.close()


def test_a_container_runs_on_the_host_and_is_ended_there(hands: Hands, box: Podman) -> None:
    launch = replace(hands.launch('ls /; echo "$STAGE"; exec sleep 600', {"STAGE": "in\nside"}), image=IMAGE)
    run = hands.start(launch)
    hands.until_output(run, b"in\nside\n")
    assert box.containers() == [f"raysched-{run}"]
    assert b"usr" not in hands.output(run).split()
    hands.stop(run)
    assert hands.until(run, "exited").code == 128 + signal.SIGTERM
    assert box.containers() == []
