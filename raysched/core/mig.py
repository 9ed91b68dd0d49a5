"""NVIDIA's Multi-Instance GPU: what a GPU can be cut into, and how it is cut.

A GPU has a grid of memory slices. A profile is a size of instance and the places on the grid where it may
start; two instances may not overlap. That no two overlap is the whole rule: disjoint placements never need
more compute slices than there are (NVIDIA MIG User Guide, "Supported MIG profiles").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Profile:
    """A size of instance on one GPU. `id` is NVML's GPU instance profile id, which no driver changes;
    `name` is this driver's name of it. `slices` counts compute slices, `memory` is in MiB, `size` and
    `starts` are in memory slices; `most` is how many of it fit at once."""

    id: int
    name: str
    slices: int
    memory: int
    starts: tuple[int, ...]
    size: int
    most: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a GPU can be cut into. `cells` is its number of memory slices, `slices` of compute slices;
    `switchable` says whether raysched may turn the MIG mode on and off."""

    cells: int
    slices: int
    profiles: tuple[Profile, ...]
    switchable: bool

    def __hash__(self) -> int:
        """Of a part that tells most GPUs apart: it is a key of caches, and all of it takes long to hash."""
        return hash((self.cells, self.slices, *(profile.memory for profile in self.profiles[:1])))

    def profile(self, id: int) -> Profile | None:
        """The profile with this id."""
        for profile in self.profiles:
            if profile.id == id:
                return profile
        return None


@cache
def shared(geometry: Geometry) -> Geometry:
    """One object for all equal geometries: caches that it is a key of then find it without comparing it."""
    return geometry


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """A placement: an instance of the profile with this id that begins at memory slice `start`."""

    profile: int
    start: int


DAEMON = Cut(-1, -1)
"""What stands for a GPU's MPS daemon where it could not be started or stopped: no profile has that id."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance that exists, by the UUID that CUDA knows it by (`MIG-...`)."""

    uuid: str
    cut: Cut


@dataclass(frozen=True, slots=True)
class Layout:
    """How a GPU is cut now: whether it is in MIG mode, and its instances in the order of their start. `mps`
    is the pipe directory of the MPS daemon that raysched runs for it, empty where it runs none."""

    enabled: bool = False
    instances: tuple[Instance, ...] = ()
    mps: str = ""


UNCUT = Layout()
