"""Makes the machines of a cluster and uses them as hosts. It may die anywhere: the next one goes on with what
is there."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import asyncssh

from raysched.backends.ssh.connection import connect
from raysched.core.host import Host
from raysched.errors import Conflict, NotFound, RayschedError, Unreachable
from raysched.machines import record
from raysched.machines.launcher import Launcher, Machine, resolve
from raysched.machines.record import Cluster, Json

ADDRESS_S = 300.0
"""How long a machine may take to have an address."""
REACHED_S = 600.0
"""How long it may take until SSH lets us in."""
SETUP_S = 3600.0
"""How long one of its setup commands may take."""
JOINED_S = 300.0
"""How long a machine may take to be a node of Ray."""
PATIENCE_S = 60.0
"""How long whoever else changes the cluster may take."""
PAUSE_S = 2.0
LONGEST_NAME = 63


class Hosts(Protocol):
    """The inventory of the ledger (`client.Client`)."""

    def hosts(self) -> list[Json]:
        """All hosts."""
        ...

    def add_host(self, host: Json) -> Json:
        """Use a machine over SSH."""
        ...

    def remove_host(self, name: str) -> list[Json]:
        """Use it no more, once nothing runs there."""
        ...

    def gpus(self) -> Json:
        """All nodes."""
        ...

    def cordon(self, node: str, *, on: bool = True) -> Json:
        """Start nothing new on a node, or use it again. Raises NotFound."""
        ...


def up(
    home: Path, asked: Cluster, hosts: Hosts, accept_new: bool, tell: Callable[[str], None]
) -> tuple[Cluster, list[Machine]]:
    """See that the machines of a cluster are there and used; all of them. `accept_new` adds the keys of those
    that are not known yet to the known hosts. Raises RayschedError, and Conflict where somebody is at it."""
    with record.exclusive(home, asked.name, PATIENCE_S):
        known = record.read(home, asked.name) if asked.name in record.names(home) else asked
        if known.ray and not asked.ray:
            raise Conflict(
                f"the machines of {asked.name} are nodes of Ray: `raysched cluster down {asked.name}` first"
            )
        before = known.hosts
        # Those that were about to leave stay so until they are used again, below.
        cluster = replace(asked, hosts=before, leaving=known.leaving).write(home)
        cluster = replace(cluster, config=resolve(cluster)).write(home)
        launcher = Launcher(cluster)
        machines = _all_there(launcher, tell)
        asyncio.run(_all_ready(launcher, cluster, machines, accept_new, tell))
        cluster = replace(cluster, hosts={each.id: host_name(cluster.name, each.id) for each in machines})
        for name in set(before.values()) - set(cluster.hosts.values()):
            _forget(hosts, name)
        for machine in machines:
            hosts.add_host(_fields(host_of(launcher, cluster, machine), cluster))
        for name in cluster.leaving:
            with suppress(NotFound):
                hosts.cordon(name, on=False)
        return replace(cluster, leaving=[]).write(home), machines


def wait_joined(home: Path, cluster: Cluster, hosts: Hosts, tell: Callable[[str], None]) -> Cluster:
    """Return when each machine is a node of Ray, or could not become one, which is then noted as `refused`.
    The one who has them join is the keeper. Raises RayschedError where nothing comes of it."""
    wanted, told = set(cluster.hosts.values()), False
    deadline = time.monotonic() + JOINED_S
    while True:
        cluster = record.read(home, cluster.name)
        left = wanted - in_ray(hosts.gpus()) - cluster.refused.keys()
        if not left:
            return cluster
        if not told:
            tell(f"waiting for {', '.join(sorted(left))} to join Ray")
            told = True
        if time.monotonic() > deadline:
            raise RayschedError(
                f"{', '.join(sorted(left))} did not join Ray within {JOINED_S:.0f} s: look at ray/ray.log in "
                "its folder there, and run the command again"
            )
        time.sleep(PAUSE_S)


def in_ray(gpus: Json) -> set[str]:
    """The nodes of Ray, as the API shows them, that are there."""
    return {node["name"] for node in gpus["nodes"] if node["alive"] and "ray" in node["backends"]}


def host_name(cluster: str, machine: str) -> str:
    """The host that a machine is in the inventory."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in machine)
    room = LONGEST_NAME - len(cluster) - 1
    return f"{cluster}-{plain[-room:].lstrip('.-_')}"


