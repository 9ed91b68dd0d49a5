"""MIG and time-slices on a simulated GPU, as a user has them: real processes, a real Ray, a real ledger and
node agent; only the card is made up, and cut by the rules of a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import SLICES
from running import System, wait_until

from raysched.core.mig import Cut, Layout
from raysched.testing import SimulatedGPUs

pytestmark = pytest.mark.ray

ONE, TWO, THREE, SEVEN = 19, 14, 9, 0
"""Profiles of an A100-80GB: 1g.10gb, 2g.20gb, 3g.40gb, 7g.80gb."""

SHOW = "echo $CUDA_VISIBLE_DEVICES $RAYSCHED_GPU_FRACTION $RAYSCHED_GPU_MEMORY_MIB"


class Card:
    """The one GPU of a system, in the hands of a test."""

    def __init__(self, system: System) -> None:
        self.system = system
        (node,) = system.client().gpus()["nodes"]
        self.node = node["name"]
        (gpu,) = node["gpus"]
        self.uuid = gpu["uuid"]
        self.will = SimulatedGPUs(system.home, self.node)

    @property
    def layout(self) -> Layout:
        return self.will.layout(self.uuid)

    @property
    def cuts(self) -> list[Cut]:
        return [each.cut for each in self.layout.instances]

    def job(self, id: str) -> dict[str, Any]:
        return self.system.client().job(id)[0]

    def wait(self, id: str, *states: str) -> dict[str, Any]:
        try:
            wait_until(lambda: self.job(id)["state"] in states, f"{id} is {' or '.join(states)}")
        except AssertionError:
            print(self.job(id), self.system.cli("explain", id).stdout, self.system.cli("gpus").stdout)
            raise
        return self.job(id)

    def log(self, id: str) -> str:
        return b"".join(self.system.client().logs(id)).decode()

    def why(self, id: str, *words: str) -> None:
        """The reason why a job waits gets to have these words in it."""
        wait_until(
            lambda: all(word in self.system.json("explain", id)["why"] for word in words),
            f"{id} waits as {words}",
        )

    def tenants(self) -> int:
        (node,) = self.system.client().gpus()["nodes"]
        return sum(len(gpu["tenants"]) for gpu in node["gpus"])

    def free(self) -> None:
        """Nobody has any of it, as all tests leave it."""
        wait_until(lambda: self.tenants() == 0, "the GPU is free")


@pytest.fixture(scope="module")
def running(_ray: None) -> Iterator[System]:
    running = System("1xA100-80GB")
    try:
        running.up()
        yield running
        running.cli("down", "--cancel")
        assert not (running.home / "simulated").exists(), "made-up GPUs are as new after `down`"
    finally:
        running.close()


@pytest.fixture
def card(running: System) -> Iterator[Card]:
    """The GPU, free and in nobody's way."""
    card = Card(running)
    card.free()
    yield card
    for job in running.client().jobs():
        if job["state"] not in ("succeeded", "failed", "cancelled"):
            running.cli("cancel", job["id"])
    card.will.leave(card.uuid)
    card.will.allow(card.uuid)
    card.will.fail(card.uuid, "")
    card.will.slow(card.uuid, 0)
    card.free()


@pytest.fixture
def submit(card: Card, tmp_path: Path) -> Callable[..., str]:
    """Submits a job that shows its devices and runs until the file `go` is there."""
    until = f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"

    def submit(profile: str | None = None, entrypoint: str = f"{SHOW}; {until}", **fields: Any) -> str:
        resources = fields.pop("resources", {"mig_profile": profile})
        return card.system.submit(profile or "job", entrypoint, resources=resources, **fields)

    return submit


# ------------------------------------------------------------ cutting


def test_three_small_slices_then_a_big_one(card: Card, submit: Callable[..., str]) -> None:
    """Case sharing-05: the order of the requests does not matter while all fit."""
    ids = [submit(profile) for profile in ("1g.10gb", "1g.10gb", "1g.10gb", "3g.40gb", "1g.10gb")]
    for id in ids:
        card.wait(id, "running")
    assert card.cuts == [Cut(ONE, 0), Cut(ONE, 1), Cut(ONE, 2), Cut(ONE, 3), Cut(THREE, 4)]
    sixth = submit("1g.10gb")
    assert card.job(sixth)["state"] == "waiting"
    card.why(sixth, "no MIG slice is free")
    assert len({each.uuid for each in card.layout.instances}) == 5


