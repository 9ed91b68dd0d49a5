"""Where the gateway is, and the token for it. Standard library only, but where Ray must be asked."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from raysched.errors import ConfigError, Unauthorized, Unreachable
from raysched.folders import state_folder

RAY_TIMEOUT = 10.0
"""Seconds for a connection to Ray to be made, and for the ledger's answer."""


@dataclass(frozen=True, slots=True)
class Access:
    """A gateway's address and token. `expected` is false where raysched is known not to be up, so that it
    makes no sense to wait for an answer."""

    address: str
    token: str = field(repr=False)
    expected: bool = True


def find_access() -> Access:
    """The gateway to use, the first that is found of: `RAYSCHED_ADDRESS` with `RAYSCHED_TOKEN`, the
    `gateway.json` of this user's state folder, and the ledger of the Ray cluster that `RAY_ADDRESS` names
    (a `ray job submit` job has it set). Raises Unreachable where there is none."""
    local = _of_this_machine(state_folder())
    if address := os.environ.get("RAYSCHED_ADDRESS"):
        own = local.token if local and local.address == address.rstrip("/") else ""
        return Access(address, os.environ.get("RAYSCHED_TOKEN", own))
    if local:
        return local
    if cluster := os.environ.get("RAY_ADDRESS"):
        return _of_ray(cluster)
    raise Unreachable(
        f"raysched is not up here (there is no {state_folder() / 'gateway.json'}): run `raysched up`, "
        "or set RAYSCHED_ADDRESS and RAYSCHED_TOKEN"
    )


def _of_this_machine(folder: Path) -> Access | None:
    path = folder / "gateway.json"
    try:
        found = json.loads(path.read_text())
        return Access(found["address"], found["token"], expected=_was_left_up(folder))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise Unauthorized(
            f"{path} may be read by its owner only: set RAYSCHED_ADDRESS and RAYSCHED_TOKEN"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is damaged: delete it and run `raysched up`") from None


def _was_left_up(folder: Path) -> bool:
    """Whether `up.json` tells of a system whose Ray, if `up` started it, still has its first process."""
    try:
        own = json.loads((folder / "up.json").read_text())["own"]
        if own:
            os.kill(own["pid"], 0)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _of_ray(cluster: str) -> Access:
    # Ray itself tries a dead address for many minutes.
    if not _listens(cluster):
        raise Unreachable(f"no Ray answers at RAY_ADDRESS ({cluster}): start it, or set RAYSCHED_ADDRESS")
    import ray
    from ray.exceptions import RayError

    connected = ray.is_initialized()
    try:
        if not connected:
            ray.init(namespace="raysched", log_to_driver=False, configure_logging=False)
        ledger = ray.get_actor("ledger", namespace="raysched")
        found: dict[str, str] = ray.get(ledger.endpoint.remote(), timeout=RAY_TIMEOUT)
    except (ConnectionError, ValueError, RayError, RuntimeError):
        raise Unreachable(
            f"raysched is not up on the Ray at RAY_ADDRESS ({cluster}), or this process is not let in: "
            "run `raysched up` there, or set RAYSCHED_ADDRESS"
        ) from None
    finally:
        if not connected:
            ray.shutdown()
    return Access(found["address"], found["token"])


def _listens(cluster: str) -> bool:
    """Whether something listens at a HOST:PORT; true for other forms, which only Ray understands."""
    host, _, port = cluster.rpartition(":")
    if "/" in host or not host or not port.isdigit():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=RAY_TIMEOUT).close()
    except OSError:
        return False
    return True