def host_of(launcher: Launcher, cluster: Cluster, machine: Machine) -> Host:
    """How SSH reaches a machine."""
    given = cluster.host
    return Host(
        name=host_name(cluster.name, machine.id),
        address=machine.address or machine.id,
        user=launcher.auth.get("ssh_user"),
        port=given.get("port"),
        key=launcher.auth.get("ssh_private_key"),
        jump=given.get("jump"),
        python=given.get("python"),
        folder=given.get("folder"),
    )


def _fields(host: Host, cluster: Cluster) -> Json:
    """The host as the inventory takes it."""
    own = {"name": host.name, "address": host.address, "user": host.user, "key": host.key}
    return {**cluster.host, **{name: value for name, value in own.items() if value is not None}}


def _forget(hosts: Hosts, name: str) -> None:
    """Take out the host of a machine that is no more."""
    if any(host["name"] == name for host in hosts.hosts()):
        hosts.remove_host(name)


def _all_there(launcher: Launcher, tell: Callable[[str], None]) -> list[Machine]:
    """The machines once all that are missing were made and each has an address. Raises RayschedError."""
    found = launcher.found()
    missing = launcher.wanted() - Counter((each.kind, each.type) for each in found)
    for (kind, type), count in missing.items():
        tell(f"making {count} x {type}")
        launcher.make(kind, type, count)
    deadline = time.monotonic() + ADDRESS_S
    while True:
        found = launcher.found()
        short = launcher.wanted() - Counter((each.kind, each.type) for each in found if each.address)
        if not short:
            return found
        if time.monotonic() > deadline:
            what = ", ".join(f"{count} x {type}" for (_, type), count in short.items())
            raise RayschedError(
                f"{what} of {launcher.name} did not come within {ADDRESS_S:.0f} s: run the command again to "
                f"go on, or `raysched cluster down {launcher.name}`"
            )
        time.sleep(PAUSE_S)


async def _all_ready(
    launcher: Launcher,
    cluster: Cluster,
    machines: list[Machine],
    accept_new: bool,
    tell: Callable[[str], None],
) -> None:
    """Reach every machine and run its setup commands, where that was not done. Raises the first error once
    all have come to an end."""

    async def one(machine: Machine) -> None:
        if not machine.ready:
            host = host_of(launcher, cluster, machine)
            await _set_up(host, cluster.setup.get(machine.kind, []), accept_new, tell)
            await asyncio.to_thread(launcher.set_ready, machine.id)

    for outcome in await asyncio.gather(*(one(machine) for machine in machines), return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def _set_up(host: Host, commands: list[str], accept_new: bool, tell: Callable[[str], None]) -> None:
    connection = await _reached(host, accept_new, tell)
    command = ""
    try:
        for command in commands:
            tell(f"{host.name}: {command}")
            # As `ray up` does: a login shell, whose profile may set a PATH.
            line = f"bash --login -c {shlex.quote(command)}"
            done = await asyncio.wait_for(connection.run(line, stdin=asyncssh.DEVNULL), SETUP_S)
            if done.exit_status != 0:
                said = f"{done.stdout or ''}\n{done.stderr or ''}".strip().splitlines()
                why = said[-1] if said else f"exit code {done.exit_status}"
                raise RayschedError(f"{host.name}: the setup command {command!r} failed: {why}")
    except asyncio.TimeoutError:
        raise RayschedError(f"{host.name}: {command!r} takes more than {SETUP_S / 60:.0f} minutes") from None
    except (OSError, asyncssh.Error) as error:
        raise Unreachable(f"{host.name}: the connection broke: {error}; run the command again") from None
    finally:
        connection.close()


async def _reached(host: Host, accept_new: bool, tell: Callable[[str], None]) -> asyncssh.SSHClientConnection:
    """A connection as soon as the machine lets us in. Raises Unreachable with the last reason."""
    deadline = time.monotonic() + REACHED_S
    told = False
    while True:
        try:
            return await connect(host, accept_new)
        except Unreachable as error:
            if time.monotonic() > deadline or "host key" in str(error):
                raise
            if not told:
                tell(f"waiting for {host.name}: {error}")
                told = True
            await asyncio.sleep(PAUSE_S)
