"""A GPU is cut at somebody's word: where instances go, what is refused, and how it ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysched.core import layouts
from raysched.core.commands import AddHost, Cancel, CutRefused, Gone, HostSeen, SetLayout, Usage
from raysched.core.cuts import cut_mask
from raysched.core.host import Host
from raysched.core.mig import UNCUT, Cut, Layout
from raysched.core.node import GPU
from raysched.core.validate import validate
from raysched.errors import Conflict, NotFound, Refused
from raysched.gpu.geometries import CUT, geometry_of
from raysched.gpu.models import MODELS
from tests.core.world import World, changed, instances, mig, mig_node, whole

ONE, TWO, THREE = 19, 14, 9
UUID = "GPU-a-0"


def world_of(layout: Layout = UNCUT, **fields) -> World:
    return World(changed(mig_node("a"), layout=layout, **fields))


def set_layout(world: World, *profiles: str, off: bool = False, id: str = "set"):
    world.do(SetLayout(id, f"key {id}", "me", UUID, None if off else profiles))


def cuts(world: World) -> list[tuple[int, int]]:
    layout = world.state.nodes["a"].gpus[UUID].info.layout
    return [(each.cut.profile, each.cut.start) for each in layout.instances]


def test_a_gpu_gets_exactly_what_was_asked_for_and_is_free_then():
    world = world_of()
    set_layout(world, "3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb")
    assert world.job("set").state == "starting"
    world.hold("set")
    (change,) = world.cut()
    assert change.mig
    assert sorted(profile for profile, _ in cuts(world)) == [THREE, TWO, ONE, ONE]
    assert world.job("set").state == "succeeded"
    world.do(Gone("set.1"))
    assert not world.state.nodes["a"].gpus[UUID].tenants
    validate(world.state)


def test_what_fits_stays_and_the_rest_is_destroyed():
    """Also what would be in nobody's way."""
    world = world_of(Layout(True, instances((THREE, 4), (ONE, 0), (ONE, 1))))
    set_layout(world, "1g.10gb", "3g.40gb")
    world.hold("set")
    (change,) = world.cut()
    assert change.create == ()
    assert len(change.destroy) == 1
    assert [profile for profile, _ in cuts(world)] == [ONE, THREE]
    assert world.job("set").state == "succeeded"


def test_the_mode_is_turned_off():
    world = world_of(Layout(True, instances((THREE, 4))))
    set_layout(world, off=True)
    world.hold("set")
    (change,) = world.cut()
    assert (change.mig, change.destroy) == (False, (Cut(THREE, 4),))
    assert world.job("set").state == "succeeded"
    assert world.state.nodes["a"].gpus[UUID].info.layout == Layout()


def test_nobody_gets_the_gpu_meanwhile():
    world = world_of()
    set_layout(world, "7g.80gb")
    assert world.submit("j", whole()).state == "waiting"
    world.hold("set")
    world.cut()
    world.do(Gone("set.1"))
    assert world.job("j").state == "starting"


def test_a_tenant_is_not_touched():
    world = world_of()
    world.submit("j", mig("1g.10gb"))
    (uuid,) = world.gpus("j")
    with pytest.raises(Conflict, match="held by"):
        world.core.handle(SetLayout("set", "key", "me", uuid, ("7g.80gb",)), world.now)


def test_a_process_without_a_lease_is_not_touched():
    world = world_of()
    world.do(Usage("a", UUID, 300))
    with pytest.raises(Conflict, match="without a lease"):
        world.core.handle(SetLayout("set", "key", "me", UUID, ("7g.80gb",)), world.now)


def test_what_the_driver_refuses_is_the_end_of_it():
    """It does not wait, and no other GPU will do."""
    world = world_of()
    set_layout(world, "3g.40gb")
    world.hold("set")
    world.do(CutRefused("a", UUID, None, "something uses it"))
    assert (world.job("set").state, world.job("set").reason) == ("failed", "something uses it")
    assert "set" not in [id for _, _, id in world.state.waiting]
    validate(world.state)


def test_it_can_be_cancelled():
    world = world_of()
    set_layout(world, "3g.40gb")
    world.do(Cancel("set", "me"))
    assert world.job("set").state == "cancelled"
    assert world.cut() == []


