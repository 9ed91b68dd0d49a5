"""MIG profiles as people name them, found among those that a GPU has.

The same cut of the same card has other names under other drivers (`3g.40gb` is `3g.39gb` on driver 535,
GB300's `1g.35gb` is `1g.31gb` on 61x), so a name is matched by what it says: compute slices, attributes such
as `+me`, and memory, which may be off by `TOLERANCE`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from raysched.core.mig import Geometry, Profile
from raysched.core.request import WHOLE

TOLERANCE = 8
"""The memory in a name may differ from the GPU's own by one part in this many of the larger: drivers were
seen to differ by up to 1/9, and the sizes of one GPU differ by more."""

_NAME = re.compile(r"(\d+)g\.(\d+)gb((?:[+-][a-z.]+)*)")


@lru_cache(maxsize=4096)
def profile_named(geometry: Geometry, name: str) -> Profile | None:
    """The GPU's profile that people mean by `name`, or None where it has none."""
    asked = _read(name)
    if asked is None:
        return None
    slices, size, attributes = asked
    alike = [
        (abs(own[1] - size), max(own[1], size), profile)
        for profile in geometry.profiles
        if (own := _read(profile.name)) and (own[0], own[2]) == (slices, attributes)
    ]
    off, larger, profile = min(alike, key=lambda found: found[0], default=(1, 0, None))
    return profile if off * TOLERANCE <= larger else None


def _read(name: str) -> tuple[int, int, str] | None:
    match = _NAME.fullmatch(name.lower())
    return (int(match[1]), int(match[2]), match[3]) if match else None


def alike(one: str, other: str) -> bool:
    """Whether two names mean the same profile."""
    first, second = _read(one), _read(other)
    if first is None or second is None or (first[0], first[2]) != (second[0], second[2]):
        return False
    return abs(first[1] - second[1]) * TOLERANCE <= max(first[1], second[1])


@lru_cache(maxsize=4096)
def smallest_profile(geometry: Geometry, memory: int, share: int = 0) -> Profile | None:
    """The smallest profile with at least `memory` MiB and this share of the compute, or None. Profiles with
    attributes are only given to those who name them."""
    enough = [
        profile
        for profile in geometry.profiles
        if profile.memory >= memory and share_of(geometry, profile) >= share and _plain(profile)
    ]
    return min(enough, key=lambda profile: (profile.memory, profile.slices), default=None)


def _plain(profile: Profile) -> bool:
    read = _read(profile.name)
    return read is not None and not read[2]


def share_of(geometry: Geometry, profile: Profile) -> int:
    """The share of a GPU's compute that an instance has, in ten-thousandths, rounded down."""
    return profile.slices * WHOLE // geometry.slices