@pytest.mark.parametrize("backend", ["vm", "ray"])
def test_each_tenant_sees_its_own_instance_and_nothing_else(
    card: Card, submit: Callable[..., str], backend: str
) -> None:
    shown = "; ".join([SHOW, "echo [$NVIDIA_VISIBLE_DEVICES]"])
    ids = [submit("2g.20gb", shown, backend=backend) for _ in range(2)]
    for id in ids:
        card.wait(id, "succeeded")
    first, second = (card.log(id).split() for id in ids)
    uuids = {each.uuid for each in card.layout.instances}
    for device, share, memory, nvidia in (first, second):
        assert device in uuids
        assert nvidia == f"[{device}]"
        assert (share, memory) == ("0.2857", "19968")


@pytest.mark.parametrize("name", ["3G.40GB", "3g.39gb"])
def test_a_profile_may_be_written_as_another_driver_does(
    card: Card, submit: Callable[..., str], name: str
) -> None:
    """Case spec-04."""
    card.wait(submit(name, SHOW), "succeeded")
    assert THREE in [cut.profile for cut in card.cuts]


def test_a_profile_of_another_card_is_refused_with_the_list(card: Card, submit: Callable[..., str]) -> None:
    """Case spec-04."""
    with pytest.raises(Exception, match=r"3g\.40gb"):
        submit("3g.20gb")


def test_instances_make_way_when_another_shape_needs_the_room(card: Card, submit: Callable[..., str]) -> None:
    card.wait(submit("1g.10gb", SHOW), "succeeded")
    assert ONE in [cut.profile for cut in card.cuts]
    card.wait(submit("7g.80gb", SHOW), "succeeded")
    assert card.cuts == [Cut(SEVEN, 0)]
    whole = submit(entrypoint=SHOW, resources={"gpus": 1})
    card.wait(whole, "succeeded")
    assert card.layout == Layout()
    assert card.log(whole).startswith(f"{card.uuid} 1 ")


def test_an_instance_is_used_again_by_the_next_who_wants_one(card: Card, submit: Callable[..., str]) -> None:
    card.wait(submit("2g.20gb", SHOW), "succeeded")
    card.free()
    before = card.layout
    card.wait(submit("2g.20gb", SHOW), "succeeded")
    assert card.layout == before


def test_ray_agrees_with_what_is_held(card: Card, submit: Callable[..., str]) -> None:
    """The GPU is taken in Ray as long as an instance of it is, so that nobody lands on it beside raysched."""
    card.wait(submit("3g.40gb"), "running")
    wait_until(lambda: "0.4285 used of 1.0 reserved" in card.system.ray("status").stdout, "Ray says so")


# ------------------------------------------------------------ what goes wrong


def test_a_refusal_of_the_driver_leads_to_another_place(card: Card, submit: Callable[..., str]) -> None:
    """The table allows it and the driver does not: an answer, not an end."""
    card.wait(submit("7g.80gb", SHOW), "succeeded")
    card.will.refuse(card.uuid, Cut(THREE, 4), "the driver has no room for it there")
    first = submit("3g.40gb")
    card.wait(first, "running")
    assert card.cuts == [Cut(THREE, 0)]
    second = submit("3g.40gb")
    card.why(second, "no room for it there")
    assert card.job(second)["attempt"] >= 1
    assert card.job(first)["state"] == "running"


def test_a_gpu_that_fails_gets_nothing_new_until_it_is_mended(card: Card, submit: Callable[..., str]) -> None:
    before = submit("1g.10gb")
    card.wait(before, "running")
    card.will.fail(card.uuid, "XID 79: it has fallen off the bus")
    wait_until(lambda: "XID 79" in str(card.system.client().gpus()), "the fault shows")
    waiting = submit("1g.10gb", SHOW)
    card.why(waiting, "XID 79")
    assert card.job(before)["state"] == "running"
    assert "XID 79" in str(card.job(before))
    card.will.fail(card.uuid, "")
    card.wait(waiting, "succeeded")


def test_a_gpu_that_a_stranger_uses_is_not_cut(card: Card, submit: Callable[..., str]) -> None:
    card.wait(submit("1g.10gb", SHOW), "succeeded")
    (there, *_) = card.layout.instances
    card.will.use(card.uuid, 1, 100, there.uuid)
    wait_until(lambda: "'foreign_mib': 100" in str(card.system.client().gpus()), "the stranger is seen")
    other = submit("1g.10gb", SHOW)
    card.wait(other, "succeeded")
    assert there.uuid not in card.log(other)
    whole = submit("7g.80gb", SHOW)
    card.why(whole, "without a lease")
    assert there in card.layout.instances
    card.will.leave(card.uuid)
    card.wait(whole, "succeeded")


