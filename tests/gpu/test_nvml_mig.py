"""MIG through the real pynvml, on a fake library that keeps its state between processes, as a driver does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import fake_state
from fake_nvml.fake_state import DRIVER
from hypothesis import given
from hypothesis import strategies as st

from raysched.core.mig import Profile
from raysched.gpu.geometries import CUT, geometry_of
from raysched.gpu.instances import arranged
from raysched.gpu.models import MODELS

Script = Callable[..., list[dict[str, Any]]]

GPU = "GPU-3f2a0001-aaaa-bbbb"
ONE, TWO, THREE, SEVEN, DOUBLE = 19, 14, 9, 0, 15
"""Profiles of seven-slice GPUs: 1g, 2g, 3g, 7g, and 1g with double memory."""

A100 = (DRIVER, *fake_state.gpu(0, GPU, "A100-80GB"))
H100 = (DRIVER, *fake_state.gpu(0, GPU, "H100-80GB"))


def step(*create: tuple[int, int], destroy: tuple[tuple[int, int], ...] = (), mig: bool = True) -> list[Any]:
    """A partition of the GPU."""
    return [GPU, mig, destroy, create]


def layout(found: dict[str, Any]) -> tuple[bool, list[tuple[int, int]]]:
    (gpu,) = found["gpus"]
    there = [(each["cut"]["profile"], each["cut"]["start"]) for each in gpu["layout"]["instances"]]
    return gpu["layout"]["enabled"], there


def uuids(found: dict[str, Any]) -> list[str]:
    return [each["uuid"] for each in found["gpus"][0]["layout"]["instances"]]


# ------------------------------------------------------------ reading


@pytest.mark.parametrize("model", fake_state.NUMBERS)
@pytest.mark.parametrize("mig", [0, 1])
def test_the_geometry_is_what_nvml_says_also_with_the_mode_off(script: Script, model: str, mig: int) -> None:
    """NVML tells where instances may start only while the MIG mode is on; before, the known grid does."""
    [found] = script((DRIVER, *fake_state.gpu(0, GPU, model, mig)), "look")
    expected = geometry_of(model, MODELS[model])
    assert expected is not None
    read = found["gpus"][0]["mig"]
    assert (read["cells"], read["slices"]) == (expected.cells, expected.slices)
    assert read["switchable"] == (os.geteuid() == 0)
    ids = {profile["id"]: profile for profile in read["profiles"]}
    for profile in expected.profiles:
        row = ids.pop(profile.id)
        assert (row["name"], row["slices"], row["memory"]) == (profile.name, profile.slices, profile.memory)
        assert (tuple(row["starts"]), row["size"], row["most"]) == (
            profile.starts,
            profile.size,
            profile.most,
        )
    assert not ids
    assert found["gpus"][0]["mechanisms"] == ["mig"]


def test_an_old_driver_gives_no_names_and_they_are_made(script: Script, old_nvml: Path) -> None:
    [found] = script(A100, "look", library=old_nvml)
    names = {profile["id"]: profile["name"] for profile in found["gpus"][0]["mig"]["profiles"]}
    assert (names[ONE], names[20], names[THREE], names[SEVEN]) == (
        "1g.10gb",
        "1g.10gb+me",
        "3g.40gb",
        "7g.80gb",
    )


def test_a_gpu_without_mig_has_none(script: Script) -> None:
    [found] = script((DRIVER, f"gpu {GPU} 15360 12 -1 Tesla T4"), "look")
    assert (found["gpus"][0]["mig"], found["gpus"][0]["mechanisms"]) == (None, [])


def test_a_grid_that_nobody_knows_can_be_used_once_the_mode_is_on(script: Script, tmp_path: Path) -> None:
    lines = (DRIVER, "gpu {} 10000 0 {} NVIDIA X1", "profile 0 0 77 1 2 9 5000 1 1g.5gb 0,1")
    off, on = ([line.format(GPU, mig) for line in lines] for mig in (0, 1))
    assert script(tuple(off), "look")[0]["gpus"][0]["mig"] is None
    (tmp_path / "state.mig").unlink()
    (profile,) = script(tuple(on), "look")[0]["gpus"][0]["mig"]["profiles"]
    assert (profile["id"], profile["starts"], profile["most"]) == (77, [0, 1], 2)


# ------------------------------------------------------------ cutting


def test_the_mode_is_turned_on_and_instances_are_where_they_were_asked_for(script: Script) -> None:
    [found] = script(A100, step((THREE, 4), (ONE, 0), (ONE, 2)))
    assert layout(found) == (True, [(ONE, 0), (ONE, 2), (THREE, 4)])
    assert all(each.startswith("MIG-") for each in uuids(found))
    assert len(set(uuids(found))) == 3


def test_three_small_ones_leave_room_for_the_big_one(script: Script) -> None:
    """Case sharing-05: places are ours to choose, so the order of instances does not matter."""
    steps = [step((ONE, 0)), step((ONE, 1)), step((ONE, 2)), step((THREE, 4)), step((ONE, 3))]
    found = script(A100, *steps)
    assert not any("refused" in each for each in found)
    assert layout(found[-1]) == (True, [(ONE, 0), (ONE, 1), (ONE, 2), (ONE, 3), (THREE, 4)])


def test_another_process_sees_it_and_what_is_so_is_left_as_it_is(script: Script) -> None:
    [before] = script(A100, step((THREE, 4)))
    [seen, again] = script(A100, "look", step((THREE, 4), destroy=((ONE, 0),)))
    assert uuids(before) == uuids(seen) == uuids(again)


def test_destroying_makes_room(script: Script) -> None:
    found = script(A100, step((ONE, 0), (ONE, 1)), step((SEVEN, 0), destroy=((ONE, 0), (ONE, 1))))
    assert layout(found[-1]) == (True, [(SEVEN, 0)])


def test_the_mode_is_turned_off_once_nothing_is_left(script: Script) -> None:
    made, full, empty = script(A100, step((ONE, 0)), step(mig=False), step(destroy=((ONE, 0),), mig=False))
    assert layout(made) == layout(full) == (True, [(ONE, 0)])
    assert full["cut"] is None
    assert "still has MIG instances" in full["refused"]
    assert layout(empty) == (False, [])


WHOLE = """
import ctypes, pynvml
pynvml.nvmlInit()
gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
room, count = (pynvml.c_nvmlGpuInstance_t * 8)(), ctypes.c_uint()
pynvml.nvmlDeviceGetGpuInstances(gpu, 15, room, ctypes.byref(count))
assert count.value == 1
computes = (pynvml.c_nvmlComputeInstance_t * 8)()
pynvml.nvmlGpuInstanceGetComputeInstances(
    room[0], pynvml.NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE_REV1, computes, ctypes.byref(count)
)
assert count.value == 1
"""


def test_the_compute_instance_is_the_one_with_most_multiprocessors(
    script: Script, run_on_fake: Callable[[str], None]
) -> None:
    """A 1g with double memory has more of them than one slice: its whole is REV1, not the plain one."""
    [found] = script(H100, step((DOUBLE, 2)))
    assert layout(found) == (True, [(DOUBLE, 2)])
    run_on_fake(WHOLE)


# ------------------------------------------------------------ refusals


def refusal(found: dict[str, Any]) -> tuple[Any, str]:
    return (tuple(found["cut"]) if found["cut"] else None), found["refused"]


def test_an_overlap_is_refused(script: Script) -> None:
    _, found = script(A100, step((THREE, 0)), step((ONE, 2)))
    cut, why = refusal(found)
    assert cut == (ONE, 2)
    assert "1g.10gb at 2" in why
    assert "no room" in why
    assert layout(found) == (True, [(THREE, 0)])


def test_nothing_is_done_to_an_instance_in_use(script: Script) -> None:
    script(A100, step((ONE, 0), (ONE, 1)))
    busy = (*A100, "process 0 4711 100 compute 2")
    [found] = script(busy, step(destroy=((ONE, 0), (ONE, 1))))
    cut, why = refusal(found)
    assert cut == (ONE, 1)
    assert "4711" in why
    assert layout(found) == (True, [(ONE, 1)])
    (use,) = found["uses"][GPU]["processes"]
    assert (use["pid"], use["memory_mib"], use["instance"]) == (4711, 100, uuids(found)[0])


def test_the_mode_is_not_switched_under_a_process(script: Script) -> None:
    [found] = script((*A100, "process 0 4711 100 compute"), step((ONE, 0)))
    cut, why = refusal(found)
    assert cut is None
    assert "4711" in why
    assert layout(found) == (False, [])


NOTHING_PENDING = """
import pynvml
pynvml.nvmlInit()
assert pynvml.nvmlDeviceGetMigMode(pynvml.nvmlDeviceGetHandleByIndex(0)) == [0, 0]
"""


@pytest.mark.parametrize(("status", "word"), [(19, "something uses it"), (16, "reset")])
def test_a_change_that_would_stay_pending_is_refused_and_taken_back(
    script: Script, run_on_fake: Callable[[str], None], status: int, word: str
) -> None:
    """The call itself succeeds; only its activation status tells."""
    [found] = script((*A100, f"sticky 0 {status}"), step((ONE, 0)))
    cut, why = refusal(found)
    assert cut is None
    assert word in why
    assert layout(found) == (False, [])
    run_on_fake(NOTHING_PENDING)
    [later] = script(A100, step((ONE, 0)))
    assert layout(later) == (True, [(ONE, 0)])


def test_without_permission_it_is_said_who_may(script: Script) -> None:
    [mode] = script((*A100, "unprivileged"), step((ONE, 0)))
    assert "only root may" in refusal(mode)[1]


def test_a_creation_that_only_the_driver_refuses_is_an_answer(script: Script) -> None:
    lines = (*A100, f"stubborn 0 {THREE} 0 23")
    refused, other = script(lines, step((THREE, 0)), step((THREE, 4)))
    assert refusal(refused)[0] == (THREE, 0)
    assert layout(other) == (True, [(THREE, 4)])


NO_INSTANCE = """
import ctypes, pynvml
pynvml.nvmlInit()
room, count = (pynvml.c_nvmlGpuInstance_t * 8)(), ctypes.c_uint()
gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
pynvml.nvmlDeviceGetGpuInstances(gpu, 9, room, ctypes.byref(count))
assert count.value == 0
"""


def test_an_instance_without_a_compute_instance_is_not_left_behind(
    script: Script, run_on_fake: Callable[[str], None]
) -> None:
    refused, after = script((*A100, "barren 0"), step((THREE, 0)), "look")
    assert refusal(refused)[0] == (THREE, 0)
    assert layout(after) == (True, [])
    run_on_fake(NO_INSTANCE)


def test_a_gpu_that_is_gone_or_has_no_mig_is_refused_in_words(script: Script) -> None:
    [gone] = script((DRIVER, f"gpu {GPU} 15360 12 -1 Tesla T4"), step((ONE, 0)))
    assert "has no MIG" in refusal(gone)[1]
    [lost] = script((*A100, "lost 0"), [GPU, True, [], [[ONE, 0]]])
    assert "not there" in refusal(lost)[1]


# ------------------------------------------------------------ half made, by hand, without rights


HALF = """
import ctypes, sys, pynvml
pynvml.nvmlInit()
gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
pynvml.nvmlDeviceSetMigMode(gpu, 1)
place = pynvml.c_nvmlGpuInstancePlacement_t(4, 4)
pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(gpu, 9, ctypes.byref(place))
"""


@pytest.mark.parametrize(("then", "there"), [((THREE, 4), [(THREE, 4)]), ((TWO, 4), [(TWO, 4)])])
def test_what_was_left_half_made_is_finished_or_makes_way(
    script: Script,
    run_on_fake: Callable[[str], None],
    then: tuple[int, int],
    there: list[tuple[int, int]],
) -> None:
    """Whoever made the instance was killed before its compute instance: it is no MIG device yet."""
    assert layout(script(A100, "look")[0]) == (False, [])
    run_on_fake(HALF)
    before, after = script(A100, "look", step(then))
    assert layout(before) == (True, [])
    assert layout(after) == (True, there)


DIVIDED = """
import ctypes, pynvml
pynvml.nvmlInit()
gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
place = pynvml.c_nvmlGpuInstancePlacement_t(4, 4)
instance = pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(gpu, 9, ctypes.byref(place))
pynvml.nvmlGpuInstanceCreateComputeInstance(instance, pynvml.NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE)
"""


def test_an_instance_that_somebody_divided_further_is_not_ours(
    script: Script, run_on_fake: Callable[[str], None]
) -> None:
    """`1c.3g.40gb`: its MIG device is less than the profile promises, and its room is taken."""
    script(A100, step((ONE, 0)))
    run_on_fake(DIVIDED)
    seen, refused, room = script(A100, "look", step((THREE, 4)), step((ONE, 5)))
    assert layout(seen) == (True, [(ONE, 0)])
    assert "divided" in refusal(refused)[1]
    assert refusal(room)[0] == (ONE, 5)


def test_without_rights_instances_that_are_there_are_known_by_their_size(script: Script) -> None:
    """Only root is told where an instance lies, but whoever may use it may know how large it is."""
    [full] = script(A100, step((THREE, 4), (ONE, 3), (DOUBLE, 0)))
    [guessed] = script((*A100, "unprivileged", "process 0 7 300 compute 1"), "look")
    assert sorted(profile for profile, _ in layout(guessed)[1]) == [THREE, DOUBLE, ONE]
    assert set(uuids(guessed)) == set(uuids(full))
    assert guessed["gpus"][0]["memory"] == max(p["memory"] for p in guessed["gpus"][0]["mig"]["profiles"])
    (use,) = guessed["uses"][GPU]["processes"]
    assert use["pid"] == 7
    assert use["instance"] in uuids(full)


@given(st.data())
def test_instances_of_known_sizes_get_places_that_do_not_overlap(data: st.DataObject) -> None:
    model = data.draw(st.sampled_from(sorted(CUT)))
    geometry = geometry_of(model, MODELS[model])
    assert geometry is not None
    chosen: list[Profile] = []
    taken: set[int] = set()
    for profile in data.draw(st.lists(st.sampled_from(geometry.profiles), max_size=7)):
        for start in data.draw(st.permutations(profile.starts)):
            cells = set(range(start, start + profile.size))
            if not cells & taken:
                taken |= cells
                chosen.append(profile)
                break
    found = arranged(chosen, geometry)
    assert [cut.profile for cut in found] == [profile.id for profile in chosen]
    pairs = zip(found, chosen, strict=True)
    cells_of = [cell for cut, profile in pairs for cell in range(cut.start, cut.start + profile.size)]
    assert len(cells_of) == len(set(cells_of))
    assert all(cut.start in profile.starts for cut, profile in zip(found, chosen, strict=True))


# ------------------------------------------------------------ health


def fault(found: dict[str, Any]) -> str:
    return found["gpus"][0]["fault"]


def test_a_healthy_gpu_has_no_fault(script: Script) -> None:
    [found] = script((*A100, "recovery 0 0", "remapped 0 3 1 1 0"), "look")
    assert fault(found) == ""


def test_rows_that_could_not_be_remapped_are_a_fault(script: Script) -> None:
    [found] = script((*A100, "remapped 0 0 8 0 1"), "look")
    assert "memory rows" in fault(found)


@pytest.mark.parametrize(
    ("action", "word"), [(1, "reset it"), (2, "reboot"), (4, "then reset"), (9, "reset")]
)
def test_what_the_driver_wants_done_is_a_fault(script: Script, action: int, word: str) -> None:
    [found] = script((*A100, f"recovery 0 {action}"), "look")
    assert word in fault(found)


def test_an_error_of_the_hardware_stays_until_the_driver_is_content(script: Script) -> None:
    found = script(A100, "look", "xid 0 79", "recovery 0 2", "recovery 0 0")
    assert fault(found[0]) == ""
    assert fault(found[1]) == "XID 79: it has fallen off the bus"
    assert "XID 79" in fault(found[2])
    assert "reboot the node" in fault(found[2])
    assert fault(found[3]) == ""


@pytest.mark.parametrize("xid", [13, 31, 43, 63, 94])
def test_an_error_of_a_program_is_no_fault(script: Script, xid: int) -> None:
    found = script(A100, "look", f"xid 0 {xid}", "look")
    assert fault(found[-1]) == ""


def test_an_error_is_heard_after_the_mode_was_switched_too(script: Script) -> None:
    """Who listens counts as a user of the GPU, so the driver lets go for the switch."""
    found = script(A100, "look", step((ONE, 0)), "xid 0 119")
    assert "XID 119" in fault(found[-1])
