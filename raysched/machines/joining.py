"""Has a machine that was made join raysched's own Ray, and leave it, over SSH (there it is `ray_node.py`)."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
import shlex
from collections.abc import Mapping
from typing import Any

import asyncssh

from raysched import __version__
from raysched.backends.ssh import boot
from raysched.backends.ssh.connection import connect
from raysched.core.host import Host
from raysched.core.request import WHOLE
from raysched.errors import RayschedError, Unreachable

DONE_S = 240.0
"""How long a machine may take to join or to leave."""
PROGRAM = "raysched.machines.ray_node"
MIB = 1 << 20


async def join(host: Host, entrance: Mapping[str, str]) -> None:
    """Return when the machine is a node of the Ray that `entrance` names (`address`, `token`); its name is
    that of the host. Raises RayschedError with why it can't be one."""
    check_entrance(entrance["address"])
    told = {
        "name": host.name,
        "address": entrance["address"],
        "token": entrance["token"],
        "simulate": host.simulate,
        "cpus": None if host.cpus is None else max(1, host.cpus // WHOLE),
        "memory": None if host.memory is None else host.memory * MIB,
    }
    await _run(host, "join", told)


async def leave(host: Host) -> None:
    """Return when nothing of Ray is left there that `join` has started. Raises RayschedError."""
    await _run(host, "leave", {})


def check_entrance(address: str) -> None:
    """Raise RayschedError where no other machine can reach raysched's Ray."""
    try:
        loopback = ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:
        return
    if loopback:
        raise RayschedError(
            f"raysched's Ray listens at {address}, where no other machine reaches it: start one with "
            "`ray start --head --node-ip-address=ADDRESS`, and raysched on it with `raysched up --address`"
        )


async def _run(host: Host, verb: str, told: Mapping[str, Any]) -> None:
    connection = await connect(host)
    try:
        script = _script(host, verb, json.dumps(told))
        done = await asyncio.wait_for(connection.run(boot.COMMAND, input=script), DONE_S)
    except asyncio.TimeoutError:
        raise Unreachable(f"{host.name} does not {verb} Ray within {DONE_S:.0f} s") from None
    except (OSError, asyncssh.Error) as error:
        raise Unreachable(f"the connection to {host.name} broke: {error}") from None
    finally:
        connection.close()
    if done.exit_status != 0:
        raise RayschedError(f"{host.name}: {_worded(host, str(done.stderr or ''))}")


def _script(host: Host, verb: str, told: str) -> str:
    """For `sh`. A login shell, as for setup commands: its profile may set the PATH in which they installed
    something. What is told, the token in it, is on no command line."""
    end = f"end-{secrets.token_hex(8)}"
    folder = f"{host.folder or boot.FOLDER}/ray"
    program = shlex.join([_python(host), "-m", PROGRAM, verb, folder])
    return f"exec bash --login -c {shlex.quote(f'exec {program}')} <<'{end}'\n{told}\n{end}\n"


def _python(host: Host) -> str:
    return host.python or "python3"


def _worded(host: Host, said: str) -> str:
    """Why it did not work."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    if "No module named" in last:
        return (
            f"{_python(host)} has no raysched there ({last.rpartition(': ')[2]}): install this version with "
            f"a setup command, such as `pip install raysched=={__version__}`"
        )
    return last
