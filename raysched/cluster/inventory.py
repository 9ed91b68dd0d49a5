"""The hosts that the configuration names, looked at without a running raysched."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from raysched.backends.ssh.hosts import AT_ONCE
from raysched.backends.ssh.remote import Remote
from raysched.core.compile import compile_host
from raysched.core.host import Host
from raysched.errors import NotFound, Unreachable
from raysched.specs.config import Config

View = dict[str, Any]


def check(config: Config, names: Sequence[str], accept_new: bool) -> list[View]:
    """Connect to these hosts, or to all if none is named: `name`, `ok`, and the `reason` why one can't be
    used. Raises NotFound for a name that the configuration does not have."""
    hosts = {spec.name: compile_host(spec) for spec in config.backends.vm.hosts}
    for name in names:
        if name not in hosts:
            raise NotFound(f"no host {name} in the configuration, and raysched is not up to know of others")
    return asyncio.run(_check([hosts[name] for name in names or hosts], accept_new))


async def _check(hosts: Sequence[Host], accept_new: bool) -> list[View]:
    turns = asyncio.Semaphore(AT_ONCE)
    return list(await asyncio.gather(*(_check_one(host, turns, accept_new) for host in hosts)))


async def _check_one(host: Host, turns: asyncio.Semaphore, accept_new: bool) -> View:
    remote = Remote(host, "check", turns, lambda: None)
    try:
        await remote.connect(accept_new)
        problem = (await remote.describe()).problem
    except Unreachable as error:
        return {"name": host.name, "ok": False, "reason": str(error)}
    finally:
        await remote.hang_up()
    return {"name": host.name, "ok": True, "reason": problem}
