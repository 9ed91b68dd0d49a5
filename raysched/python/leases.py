"""Leases as a program holds them: `with raysched.lease(...)`, and placement groups of whole GPUs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from typing_extensions import Self, Unpack

from raysched.actors.calls.placing import environment, group_of, place_options, sharing
from raysched.core.request import WHOLE
from raysched.core.work import Owned
from raysched.errors import Conflict, LeaseLost, SpecError
from raysched.python.connection import Connection, connect
from raysched.python.options import shape_of
from raysched.specs.resources import LeaseOptions, LeaseSpec, check_options


class Lease:
    """GPUs that a program holds while it is in the `with` block. Everything that runs under the lease ends
    with the block, be it left by an exception or not."""

    def __init__(self, spec: LeaseSpec, asked: dict[str, Any], timeout: float | None) -> None:
        self._spec = spec
        self._asked = asked
        self._timeout = timeout
        self._owned: Owned | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        if self._owned is not None:
            raise Conflict("this lease is held already: make another one with raysched.lease(...)")
        self._connection = connect()
        self._owned = obtain(self._connection, program(), self._asked, self._timeout, keep=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        owned, self._owned = self._owned, None
        if owned is None or self._connection is None or not self._connection.alive:
            return
        lost: Any = ray.get(self._connection.relay.release.remote(owned.job))
        if lost and (error is None or isinstance(error, RayError)):
            raise _lost(owned, lost) from error

    def __repr__(self) -> str:
        if self._owned is None:
            return f"Lease({', '.join(f'{name}={value!r}' for name, value in self._asked.items())}, not held)"
        parts = [
            f"{slice.device} {slice.share / WHOLE:g}"
            for place in self._owned.places
            for slice in place.slices
        ]
        nodes = ", ".join(place.node for place in self._owned.places)
        return f"Lease({self._owned.lease}: {', '.join(parts) or 'no GPU'} on {nodes})"

    @property
    def id(self) -> str:
        """The lease's id, which every process under it has as RAYSCHED_LEASE."""
        return self._held.lease or ""

    @property
    def gpus(self) -> tuple[str, ...]:
        """The UUIDs of its GPUs, or MIG instances, node by node."""
        return tuple(slice.device for place in self._held.places for slice in place.slices)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of its nodes; `place` counts them."""
        return tuple(place.node for place in self._held.places)

    @property
    def env(self) -> dict[str, str]:
        """The variables for a process under the lease on its first node."""
        return environment(self._held, 0)

    @property
    def placement_group(self) -> PlacementGroup | None:
        """Ray's placement group of the first node: of whole GPUs it is the lease's own, of a part of a GPU it
        is that GPU's, which other tenants are in as well. None where the lease takes nothing in Ray."""
        groups = self._held.groups
        return group_of(groups[0].id) if groups else None

    def options(self, place: int = 0) -> dict[str, Any]:
        """What to pass to `.options(...)` of a plain Ray task or actor, so that it runs in the lease and sees
        its GPUs on one of its nodes. Of whole GPUs it takes all of the node's; on a part of a GPU any number
        of tasks and actors share the lease's part."""
        owned = self._held
        options = place_options(owned, place)
        if sharing(owned) != "exclusive":
            return options | {"num_gpus": 0, "num_cpus": 0}  # the lease's own actor holds the share
        return options

    @property
    def _held(self) -> Owned:
        if self._owned is None:
            raise Conflict("this lease is not held: use it inside `with raysched.lease(...) as lease:`")
        lost = self._connection and self._connection.dispatcher.lost_leases.get(self._owned.job)
        if lost:
            raise _lost(self._owned, lost)
        return self._owned


def _lost(owned: Owned, reason: str) -> LeaseLost:
    return LeaseLost(f"lease {owned.lease} was lost while it was held, with all that ran under it: {reason}")


def lease(*, timeout: float | None = None, **options: Unpack[LeaseOptions]) -> Lease:
    """A lease to use as `with raysched.lease(gpus=2) as lease:`, which waits until it is granted.

    `timeout` is how many seconds that may take; then the request is taken back and TimeoutError raised.
    Raises SpecError where an option is wrong, Refused where no node could ever give it, and Unreachable.
    """
    asked = dict(options)
    return Lease(check_options(asked), asked, timeout)


_groups: dict[str, tuple[Connection, str]] = {}
"""The job of each placement group of ours, by the group's id."""


def placement_group(*, timeout: float | None = None, **options: Unpack[LeaseOptions]) -> PlacementGroup:
    """A placement group of whole GPUs, one bundle a node, granted by raysched's queue: waits for it.

    It goes back by `raysched.release`, `ray.util.remove_placement_group`, or with the program. Raises like
    `lease`, and SpecError for parts of GPUs.
    """
    asked = dict(options)
    spec = check_options(asked)
    if spec.gpus == 0 or spec.mode != "exclusive":
        raise SpecError("a placement group is of whole GPUs: for a part of one use raysched.lease")
    connection = connect()
    owned = obtain(connection, program(), asked, timeout, keep=False)
    group = owned.groups[0].id
    connection.relay.watch_group.remote(owned.job, group)
    _groups[group] = (connection, owned.job)
    return group_of(group)


def release(group: PlacementGroup) -> None:
    """Give back a placement group of `raysched.placement_group`; what runs in it ends. Giving it back twice
    is silent. Raises SpecError for any other group."""
    id = group.id.hex()
    if id not in _groups:
        raise SpecError("this placement group is not one that raysched.placement_group made in this program")
    connection, job = _groups[id]
    if connection.alive:
        ray.get(connection.relay.release.remote(job))


def program() -> str:
    """What people see as the name of a lease that a program holds: the program's."""
    return Path(sys.argv[0]).name or "python"


def obtain(
    connection: Connection, name: str, asked: dict[str, Any], timeout: float | None, keep: bool
) -> Owned:
    """Wait for a lease. An interruption takes the request back."""
    asking = connection.relay.obtain.remote(shape_of(name, asked), timeout, keep)
    try:
        return ray.get(asking)
    except RayTaskError as error:
        raise error.cause from None
    except BaseException:
        ray.cancel(asking)
        raise
