"""MIG as NVML has it: what a GPU can be cut into, how it is cut, and the cutting itself.

A GPU instance is a part of the hardware, a compute instance in it is what programs use, and the two together
are a MIG device with a UUID. Here each GPU instance has one compute instance, for the whole of it. Handles
of any of them go stale with a change, so none is kept.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from ctypes import byref, c_uint
from typing import Any

import pynvml

from raysched.core.mig import UNCUT, Cut, Geometry, Instance, Layout, Profile
from raysched.gpu.answers import FORBIDDEN, UNKNOWN, code, known
from raysched.gpu.driver import PartitionRefused
from raysched.gpu.geometries import Row, named, starts_of

ON, OFF = pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_DISABLE
QUESTIONS = 64
"""More numbers of profiles than any driver knows; it says where its own end."""

Place = tuple[int, int]
"""Start and size in memory slices."""


# ---------------------------------------------------------------- what there is


def enabled(handle: Any) -> bool | None:
    """Whether the MIG mode is on; None for a GPU without MIG."""
    modes = known(pynvml.nvmlDeviceGetMigMode, handle)
    return None if modes is None else modes[0] == ON


def geometry(handle: Any, memory: int | None) -> Geometry | None:
    """What a GPU of `memory` bytes can be cut into; None for one without MIG, and for one whose MIG mode is
    off and whose grid is not known here: NVML tells where instances may start only while it is on."""
    if enabled(handle) is None:
        return None
    infos = list(_profiles(handle))
    rows = starts_of({info.id: info.sliceCount for info in infos})
    found = [
        _profile(info, places, rows, memory) for info in infos if (places := _places(handle, info, rows))
    ]
    if not found:
        return None
    cells = max(profile.starts[-1] + profile.size for profile in found)
    slices = max(profile.slices for profile in found)
    return Geometry(cells, slices, tuple(found), switchable=os.geteuid() == 0)


def _profiles(handle: Any) -> Iterator[Any]:
    """NVML's descriptions of the profiles; of an old driver without their names."""
    for number in range(QUESTIONS):
        try:
            yield _described(handle, number)
        except pynvml.NVMLError as problem:
            if code(problem) == pynvml.NVML_ERROR_INVALID_ARGUMENT:
                return
            if code(problem) not in UNKNOWN:
                raise


def _described(handle: Any, number: int) -> Any:
    try:
        return pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, number, version=2)
    except pynvml.NVMLError as problem:
        if code(problem) != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        return pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, number, version=1)


def _places(handle: Any, info: Any, rows: dict[int, Row] | None) -> list[Place]:
    """Where instances of a profile may start, from NVML, else from the grid."""
    count = c_uint(0)
    try:
        pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, info.id, None, byref(count))
        room = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
        pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, info.id, room, byref(count))
        return sorted((place.start, place.size) for place in room[: count.value])
    except pynvml.NVMLError as problem:
        if code(problem) not in UNKNOWN:
            raise
    row = rows.get(info.id) if rows else None
    return [(start, row.size) for start in row.starts] if row else []


def _profile(info: Any, places: list[Place], rows: dict[int, Row] | None, memory: int | None) -> Profile:
    name = getattr(info, "name", b"")
    text = name.decode() if isinstance(name, bytes) else name
    # NVML is known to tell a wrong number of instances for the A30, so the grid goes before it.
    most = rows[info.id].most if rows and info.id in rows else info.instanceCount
    return Profile(
        id=info.id,
        name=text.removeprefix("MIG ") or _old_name(info, rows, memory),
        slices=info.sliceCount,
        memory=info.memorySizeMB,
        starts=tuple(start for start, _ in places),
        size=places[0][1],
        most=most,
    )


