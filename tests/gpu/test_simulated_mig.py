"""Simulated GPUs that are cut: by the rules of real ones, and for longer than the driver lives."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysched.core.mig import DAEMON, Cut, Layout
from raysched.core.node import GPUInfo
from raysched.core.work import Partition
from raysched.gpu.driver import Driver, PartitionRefused, open_driver
from raysched.gpu.geometries import CUT
from raysched.testing import SimulatedGPUs

ONE, TWO, THREE, SEVEN = 19, 14, 9, 0
"""Profiles of an A100-80GB: 1g.10gb, 2g.20gb, 3g.40gb, 7g.80gb."""


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return again(tmp_path)


@pytest.fixture
def gpus(tmp_path: Path) -> SimulatedGPUs:
    return SimulatedGPUs(tmp_path, "node-a")


def again(folder: Path, text: str = "1xA100-80GB") -> Driver:
    """A driver that is made anew, as after a restart of the node agent."""
    return open_driver(text, "node-a", folder=folder)


def only(driver: Driver) -> GPUInfo:
    (gpu,) = driver.discover().gpus
    return gpu


def cut(driver: Driver, *create: Cut, destroy: tuple[Cut, ...] = (), mig: bool = True) -> Layout:
    driver.partition(Partition(only(driver).uuid, mig, destroy, create))
    return only(driver).layout


def cuts(layout: Layout) -> list[Cut]:
    return [each.cut for each in layout.instances]


def refused(
    driver: Driver, *create: Cut, destroy: tuple[Cut, ...] = (), mig: bool = True
) -> PartitionRefused:
    with pytest.raises(PartitionRefused) as caught:
        cut(driver, *create, destroy=destroy, mig=mig)
    return caught.value


def test_a_gpu_begins_whole_and_says_what_it_can_be_cut_into(driver: Driver) -> None:
    gpu = only(driver)
    assert gpu.layout == Layout()
    assert gpu.mig is not None
    assert gpu.mig.switchable
    assert gpu.mechanisms == ("mig",)


def test_a_gpu_without_mig_says_so_and_refuses(tmp_path: Path) -> None:
    driver = again(tmp_path, "L40S")
    assert (only(driver).mig, only(driver).mechanisms) == (None, ())
    assert "no MIG" in str(refused(driver, Cut(ONE, 0)))


def test_instances_are_where_they_were_asked_for(driver: Driver) -> None:
    layout = cut(driver, Cut(THREE, 4), Cut(ONE, 1), Cut(ONE, 0))
    assert layout.enabled
    assert cuts(layout) == [Cut(ONE, 0), Cut(ONE, 1), Cut(THREE, 4)]
    assert len({each.uuid for each in layout.instances}) == 3
    assert all(each.uuid.startswith("MIG-") for each in layout.instances)


def test_what_is_so_already_is_left_as_it_is(driver: Driver) -> None:
    before = cut(driver, Cut(THREE, 4))
    assert cut(driver, Cut(THREE, 4), destroy=(Cut(ONE, 0),)) == before


def test_a_new_instance_at_an_old_place_has_another_uuid(driver: Driver) -> None:
    (old,) = cut(driver, Cut(THREE, 4)).instances
    (new,) = cut(driver, Cut(THREE, 4), destroy=(Cut(THREE, 4),)).instances
    assert new.cut == old.cut
    assert new.uuid != old.uuid


def test_a_driver_that_is_made_anew_finds_everything(driver: Driver, tmp_path: Path) -> None:
    before = cut(driver, Cut(TWO, 2))
    assert only(again(tmp_path)).layout == before


def test_without_a_folder_nothing_is_kept() -> None:
    first, second = (open_driver("1xA100-80GB", "node-a") for _ in range(2))
    cut(first, Cut(TWO, 2))
    assert only(second).layout == Layout()


@pytest.mark.parametrize("bad", [Cut(ONE, 4), Cut(THREE, 2), Cut(ONE, 7), Cut(99, 0), Cut(SEVEN, 0)])
def test_an_illegal_or_overlapping_place_is_refused_in_words(driver: Driver, bad: Cut) -> None:
    before = cut(driver, Cut(THREE, 4))
    problem = refused(driver, bad)
    assert problem.cut == bad
    assert "no room" in str(problem)
    assert only(driver).layout == before


def test_what_was_done_before_a_refusal_stays_done(driver: Driver) -> None:
    refused(driver, Cut(ONE, 0), Cut(ONE, 0), Cut(THREE, 0))
    assert cuts(only(driver).layout) == [Cut(ONE, 0)]


def test_an_instance_in_use_is_not_destroyed(driver: Driver, gpus: SimulatedGPUs) -> None:
    _, second = cut(driver, Cut(ONE, 0), Cut(ONE, 1)).instances
    gpus.use(only(driver).uuid, 4711, 100, second.uuid)
    assert cuts(cut(driver, destroy=(Cut(ONE, 0),))) == [Cut(ONE, 1)]
    problem = refused(driver, destroy=(Cut(ONE, 1),))
    assert "1g.10gb at 1" in str(problem)
    assert "4711" in str(problem)


def test_the_mode_is_not_switched_under_a_process(driver: Driver, gpus: SimulatedGPUs) -> None:
    gpus.use(only(driver).uuid, 4711, 100)
    problem = refused(driver, Cut(ONE, 0))
    assert problem.cut is None
    assert "4711" in str(problem)
    gpus.leave(only(driver).uuid)
    cut(driver, Cut(ONE, 0))


def test_the_mode_is_turned_off_only_without_instances(driver: Driver) -> None:
    cut(driver, Cut(ONE, 0))
    assert refused(driver, mig=False).cut is None
    assert cut(driver, destroy=(Cut(ONE, 0),), mig=False) == Layout()


def test_a_refusal_can_be_had_on_demand(driver: Driver, gpus: SimulatedGPUs) -> None:
    gpu = only(driver).uuid
    gpus.refuse(gpu, Cut(THREE, 0), "insufficient resources")
    assert str(refused(driver, Cut(THREE, 0))) == "insufficient resources"
    assert cuts(cut(driver, Cut(THREE, 4))) == [Cut(THREE, 4)]
    gpus.allow(gpu)
    assert cuts(cut(driver, Cut(THREE, 0))) == [Cut(THREE, 0), Cut(THREE, 4)]


def test_faults_and_strangers_can_be_had_on_demand(driver: Driver, gpus: SimulatedGPUs) -> None:
    gpu = only(driver).uuid
    gpus.fail(gpu, "XID 79: the GPU has fallen off the bus")
    (made,) = gpus.cut(gpu, Cut(TWO, 0))
    gpus.use(gpu, 7, 300, made.uuid)
    assert only(driver).fault.startswith("XID 79")
    assert only(driver).layout.instances == (made,)
    (use,) = driver.sample()[gpu].processes
    assert (use.pid, use.memory_mib, use.instance) == (7, 300, made.uuid)
    gpus.fail(gpu, "")
    assert not only(driver).fault


@given(data=st.data(), model=st.sampled_from(sorted(CUT)))
def test_two_instances_never_overlap(data: st.DataObject, model: str) -> None:
    """Whatever is asked for, in whatever order."""
    driver = open_driver(model, "node-a")
    mig = only(driver).mig
    assert mig is not None
    legal = st.sampled_from([Cut(p.id, start) for p in mig.profiles for start in p.starts])
    for each in data.draw(st.lists(legal, max_size=12)):
        with suppress(PartitionRefused):
            cut(driver, each)
    sizes = {profile.id: profile.size for profile in mig.profiles}
    layout = cuts(only(driver).layout)
    cells = [cell for each in layout for cell in range(each.start, each.start + sizes[each.profile])]
    assert len(cells) == len(set(cells)) <= mig.cells


# ------------------------------------------------------------ MPS


def test_no_mps_is_made_up_unless_a_test_lets_it_be(driver: Driver, gpus: SimulatedGPUs) -> None:
    uuid = only(driver).uuid
    assert only(driver).mechanisms == ("mig",)
    gpus.offer(uuid, "mps")
    assert only(driver).mechanisms == ("mig", "mps")


def test_a_daemon_is_there_until_it_is_ended_or_dies(driver: Driver, gpus: SimulatedGPUs) -> None:
    uuid = only(driver).uuid
    driver.partition(Partition(uuid, False, mps=True))
    pipe = Path(only(driver).layout.mps)
    assert (pipe / "control").exists()
    gpus.end_daemon(uuid)
    assert only(driver).layout == Layout()
    driver.partition(Partition(uuid, False, mps=True))
    driver.partition(Partition(uuid, False))
    assert (only(driver).layout, pipe.exists()) == (Layout(), False)


def test_a_daemon_may_not_start(driver: Driver, gpus: SimulatedGPUs) -> None:
    uuid = only(driver).uuid
    gpus.refuse(uuid, DAEMON, "no such program")
    with pytest.raises(PartitionRefused, match="no such program"):
        driver.partition(Partition(uuid, False, mps=True))
