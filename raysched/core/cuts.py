"""Where on one GPU a MIG instance goes.

An instance that exists and that nobody has is taken first; then a free place; then one where instances that
nobody has are destroyed; last a GPU that has to be turned to MIG mode. Among places, the one that costs the
fewest ways in which the rest could be used later (`worth`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

from raysched.core.mig import Cut, Geometry, Instance, Profile
from raysched.core.node import GPU

STEPS = {"take": 0, "create": 1, "recut": 2, "turn": 3}
"""What has to be done for a choice, the best first: nothing, make an instance, destroy free ones before that,
switch the MIG mode on before that."""

_STEP = 10**9
_FULL = 1000


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """A placement on one GPU; less cost is better."""

    cost: int
    cut: Cut


def choices(gpu: GPU, profile: Profile, chosen: Collection[Cut] = ()) -> Iterator[Choice]:
    """Every placement where an instance of the profile can be had now, if `chosen` are given away too. What
    the driver refused is none."""
    geometry = gpu.info.mig
    if geometry is None:
        return
    held = [*gpu.held_cuts(), *chosen]
    busy, free = _others(gpu, held)
    taken = [*held, *(instance.cut for instance in busy)]
    if sum(cut.profile == profile.id for cut in taken) >= profile.most:
        return
    blocked = 0
    for cut in taken:
        blocked |= cut_mask(geometry, cut)
    fuller = min(len(gpu.tenants) + len(chosen), 99)
    for start in profile.starts:
        cells = mask(profile, start)
        if blocked & cells:
            continue
        cut = Cut(profile.id, start)
        step = _step(gpu, cut, overlapping(geometry, cut, free) if free else [], bool(chosen))
        if step is not None:
            lost = worth(geometry, blocked) - worth(geometry, blocked | cells)
            yield Choice(step * _STEP + lost * 100 - fuller, cut)


def _step(gpu: GPU, cut: Cut, destroyed: list[Cut], chosen: bool) -> int | None:
    """What has to be done for an instance at `cut`, or None where the driver refused it. `chosen`: the GPU is
    to be cut for the same lease anyway."""
    if destroyed == [cut]:
        return STEPS["take"]
    if gpu.refusals and gpu.refusal(cut, *destroyed):
        return None
    if gpu.info.layout.enabled:
        return STEPS["recut" if destroyed else "create"]
    if gpu.refusals and gpu.refusal(None):
        return None
    return STEPS["create" if gpu.tenants or chosen else "turn"]


def busy_instances(gpu: GPU) -> list[Instance]:
    """The instances that strangers use: all that no tenant has, where it was not seen which."""
    return _others(gpu, gpu.held_cuts())[0]


def free_instances(gpu: GPU) -> list[Instance]:
    """The instances that exist and that nobody has or uses."""
    return _others(gpu, gpu.held_cuts())[1]


def _others(gpu: GPU, held: Collection[Cut]) -> tuple[list[Instance], list[Instance]]:
    """The instances that nobody holds: those that strangers use, and the free ones."""
    rest = [instance for instance in gpu.info.layout.instances if instance.cut not in held]
    if gpu.strangers:
        busy = [instance for instance in rest if instance.uuid in gpu.strangers]
        return busy, [instance for instance in rest if instance not in busy]
    return (rest, []) if gpu.foreign else ([], rest)


def room_left(gpu: GPU, profile: Profile) -> int:
    """How many instances of the profile could still be had of a GPU that is in MIG mode or may be turned to
    it; free ones count, and are destroyed where they are in the way."""
    if gpu.sharing not in (None, "mig") or gpu.closed or gpu.info.fault or not _cuttable(gpu):
        return 0
    chosen: list[Cut] = []
    while (best := min(choices(gpu, profile, chosen), default=None)) is not None:
        chosen.append(best.cut)
    return len(chosen)


def _cuttable(gpu: GPU) -> bool:
    if gpu.info.layout.enabled:
        return True
    return gpu.info.mig is not None and gpu.info.mig.switchable and not gpu.used_by_strangers


def overlapping(geometry: Geometry, cut: Cut, instances: Collection[Instance]) -> list[Cut]:
    """Those of the instances that lie where `cut` would."""
    cells = cut_mask(geometry, cut)
    return [instance.cut for instance in instances if cells & cut_mask(geometry, instance.cut)]


def mask(profile: Profile, start: int) -> int:
    """The memory slices of an instance, as a bit mask."""
    return (1 << profile.size) - 1 << start


def cut_mask(geometry: Geometry, cut: Cut) -> int:
    """The memory slices at a placement; all of them where its profile is not known."""
    profile = geometry.profile(cut.profile)
    return mask(profile, cut.start) if profile else (1 << geometry.cells) - 1


# ---------------------------------------------------------------- what is worth keeping


@lru_cache(maxsize=65_536)
def worth(geometry: Geometry, blocked: int) -> int:
    """How much can still be made of a GPU whose `blocked` memory slices are taken: the number of different
    sets of instances that leave no memory slice over, and then of all sets that fit."""
    shapes = tuple(dict.fromkeys((profile.size, profile.starts) for profile in geometry.profiles))
    sets = _sets(shapes, blocked)
    left = geometry.cells - blocked.bit_count()
    full = sum(sum(n * size for n, (size, _) in zip(counts, shapes, strict=True)) == left for counts in sets)
    return full * _FULL + min(len(sets), _FULL - 1)


@lru_cache(maxsize=65_536)
def _sets(shapes: tuple[tuple[int, tuple[int, ...]], ...], blocked: int) -> frozenset[tuple[int, ...]]:
    """Every set of instances that fits beside `blocked`, as the count of each shape."""
    sets = {(0,) * len(shapes)}
    for at, (size, starts) in enumerate(shapes):
        for start in starts:
            cells = (1 << size) - 1 << start
            if not blocked & cells:
                for rest in _sets(shapes, blocked | cells):
                    sets.add((*rest[:at], rest[at] + 1, *rest[at + 1 :]))
    return frozenset(sets)