def _old_name(info: Any, rows: dict[int, Row] | None, memory: int | None) -> str:
    """The name that newer drivers give: the part of the memory in eighths, of whole GiB, rounded."""
    total = memory or info.memorySizeMB * 2**20
    eighths = -(-8 * info.memorySizeMB * 2**20 // total)
    size = round(eighths / 8 * -(-total // 2**30))
    return f"{info.sliceCount}g.{size}gb{rows[info.id].extra if rows and info.id in rows else ''}"


# ---------------------------------------------------------------- how it is cut


def devices(handle: Any) -> list[tuple[str, Any]]:
    """UUID and handle of each MIG device of a GPU."""
    if not enabled(handle):
        return []
    found = [_device(handle, number) for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle))]
    return [(pynvml.nvmlDeviceGetUUID(device), device) for device in found if device is not None]


def _device(handle: Any, number: int) -> Any:
    try:
        return pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
    except pynvml.NVMLError as problem:
        if code(problem) == pynvml.NVML_ERROR_NOT_FOUND:
            return None
        raise


def layout(handle: Any, geometry: Geometry | None, before: Layout = UNCUT) -> Layout:
    """How a GPU is cut now, and was cut `before`. A GPU instance that is divided further, by hand, is not
    among the instances: no lease is for a part of one."""
    if geometry is None or not enabled(handle):
        return UNCUT
    there = devices(handle)
    whole = [(uuid, device) for uuid, device in there if _is_whole(device)]
    try:
        places = _places_of(handle, [device for _, device in there])
        cuts = [places[pynvml.nvmlDeviceGetGpuInstanceId(device)] for _, device in whole]
    except pynvml.NVMLError as problem:
        if code(problem) != FORBIDDEN:
            raise
        cuts = _guessed(whole, geometry, {each.uuid: each.cut for each in before.instances})
    found = [Instance(uuid, cut) for (uuid, _), cut in zip(whole, cuts, strict=True)]
    return Layout(True, tuple(sorted(found, key=lambda each: each.cut.start)))


def _is_whole(device: Any) -> bool:
    attributes = pynvml.nvmlDeviceGetAttributes_v2(device)
    return attributes.computeInstanceSliceCount == attributes.gpuInstanceSliceCount


def _places_of(handle: Any, devices: list[Any]) -> dict[int, Cut]:
    """Where each GPU instance lies, by its number. Each device is in one, and each that has a compute
    instance has a device: else the GPU was cut while it was read."""
    numbers = {pynvml.nvmlDeviceGetGpuInstanceId(device) for device in devices}
    places: dict[int, Cut] = {}
    for instance in _all(handle):
        info = pynvml.nvmlGpuInstanceGetInfo(instance)
        places[info.id] = Cut(info.profileId, info.placement.start)
        if info.id not in numbers and _compute_instances(instance):
            raise _cut_meanwhile()
    if not places.keys() >= numbers:
        raise _cut_meanwhile()
    return places


def _guessed(found: list[tuple[str, Any]], geometry: Geometry, before: dict[str, Cut]) -> list[Cut]:
    """Only root is told the places; without it any that are legal together stand for the true ones, which
    nobody then can change. A device keeps the place that it was given, as tenants know it by that."""
    kept = {uuid: before[uuid] for uuid, _ in found if uuid in before}
    new = {uuid: _profile_of(device, geometry) for uuid, device in found if uuid not in before}
    try:
        places = arranged(list(new.values()), geometry, kept.values())
    except ValueError:
        raise _cut_meanwhile() from None
    kept.update(zip(new, places, strict=True))
    return [kept[uuid] for uuid, _ in found]


def _cut_meanwhile() -> pynvml.NVMLError:
    """What was read does not fit together."""
    return pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)


def _of_profile(handle: Any, profile: Any) -> list[Any]:
    """The GPU instances of a profile."""
    room = (pynvml.c_nvmlGpuInstance_t * max(profile.instanceCount, 8))()
    count = c_uint(0)
    pynvml.nvmlDeviceGetGpuInstances(handle, profile.id, room, byref(count))
    return list(room[: count.value])


def _cut(instance: Any) -> Cut:
    info = pynvml.nvmlGpuInstanceGetInfo(instance)
    return Cut(info.profileId, info.placement.start)


def _profile_of(device: Any, geometry: Geometry) -> Profile:
    """The profile of a MIG device by its size: the plainest one that fits."""
    seen = pynvml.nvmlDeviceGetAttributes_v2(device)
    like = [profile for profile in geometry.profiles if profile.slices == seen.gpuInstanceSliceCount]
    return min(like, key=lambda profile: (abs(profile.memory - seen.memorySizeMB), len(profile.name)))


def arranged(profiles: list[Profile], geometry: Geometry, beside: Collection[Cut] = ()) -> list[Cut]:
    """A legal place for each of these instances, which exist together, `beside` those whose place is known.
    Raises ValueError where there is none."""
    sizes = {profile.id: profile.size for profile in geometry.profiles}
    taken = {cell for cut in beside for cell in range(cut.start, cut.start + sizes[cut.profile])}
    order = sorted(range(len(profiles)), key=lambda at: -profiles[at].size)
    starts = _arrange([profiles[at] for at in order], frozenset(taken))
    if starts is None:
        raise ValueError("these instances do not fit together")
    chosen = dict(zip(order, starts, strict=True))
    return [Cut(profile.id, chosen[at]) for at, profile in enumerate(profiles)]


def _arrange(profiles: list[Profile], taken: frozenset[int]) -> list[int] | None:
    """Starts that do not overlap, tried in turn; None where there are none."""
    if not profiles:
        return []
    for start in profiles[0].starts:
        cells = frozenset(range(start, start + profiles[0].size))
        if cells & taken:
            continue
        rest = _arrange(profiles[1:], taken | cells)
        if rest is not None:
            return [start, *rest]
    return None


# ---------------------------------------------------------------- cutting


def switch(handle: Any, on: bool, name: str) -> None:
    """Turn the MIG mode on or off. A change that the driver would only make later is taken back. Raises
    PartitionRefused."""
    if enabled(handle) == on:
        return
    what = f"the MIG mode of {name} can't be turned {'on' if on else 'off'}"
    try:
        status = pynvml.nvmlDeviceSetMigMode(handle, ON if on else OFF)
        if enabled(handle) == on:
            return
        pynvml.nvmlDeviceSetMigMode(handle, OFF if on else ON)
    except pynvml.NVMLError as problem:
        raise PartitionRefused(f"{what}: {_reason(code(problem), problem)}") from problem
    raise PartitionRefused(f"{what}: {_reason(status, None)}")


