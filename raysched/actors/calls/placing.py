"""How an actor or a task of Ray is put into a lease."""

from __future__ import annotations

from typing import Any, cast

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysched.core.environment import advice, variables
from raysched.core.lease import Place
from raysched.core.request import WHOLE, Sharing
from raysched.core.work import Owned

AS_GIVEN = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
"""Keeps Ray from replacing the lease's devices by an index of its own."""


def worker_options(owned: Owned) -> dict[str, Any]:
    """The options of the one actor that has the first place of a lease to itself, and restarts in it."""
    return place_options(owned, 0) | {"max_restarts": -1}


def place_options(owned: Owned, number: int) -> dict[str, Any]:
    """The options that put a task or an actor into a place of a bound lease, with all that it has there."""
    return resources(owned, number) | {
        "runtime_env": {"env_vars": environment(owned, number) | AS_GIVEN},
        "scheduling_strategy": strategy(owned, number),
    }


def resources(owned: Owned, number: int) -> dict[str, Any]:
    """What Ray counts for a place. Beside a part of a GPU, CPUs are held apart; of parts of several GPUs
    all but the first are."""
    place = owned.places[number]
    if not owned.groups:
        return {"num_cpus": 0, "num_gpus": 0}
    if not place.slices:
        return {"num_cpus": place.cpus / WHOLE, "num_gpus": 0}
    if sharing(owned) == "exclusive":
        return {"num_cpus": place.cpus / WHOLE, "num_gpus": len(place.slices)}
    return {"num_cpus": 0, "num_gpus": place.slices[0].share / WHOLE}


def environment(owned: Owned, number: int) -> dict[str, str]:
    """The variables of a place: the lease's marker, its devices there, and its share."""
    place: Place = owned.places[number]
    return {**advice(sharing(owned), place), **variables(owned.lease or "", sharing(owned), place)}


def sharing(owned: Owned) -> Sharing:
    """How the lease's GPUs are shared."""
    return cast(Sharing, dict(owned.env).get("RAYSCHED_SHARING", "exclusive"))


def strategy(owned: Owned, number: int) -> PlacementGroupSchedulingStrategy | str:
    """Where Ray puts it; anywhere if the lease takes nothing in Ray."""
    if not owned.groups:
        return "DEFAULT"
    group = owned.groups[number]
    return PlacementGroupSchedulingStrategy(group_of(group.id), placement_group_bundle_index=group.bundle)


def group_of(id: str) -> PlacementGroup:
    """The placement group whose id in hex is `id`."""
    return PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id)))
