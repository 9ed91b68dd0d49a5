"""What a request of the model asks for, and whether nodes have enough of it."""

from __future__ import annotations

import re
from dataclasses import replace

from raysched.core.request import Request

_PROFILE = re.compile(r"(\d+)g\.(\d+)gb(.*)")


def ways(request: Request) -> list[Request]:
    """The ways of sharing that will do."""
    first = replace(request, or_mig=False, or_mps=False)
    others = [("mig", request.or_mig), ("mps", request.or_mps)]
    return [first, *(replace(first, sharing=way) for way, will_do in others if will_do)]


def enough(request: Request, rooms: list[int]) -> bool:
    """Whether nodes with so many suitable GPUs each can serve a request together."""
    if request.nodes is not None:
        part = request.gpus // request.nodes
        return sum(room >= part for room in rooms) >= request.nodes
    return sum(rooms) >= request.gpus if request.gpus > 1 else any(room >= request.gpus for room in rooms)


def is_of(model: str, types: tuple[str, ...]) -> bool:
    """Whether a product name has all words of one of the types, in a row."""
    name = " ".join(re.findall("[a-z0-9]+", model.lower()))
    return not types or any(
        f" {' '.join(re.findall('[a-z0-9]+', kind.lower()))} " in f" {name} " for kind in types
    )


def off(one: str, other: str) -> int:
    """By how much the memory differs that the names of two MIG profiles tell."""
    return abs(_size(one) - _size(other))


def alike(one: str, other: str) -> bool:
    """Whether the names of two MIG profiles mean the same: drivers round the memory differently."""
    first, second = _PROFILE.fullmatch(one.lower()), _PROFILE.fullmatch(other.lower())
    if first is None or second is None or (first[1], first[3]) != (second[1], second[3]):
        return False
    return off(one, other) * 8 <= max(_size(one), _size(other))


def _size(profile: str) -> int:
    return int(_PROFILE.fullmatch(profile.lower())[2])
