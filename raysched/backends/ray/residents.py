"""Residents: actors that keep a lease's share of a GPU for as long as the lease lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from raysched.backends.ray import groups
from raysched.backends.ray.agents import NAMESPACE
from raysched.backends.ray.exact import Ask, Unavailable
from raysched.core.lease import Group
from raysched.core.request import WHOLE
from raysched.core.work import Hold
from raysched.errors import Unreachable

START_S = 60.0
"""How long a resident may take to start: a new process, on a machine that may be busy."""

END_S = 30.0
"""How long a resident may take to be gone once it was killed."""


class Resident:
    """Does nothing but be there: Ray counts its share, and the dashboard shows whose it is.

    It carries no marker of the lease (`RAYSCHED_LEASE`): the processes of a lease are ended first, and its
    residents only then.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text

    def here(self) -> None:
        """Return once the actor runs, and so holds its share."""


@dataclass(frozen=True, slots=True)
class Seat:
    """What one actor takes in a bundle of a placement group: `gpus` and `cpus` in Ray's fractions, memory in
    bytes. `ask` says of which GPUs of which node."""

    group_id: str
    bundle: int
    ask: Ask
    gpus: float
    cpus: float = 0.0
    memory: int = 0

    @classmethod
    def whole(cls, group_id: str, bundle: int, ask: Ask) -> Seat:
        """All of a bundle."""
        size = ask.bundle
        return cls(group_id, bundle, ask, size.gpus, size.cpus / WHOLE, size.memory * groups.MIB)

    @property
    def group(self) -> Group:
        """Where it is, as the ledger notes it."""
        return Group(self.group_id, self.bundle)


def name(hold: Hold, number: int) -> str:
    """The name of a lease's resident, readable and unique."""
    return f"{hold.label} ({hold.lease}{f'/{number}' if number else ''})"


async def start(hold: Hold, seat: Seat, name: str) -> None:
    """Start a resident and wait until it holds its share; one that is there is left alone. It comes back by
    itself when its process is killed. Raises Unavailable."""
    gpus = " and ".join(f"GPU {gpu.index}" for gpu in seat.ask.gpus)
    text = f"{hold.label}: {seat.gpus:g} of {gpus} of {seat.ask.node}"
    try:
        actor = await asyncio.to_thread(_make, seat, name, text)
        if await asyncio.wait_for(_lives(actor), START_S):
            return
    except (RayError, asyncio.TimeoutError):
        pass
    raise Unavailable(f"{seat.ask.node} could not start the actor that keeps the share")


def _make(seat: Seat, name: str, text: str) -> Any:
    options = {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_gpus": seat.gpus,
        "num_cpus": seat.cpus,
        "memory": seat.memory or None,
        "max_restarts": -1,
        "scheduling_strategy": groups.inside(groups.of_id(seat.group_id), seat.bundle),
    }
    return ray.remote(Resident).options(**options).remote(text)


async def end(names: Sequence[str]) -> None:
    """End residents and return once they are gone; silent for those that are. Raises Unreachable where one
    is still there after a while."""
    await asyncio.gather(*(_end(name) for name in names))


async def _end(name: str) -> None:
    try:
        actor = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
    except ValueError:
        return
    ray.kill(actor, no_restart=True)
    try:
        await asyncio.wait_for(_gone(actor), END_S)
    except asyncio.TimeoutError:
        raise Unreachable(f"Ray does not end the actor {name}") from None


async def _gone(actor: Any) -> None:
    while await _lives(actor):
        await asyncio.sleep(0.02)


async def _lives(actor: Any) -> bool:
    """Whether an actor is there, once that is certain: not while it starts, or comes back after a kill."""
    while True:
        try:
            await actor.here.remote()
            return True
        except ActorDiedError:
            return False
        except ActorUnavailableError:
            await asyncio.sleep(0.1)
