"""The running actors, seen from `up` and `down`: connect to their Ray, wait for them, end them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
from typing import Any, cast

from raysched import errors
from raysched.actors import names
from raysched.actors.settings import Settings
from raysched.client import Client
from raysched.cluster import own_ray
from raysched.cluster.own_ray import RayLost
from raysched.errors import RayschedError, Unauthorized, Unreachable

READY_S = 90.0
"""How long the nodes may take to report and the gateway to answer."""
HOSTS_S = 20.0
"""How long `up` waits for the hosts of the inventory, which may come later as well."""
CALL_S = 30.0
"""How long an actor may take to answer, a restart included."""
OTHERS = 4
"""The turn of those that `up` did not make."""
RAISED = re.compile(r"^raysched\.errors\.(\w+): (.*)$", re.MULTILINE)


def reachable(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3):
            return True
    except OSError:
        return False


def connect(address: str) -> None:
    """Connect this process to the Ray at HOST:PORT. Raises RayLost."""
    if not reachable(address):
        raise RayLost(f"no Ray answers at {address}: start it, or give another --address")
    import ray
    from ray.exceptions import RayError

    use_token()
    os.environ.pop("RAY_BACKEND_LOG_LEVEL", None)  # with it Ray writes a line to stderr; actors have theirs
    try:
        ray.init(address, namespace=names.NAMESPACE, log_to_driver=False, logging_level=logging.CRITICAL)
    except (RayError, ConnectionError, RuntimeError) as error:
        raise RayLost(f"can't connect to the Ray at {address}: {_why(error)}") from None


def _why(error: BaseException) -> str:
    """The reason of a failed connection: Ray puts it under a more general one."""
    if "authenticat" in f"{type(error).__name__} {error}".lower():
        return "it does not accept the token; RAY_AUTH_TOKEN_PATH names the file with another"
    if error.__cause__ is not None:
        return _why(error.__cause__)
    return (str(error).splitlines() or [type(error).__name__])[0]


def use_token() -> None:
    """Make this process show its token to Ray, where it has one; a Ray that wants none accepts it. Ray itself
    does so only for a cluster that it looked up, not for an address. RAY_AUTH_MODE is respected."""
    if "RAY_AUTH_MODE" in os.environ or not own_ray.has_token(os.environ):
        return
    from ray._raylet import Config  # pyright: ignore[reportAttributeAccessIssue]

    os.environ["RAY_AUTH_MODE"] = "token"
    Config.initialize("")  # Ray read the variable when it was imported


def disconnect() -> None:
    """Leave Ray; silent where this process is not connected."""
    import ray

    ray.shutdown()


def is_there() -> bool:
    """Whether this Ray has a ledger already."""
    import ray

    try:
        ray.get_actor(names.LEDGER, namespace=names.NAMESPACE)
    except ValueError:
        return False
    return True


def create(settings: Settings) -> None:
    """Make the actors that are missing. Raises what the ledger could not start with."""
    from ray.exceptions import RayError

    from raysched.actors import crew

    try:
        crew.ensure(settings)
    except (RayError, ValueError) as error:
        raise raised(error) from None


def raised(error: Exception) -> RayschedError:
    """What an actor failed with, taken out of the report that Ray makes of it."""
    found = RAISED.findall(str(error))
    if found:
        kind, message = found[-1]
        return getattr(errors, kind, RayschedError)(message)
    last = [line.strip() for line in str(error).splitlines() if line.strip()][-1:]
    return RayschedError(f"an actor of raysched did not start: {''.join(last)}")


def wait_ready(address: str, token: str) -> dict[str, Any]:
    """The status of the system once the gateway answers and every node of Ray has reported. Raises
    Unreachable that says what is missing."""
    client = Client(address, token, patience=0)
    deadline = time.monotonic() + READY_S
    hosts_deadline = time.monotonic() + HOSTS_S
    while True:
        try:
            missing = _silent_nodes()
            if not missing and (time.monotonic() > hosts_deadline or not _untried_hosts()):
                return client.status()
        except Unreachable as error:
            missing = str(error)
        except Unauthorized:
            missing = f"another program has taken {address}: end it, or name another --port"
        if time.monotonic() > deadline:
            raise Unreachable(f"raysched is not ready after {READY_S:.0f} s: {missing}")
        time.sleep(0.1)


def _silent_nodes() -> str:
    """Words for the nodes whose agents have not reported yet; empty if all have."""
    from raysched.actors import crew

    alive = crew.alive_nodes()
    reported = {info.ray_id for info in ledger_call("nodes").values()}
    silent = [crew.node_name(node, alive) for node in alive if node["NodeID"] not in reported]
    return f"{', '.join(silent)} did not report" if silent else ""


def _untried_hosts() -> bool:
    """Whether a host of the inventory has neither been reached nor found to be out of reach yet."""
    return any(host["state"] == "new" for host in ledger_call("view", "hosts")["hosts"])


def ledger_call(method: str, *args: Any, **kwargs: Any) -> Any:
    """Call the ledger and return its answer. Raises Unreachable if it does not answer, and what it raises."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

    try:
        ledger = ray.get_actor(names.LEDGER, namespace=names.NAMESPACE)
        return ray.get(getattr(ledger, method).remote(*args, **kwargs), timeout=CALL_S)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, RayschedError) else raised(error)) from None
    except (ValueError, RayActorError, GetTimeoutError):
        raise Unreachable("the ledger does not answer") from None


def end_actors() -> None:
    """End every actor of raysched and give its placement groups back; silent where there are none."""
    _end(_named())
    asyncio.run(_remove_groups())


def end_former_actors() -> None:
    """End the actors that an earlier `up` made, on a head that died: a Ray that kept its state in Redis makes
    them anew, with the settings of then. What holds leases stays."""
    _end([name for name in _named() if _turn(name) < OTHERS])


def _named() -> list[str]:
    import ray

    named = cast(list[dict[str, str]], ray.util.list_named_actors(all_namespaces=True))
    return [actor["name"] for actor in named if actor["namespace"] == names.NAMESPACE]


def _end(actors: list[str]) -> None:
    import ray

    for name in sorted(actors, key=_turn):
        try:
            ray.kill(ray.get_actor(name, namespace=names.NAMESPACE), no_restart=True)
        except ValueError:
            continue


def _turn(name: str) -> int:
    """First who takes new work, then who starts it, then the ledger, which makes agents that are missing."""
    if name == names.GATEWAY:
        return 0
    if name.startswith(names.backend("")):
        return 1
    if name == names.LEDGER:
        return 2
    return 3 if name.startswith(names.node_agent("")) else OTHERS


async def _remove_groups() -> None:
    from raysched.backends.ray import groups

    for id in await groups.ours():
        await groups.remove(groups.of_id(id))