def test_who_loses_its_instance_is_told(card: Card, submit: Callable[..., str]) -> None:
    """Somebody cut the GPU anew by hand."""
    id = submit("2g.20gb")
    card.wait(id, "running")
    card.will.cut(card.uuid, Cut(TWO, 4))
    ended = card.wait(id, "failed")
    assert "MIG instance" in ended["reason"]
    assert "gone" in ended["reason"]


def test_an_agent_that_is_killed_while_it_cuts_goes_on_where_it_was(
    card: Card, submit: Callable[..., str]
) -> None:
    card.wait(submit(entrypoint=SHOW, resources={"gpus": 1}), "succeeded")
    card.will.slow(card.uuid, 2.0)
    id = submit("3g.40gb")
    wait_until(lambda: card.layout.enabled, "the first step is done")
    assert card.system.kill("ray::NodeAgent")
    assert card.cuts == []
    card.will.slow(card.uuid, 0)
    card.wait(id, "running")
    assert len(card.cuts) == 1
    assert card.job(id)["attempt"] == 1


def test_an_instance_that_is_being_destroyed_is_granted_to_nobody(
    card: Card, submit: Callable[..., str]
) -> None:
    """The job that needs its room is cancelled while the driver is at work: the room is not free before."""
    card.wait(submit("2g.20gb", SHOW), "succeeded")
    card.free()
    assert card.cuts
    card.will.slow(card.uuid, 2.0)
    large = submit("7g.80gb", SHOW)
    wait_until(lambda: (card.job(large)["lease"] or {}).get("state") == "held", "the GPU is being cut")
    card.system.cli("cancel", large)
    small = submit("2g.20gb", f"{SHOW}; sleep 6")
    card.will.slow(card.uuid, 0.5)
    assert card.wait(small, "succeeded", "failed")["state"] == "succeeded"
    assert card.log(small).split()[0] in {each.uuid for each in card.layout.instances}


def test_no_instance_has_two_tenants_whatever_dies(card: Card, tmp_path: Path) -> None:
    """Jobs of all shapes, while the agent and the ledger are killed: each finds its device its own."""
    alone = f"mkdir {tmp_path}/$CUDA_VISIBLE_DEVICES && sleep 0.2 && rmdir {tmp_path}/$CUDA_VISIBLE_DEVICES"
    shapes: list[dict[str, Any]] = [
        {"mig_profile": profile} for profile in ("1g.10gb", "3g.40gb", "2g.20gb", "1g.20gb", "7g.80gb")
    ]
    shapes.append({"gpus": 1})
    card.wait(card.system.submit("whole", "true", resources={"gpus": 1}), "succeeded")
    assert card.layout == Layout()
    card.will.refuse(card.uuid, Cut(THREE, 4), "the driver has no room for it there")
    ids: list[str] = []
    for number, shape in enumerate([*shapes, *reversed(shapes), *shapes]):
        ids.append(card.system.submit("alone", alone, resources=shape, backend=["vm", "ray"][number % 2]))
        if number == 5:
            assert card.system.kill("ray::NodeAgent")
        if number == 11:
            assert card.system.kill("ray::Ledger")
    for id in ids:
        card.wait(id, "succeeded", "failed")
    assert [card.job(id)["reason"] for id in ids if card.job(id)["state"] == "failed"] == []


def test_how_it_is_cut_stays_when_the_agent_and_the_ledger_die(
    card: Card, submit: Callable[..., str]
) -> None:
    first = submit("2g.20gb", SHOW)
    card.wait(first, "succeeded")
    card.free()
    before = card.layout
    assert card.system.kill("ray::NodeAgent")
    assert card.system.kill("ray::Ledger")
    again = submit("2g.20gb", SHOW)
    card.wait(again, "succeeded")
    assert card.layout == before
    assert card.log(again) == card.log(first)


# ------------------------------------------------------------ programs


def test_actors_of_a_class_have_their_own_instances(card: Card) -> None:
    """Case ray-05."""
    seen = card.system.python("-c", SLICES).stdout.split()
    assert set(seen) <= {each.uuid for each in card.layout.instances}
    assert len(set(seen)) == 2