def destroy(handle: Any, geometry: Geometry, cut: Cut) -> None:
    """Destroy an instance; silent where there is none. Raises PartitionRefused."""
    try:
        for instance in _all(handle):
            if _cut(instance) == cut:
                _destroy(instance)
    except pynvml.NVMLError as problem:
        what = f"{named(geometry, cut)} can't be destroyed"
        raise PartitionRefused(f"{what}: {_reason(code(problem), problem)}", cut) from problem


def create(handle: Any, geometry: Geometry, cut: Cut) -> None:
    """Make an instance; silent where it is there. One that was left half made, without a compute instance,
    is finished, or destroyed where it is in the way: nothing can run in it. Raises PartitionRefused."""
    try:
        _create(handle, geometry, cut)
    except pynvml.NVMLError as problem:
        what = f"{named(geometry, cut)} can't be made"
        raise PartitionRefused(f"{what}: {_reason(code(problem), problem)}", cut) from problem


def _create(handle: Any, geometry: Geometry, cut: Cut) -> None:
    sizes = {profile.id: profile.size for profile in geometry.profiles}
    if cut.profile not in sizes:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    cells = range(cut.start, cut.start + sizes[cut.profile])
    for instance in _all(handle):
        there = _cut(instance)
        if there == cut:
            _finish(handle, geometry, instance)
            return
        overlaps = any(
            cell in cells for cell in range(there.start, there.start + sizes.get(there.profile, 0))
        )
        if overlaps and not _compute_instances(instance):
            pynvml.nvmlGpuInstanceDestroy(instance)
    place = pynvml.c_nvmlGpuInstancePlacement_t(cut.start, sizes[cut.profile])
    made = pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(handle, cut.profile, byref(place))
    try:
        _finish(handle, geometry, made)
    except pynvml.NVMLError:
        pynvml.nvmlGpuInstanceDestroy(made)
        raise


def _finish(handle: Any, geometry: Geometry, instance: Any) -> None:
    """Give a GPU instance the compute instance for the whole of it, if it has none."""
    cut = _cut(instance)
    slices = next((info.sliceCount for info in _profiles(handle) if info.id == cut.profile), None)
    there = [profile.sliceCount for profile, _ in _compute_instances(instance)]
    if there == [slices]:
        return
    if there:
        raise PartitionRefused(f"somebody has divided {named(geometry, cut)} into smaller ones by hand", cut)
    whole = [info for info in _compute_profiles(instance) if info.sliceCount == slices]
    if not whole:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    best = max(whole, key=lambda info: info.multiprocessorCount)
    pynvml.nvmlGpuInstanceCreateComputeInstance(instance, best.id)


def _destroy(instance: Any) -> None:
    for _, compute in _compute_instances(instance):
        pynvml.nvmlComputeInstanceDestroy(compute)
    pynvml.nvmlGpuInstanceDestroy(instance)


def _all(handle: Any) -> list[Any]:
    """All GPU instances of a GPU, those without a compute instance included."""
    if not enabled(handle):
        return []
    return [instance for profile in _profiles(handle) for instance in _of_profile(handle, profile)]


def _compute_profiles(instance: Any) -> Iterator[Any]:
    shared = pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
    for number in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        try:
            yield pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, number, shared)
        except pynvml.NVMLError as problem:
            if code(problem) not in (*UNKNOWN, pynvml.NVML_ERROR_INVALID_ARGUMENT):
                raise


def _compute_instances(instance: Any) -> list[tuple[Any, Any]]:
    """The compute instances of a GPU instance, each with its profile."""
    found: list[tuple[Any, Any]] = []
    for profile in _compute_profiles(instance):
        room = (pynvml.c_nvmlComputeInstance_t * 8)()
        count = c_uint(0)
        pynvml.nvmlGpuInstanceGetComputeInstances(instance, profile.id, room, byref(count))
        found += [(profile, compute) for compute in room[: count.value]]
    return found


def _reason(status: int, problem: pynvml.NVMLError | None) -> str:
    """Why the driver does not cut, and what to do."""
    match status:
        case pynvml.NVML_ERROR_NO_PERMISSION:
            return "only root may, or who may read /proc/driver/nvidia/capabilities/mig/config"
        case pynvml.NVML_ERROR_IN_USE:
            return (
                "something uses it; end that first: a program that `nvidia-smi` lists, or a service that "
                "watches GPUs, such as nvidia-persistenced or dcgm"
            )
        case pynvml.NVML_ERROR_RESET_REQUIRED:
            return "the driver wants the GPU to be reset first: `nvidia-smi --gpu-reset`, or reboot the node"
        case pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES:
            return "the driver has no room for it there"
        case pynvml.NVML_ERROR_NOT_SUPPORTED | pynvml.NVML_ERROR_INVALID_ARGUMENT:
            return "the driver does not offer it on this GPU"
        case _:
            return str(problem or pynvml.NVMLError(status))
