"""Where the gateway is, and the token for it. Standard library only, but where Ray must be asked."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from raysched.errors import ConfigError, Unauthorized, Unreachable
from raysched.folders import state_folder


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
    if os.environ.get("RAY_ADDRESS"):
        return _of_ray()
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


def _of_ray() -> Access:
    import ray
    from ray.exceptions import RayError

    try:
        if not ray.is_initialized():
            ray.init(namespace="raysched", log_to_driver=False, configure_logging=False)
        ledger = ray.get_actor("ledger", namespace="raysched")
        found: dict[str, str] = ray.get(ledger.endpoint.remote(), timeout=30)
    except (ConnectionError, ValueError, RayError, RuntimeError):
        raise Unreachable(
            f"raysched is not up on the Ray cluster {os.environ['RAY_ADDRESS']}: run `raysched up` there"
        ) from None
    return Access(found["address"], found["token"])