def test_a_host_that_ray_does_not_manage_is_cut_too():
    """There is nothing to be held in Ray before."""
    info = mig_node("a", ray_id=None, backends=("vm",))
    world = World()
    world.do(AddHost(Host("a", "a.example")))
    world.do(HostSeen(info))
    set_layout(world, "3g.40gb")
    assert (world.lease("set").state, world.lease("set").backend) == ("held", "vm")
    world.cut()
    assert world.job("set").state == "succeeded"
    world.do(Gone("set.1"))
    assert not world.state.nodes["a"].gpus[UUID].tenants
    assert cuts(world) == [(THREE, 0)] or cuts(world) == [(THREE, 4)]
    validate(world.state)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fault": "XID 79"}, "can't be cut: XID 79"),
        ({"layout": Layout(mps="/tmp/pipe")}, "MPS daemon is being"),
    ],
)
def test_a_gpu_that_is_out_of_use_is_left_alone(fields, words):
    world = World(changed(mig_node("a"), **fields))
    with pytest.raises(Conflict, match=words):
        world.core.handle(SetLayout("set", "key", "me", UUID, ("3g.40gb",)), world.now)


def test_a_gpu_of_a_site_is_left_to_its_administrator():
    world = World(mig_node("a", site=True, ray_id=None, backends=("slurm",)))
    with pytest.raises(Conflict, match="of a site, whose administrator"):
        world.core.handle(SetLayout("set", "key", "me", UUID, ("3g.40gb",)), world.now)


def test_a_repeated_key_does_nothing_more():
    world = world_of()
    command = SetLayout("set", "key", "me", UUID, ("3g.40gb",))
    assert world.core.handle(command, world.now)
    assert world.core.handle(command, world.now) == []


@pytest.mark.parametrize(
    ("profiles", "error", "words"),
    [
        (("9g.90gb",), Refused, "1g.10gb"),
        (("4g.40gb", "4g.40gb"), Refused, "do not fit"),
        (("3g.40gb", "3g.40gb", "1g.10gb"), Refused, "do not fit"),
        (("1g.10gb+me", "1g.10gb+me"), Refused, "do not fit"),
        ((), Refused, "off"),
    ],
)
def test_what_can_not_be_is_refused(profiles, error, words):
    world = world_of()
    with pytest.raises(error, match=words):
        world.core.handle(SetLayout("set", "key", "me", UUID, profiles), world.now)


def test_what_is_so_already_is_said():
    world = world_of(Layout(True, instances((THREE, 4))))
    with pytest.raises(Conflict, match="already"):
        world.core.handle(SetLayout("set", "key", "me", UUID, ("3g.40gb",)), world.now)


def test_a_mode_that_only_root_may_switch_is_left_alone():
    info = mig_node("a")
    geometry = info.gpus[0].mig
    assert geometry is not None
    fixed = type(geometry)(geometry.cells, geometry.slices, geometry.profiles, switchable=False)
    world = World(changed(info, mig=fixed))
    with pytest.raises(Conflict, match="only root"):
        world.core.handle(SetLayout("set", "key", "me", UUID, ("3g.40gb",)), world.now)


def test_gpus_are_named_by_place_or_by_the_beginning_of_their_uuid():
    state = World(mig_node("a"), mig_node("b")).state
    assert layouts.find_gpu(state, "a/0").info.uuid == UUID
    assert layouts.find_gpu(state, "gpu-B-0").info.uuid == "GPU-b-0"
    with pytest.raises(Conflict, match="names"):
        layouts.find_gpu(state, "GPU-")
    with pytest.raises(NotFound):
        layouts.find_gpu(state, "c/0")


@given(st.data())
def test_instances_are_where_they_may_be_and_never_overlap(data: st.DataObject) -> None:
    """Whatever is asked for, and whatever is there."""
    model = data.draw(st.sampled_from(sorted(CUT)))
    geometry = geometry_of(model, MODELS[model])
    assert geometry is not None
    world = world_of()
    info = world.state.nodes["a"].gpus[UUID].info
    names = data.draw(
        st.lists(st.sampled_from([each.name for each in geometry.profiles]), min_size=1, max_size=7)
    )
    gpu = GPU(type(info)(UUID, 0, model, MODELS[model], mig=geometry), "a")
    try:
        found = layouts.steps(gpu, names)
    except Refused:
        return
    assert found.cuts is not None
    taken = 0
    for cut in found.cuts:
        profile = geometry.profile(cut.profile)
        assert profile is not None
        assert cut.start in profile.starts
        assert not taken & cut_mask(geometry, cut)
        taken |= cut_mask(geometry, cut)
    by_id = {each.id: each.name for each in geometry.profiles}
    assert sorted(by_id[cut.profile] for cut in found.cuts) == sorted(names)
