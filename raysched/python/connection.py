"""A process's connection to raysched: its Ray, and its relay."""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import threading
from typing import Any

import ray
from ray.exceptions import RayError

from raysched.actors.calls.claims import find_ledger
from raysched.actors.calls.relay import Relay
from raysched.actors.names import NAMESPACE
from raysched.client import user
from raysched.cluster import record
from raysched.cluster.system import reachable, use_token
from raysched.errors import Unreachable
from raysched.folders import state_folder
from raysched.python.dispatch import Dispatcher

PENDING = 1_000_000
"""How many calls may wait in a relay."""


class Connection:
    """The relay of this process in one Ray cluster. The functions and shapes that it knows are sent once."""

    def __init__(self) -> None:
        find_ledger()
        context = ray.get_runtime_context()
        self.worker_id = context.get_worker_id()
        self.owner = f"calls of {socket.gethostname()}:{os.getpid()} {secrets.token_hex(2)}"
        self.relay: Any = (
            ray.remote(Relay)
            .options(
                name=self.owner,
                namespace=NAMESPACE,
                num_cpus=0,
                max_concurrency=PENDING,
                label_selector={"ray.io/node-id": context.get_node_id()},
            )
            .remote(self.owner, user())
        )
        self.dispatcher = Dispatcher(self.relay)

    @property
    def alive(self) -> bool:
        """Whether this process is still connected to the same cluster, and was not forked off."""
        if self.dispatcher.lost or not ray.is_initialized():
            return False
        return ray.get_runtime_context().get_worker_id() == self.worker_id

    def close(self) -> None:
        """Stop listening to the relay, so that the interpreter can end."""
        self.dispatcher.close()


_lock = threading.Lock()
_current: Connection | None = None


def connect() -> Connection:
    """This process's connection, made on the first call and again after `ray.shutdown()`.

    Connects to the running Ray cluster (`RAY_ADDRESS`, else the one on this machine) where the program has
    not called `ray.init()`. Raises Unreachable where there is none, or raysched is not up on it.
    """
    global _current
    if _current is None or not _current.alive:
        with _lock:
            if _current is None or not _current.alive:
                if _current is not None:
                    _current.close()
                _join_ray()
                _current = Connection()
    return _current


def _join_ray() -> None:
    """Connect to the Ray that RAY_ADDRESS names, else to that of the system that runs here, else to the one
    that was last started here."""
    if ray.is_initialized():
        return
    use_token()
    here = record.read(state_folder())
    address = os.environ.get("RAY_ADDRESS") or (here.ray if here else "auto")
    if ":" in address and not reachable(address):  # Ray itself would try for minutes
        raise Unreachable(f"no Ray answers at {address}: run `raysched up`, or set RAY_ADDRESS")
    try:
        ray.init(address)
    except (ConnectionError, RayError, RuntimeError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise Unreachable(f"no Ray runs here ({said}): run `raysched up`, or set RAY_ADDRESS") from None


@atexit.register
def _close() -> None:
    if _current is not None:
        _current.close()