def test_calls_of_a_function_run_on_instances_beside_each_other(card: Card, tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(
        "import os, time, ray, raysched\n"
        "@raysched.remote(mig_profile='1g.10gb')\n"
        "def where(x):\n"
        "    time.sleep(0.3)\n"
        "    return x, os.environ['CUDA_VISIBLE_DEVICES']\n"
        "found = ray.get([where.remote(x) for x in range(24)])\n"
        "assert [x for x, _ in found] == list(range(24))\n"
        "print(*{device for _, device in found})\n"
    )
    seen = card.system.python("calls.py", cwd=tmp_path).stdout.split()
    assert 2 <= len(seen) <= 7
    assert set(seen) <= {each.uuid for each in card.layout.instances}


def test_a_lease_in_a_program_names_its_instances(card: Card, tmp_path: Path) -> None:
    (tmp_path / "lease.py").write_text(
        "import os, ray, raysched\n"
        "ray.init()\n"
        "@ray.remote\n"
        "def look(): return os.environ['CUDA_VISIBLE_DEVICES']\n"
        "with raysched.lease(mig_profile='3g.40gb') as lease:\n"
        "    (device,) = lease.gpus\n"
        "    assert device == lease.env['CUDA_VISIBLE_DEVICES']\n"
        "    assert device == ray.get(look.options(**lease.options()).remote())\n"
        "    print(device)\n"
    )
    [device] = card.system.python("lease.py", cwd=tmp_path).stdout.split()
    assert device in {each.uuid for each in card.layout.instances}


# ------------------------------------------------------------ time-slices


def test_a_time_sliced_gpu_takes_its_replicas_and_no_more(card: Card, submit: Callable[..., str]) -> None:
    slice = {"sharing": "time_slice", "gpu_memory": "10GB"}
    ids = [submit(resources=slice) for _ in range(4)]
    for id in ids:
        card.wait(id, "running")
    fifth = submit(resources=slice)
    assert card.job(fifth)["state"] == "waiting"
    wait_until(lambda: "1.0 used of 1.0 reserved" in card.system.ray("status").stdout, "Ray says so")
    card.system.cli("cancel", ids[0])
    card.wait(fifth, "running")
    assert card.layout == Layout()


def test_calls_take_turns_on_a_time_sliced_gpu(card: Card, tmp_path: Path) -> None:
    (tmp_path / "turns.py").write_text(
        "import os, ray, raysched\n"
        "@raysched.remote(sharing='time_slice', gpu_memory='10GB')\n"
        "def turn(x):\n"
        "    share = os.environ['RAYSCHED_GPU_FRACTION']\n"
        "    return x, os.environ['CUDA_VISIBLE_DEVICES'], os.environ['RAYSCHED_SHARING'], share\n"
        "found = ray.get([turn.remote(x) for x in range(8)])\n"
        "assert [each[0] for each in found] == list(range(8))\n"
        "print(*{' '.join(each[1:]) for each in found})\n"
    )
    seen = card.system.python("turns.py", cwd=tmp_path).stdout
    assert seen == f"{card.uuid} time_slice 0.25\n"


# ------------------------------------------------------------ raysched mig


def test_a_gpu_is_cut_at_somebodys_word(card: Card) -> None:
    """What would be done is said first; then it is done, and the next job takes what is there."""
    name, cli = f"{card.node}/0", card.system.cli
    cli("mig", "set", name, "off", check=False)
    card.free()
    planned = cli("mig", "set", name, "3g.40gb,2g.20gb,1g.10gb,1g.10gb", "--plan").stdout
    assert "would" in planned
    assert planned.count("create") == 4
    assert card.layout == Layout()
    done = card.system.json("mig", "set", name, "3g.40gb,2g.20gb,1g.10gb,1g.10gb")
    assert done["mode"] == "on"
    assert sorted(cut.profile for cut in card.cuts) == [THREE, TWO, ONE, ONE]
    card.free()
    before = card.layout
    again = card.system.submit("job", SHOW, resources={"mig_profile": "3g.40gb"})
    card.wait(again, "succeeded")
    assert card.layout == before, "nothing had to be cut for it"
    card.free()
    shown = cli("mig").stdout
    assert "MIG mode on" in shown
    assert "3g.40gb at 4-7" in shown
    cli("mig", "set", card.uuid[:12], "2g.20gb")
    assert [cut.profile for cut in card.cuts] == [TWO]
    card.free()
    cli("mig", "set", name, "off")
    assert card.layout == Layout()
    card.free()


def test_a_gpu_that_somebody_has_is_not_cut(card: Card) -> None:
    held = card.system.submit("job", "sleep 600", resources={"gpu_fraction": 0.1})
    card.wait(held, "running")
    refused = card.system.cli("mig", "set", f"{card.node}/0", "7g.80gb", check=False)
    assert refused.returncode == 82
    assert "is held by" in refused.stderr
    assert not card.layout.enabled


def test_what_the_driver_refuses_is_said(card: Card) -> None:
    card.system.cli("mig", "set", f"{card.node}/0", "off", check=False)
    card.free()
    card.will.refuse(card.uuid, None, "something uses it")
    refused = card.system.cli("mig", "set", f"{card.node}/0", "7g.80gb", check=False)
    assert refused.returncode == 82
    assert "something uses it" in refused.stderr
    card.free()
