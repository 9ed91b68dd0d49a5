"""raysched on NVML with MIG: the product's own pynvml calls, and Ray's, on a library that keeps its GPUs in a
file. Real Ray, real agent, real processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import fake_state
from fake_nvml.build import compile_fake
from programs import SLICES
from running import System, wait_until

pytestmark = pytest.mark.ray

GPU = "GPU-3f2a0001-aaaa-bbbb-cccc-000000000001"
SHOW = "echo $CUDA_VISIBLE_DEVICES"
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may switch the MIG mode")


class Machine:
    """A machine with one A100 in MIG mode, and raysched on it."""

    def __init__(self, folder: Path) -> None:
        self.system = System(None)
        self.state = folder / "nvml"
        self.lines = [fake_state.DRIVER, *fake_state.gpu(0, GPU, "A100-80GB", mig=1)]
        self.change()
        self.system.env["LD_LIBRARY_PATH"] = str(compile_fake(folder))
        self.system.env["FAKE_NVML_STATE"] = str(self.state)

    def change(self, *more: str) -> None:
        """Let these lines be true as well, and no others."""
        aside = self.state.with_suffix(".new")
        aside.write_text("\n".join([*self.lines, *more]))
        aside.replace(self.state)

    def submit(self, entrypoint: str = SHOW, **resources: Any) -> str:
        return self.system.submit("job", entrypoint, resources=resources)

    def wait(self, id: str, state: str) -> dict[str, Any]:
        job = self.system.client().job
        ended = ("succeeded", "failed", "cancelled", state)
        wait_until(lambda: job(id)[0]["state"] in ended, f"{id} is {state}")
        assert job(id)[0]["state"] == state, job(id)[0]
        return job(id)[0]

    def log(self, id: str) -> str:
        return b"".join(self.system.client().logs(id)).decode()

    def why(self, id: str, words: str) -> None:
        wait_until(lambda: words in self.system.json("explain", id)["why"], f"{id} waits as {words}")

    def gpu(self) -> dict[str, Any]:
        (node,) = self.system.client().gpus()["nodes"]
        (gpu,) = node["gpus"]
        return gpu

    def free(self) -> None:
        wait_until(lambda: not self.gpu()["tenants"], "the GPU is free")


@pytest.fixture(scope="module")
def booted(_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    try:
        machine.system.up()
        yield machine
    finally:
        machine.system.close()


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    """The machine with nothing on it."""
    booted.free()
    yield booted
    booted.change()
    for job in booted.system.client().jobs():
        if job["state"] not in ("succeeded", "failed", "cancelled"):
            booted.system.cli("cancel", job["id"])
    booted.free()


def test_nothing_is_made_up(machine: Machine) -> None:
    assert not machine.system.client().gpus()["simulated"]
    gpu = machine.gpu()
    assert (gpu["uuid"], gpu["model"], gpu["memory_mib"]) == (GPU, "A100-SXM4-80GB", 81920)
    assert "1.0 GPU" in machine.system.ray("status").stdout
    assert "in MIG mode" in machine.system.cli("doctor").stdout


def test_a_mig_tenant_sees_its_own_slice_by_uuid(machine: Machine) -> None:
    """Case ray-05."""
    machine.system.python("-c", SLICES)


def test_jobs_of_all_sizes_fit_as_on_paper(machine: Machine, tmp_path: Path) -> None:
    """Case sharing-05, on NVML's calls."""
    until = f"{SHOW}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    sizes = ["1g.10gb", "1g.10gb", "1g.10gb", "3g.40gb", "1g.10gb"]
    ids = [machine.submit(until, mig_profile=size) for size in sizes]
    for id in ids:
        machine.wait(id, "running")
    assert machine.gpu()["share_used"] == 4 * 1428 + 4285
    (tmp_path / "go").touch()
    for id in ids:
        machine.wait(id, "succeeded")
    assert len({machine.log(id) for id in ids}) == 5


def test_a_creation_that_the_driver_refuses_leads_to_another_place(machine: Machine) -> None:
    machine.wait(machine.submit(mig_profile="7g.80gb"), "succeeded")
    machine.change("stubborn 0 9 4 23")
    job = machine.wait(machine.submit(mig_profile="3g.40gb"), "succeeded")
    assert job["attempt"] == 2


def test_an_instance_that_a_stranger_uses_is_left_alone(machine: Machine) -> None:
    machine.wait(machine.submit(mig_profile="7g.80gb"), "succeeded")
    machine.change("process 0 1 500 compute 1")
    wait_until(lambda: machine.gpu()["foreign_mib"] == 500, "the stranger is seen")
    id = machine.submit(mig_profile="1g.10gb")
    machine.why(id, "without a lease")
    machine.change()
    machine.wait(id, "succeeded")


@NEEDS_ROOT
def test_a_whole_gpu_is_had_by_turning_the_mode_off_and_instances_by_turning_it_on(machine: Machine) -> None:
    whole = machine.submit(gpus=1)
    machine.wait(whole, "succeeded")
    assert machine.log(whole) == f"{GPU}\n"
    part = machine.submit(mig_profile="2g.20gb")
    machine.wait(part, "succeeded")
    assert machine.log(part).startswith("MIG-")


@NEEDS_ROOT
def test_an_agent_that_dies_finds_what_it_left(machine: Machine) -> None:
    machine.wait(machine.submit(mig_profile="2g.20gb"), "succeeded")
    machine.free()
    before = Path(f"{machine.state}.mig").read_bytes()
    assert machine.system.kill("ray::NodeAgent")
    machine.wait(machine.submit(mig_profile="2g.20gb"), "succeeded")
    assert Path(f"{machine.state}.mig").read_bytes() == before


def test_a_gpu_that_reports_an_error_gets_nothing_new_until_the_driver_is_content(machine: Machine) -> None:
    machine.change("xid 0 119", "recovery 0 1")
    wait_until(lambda: "XID 119" in machine.gpu()["fault"], "the error shows")
    id = machine.submit(mig_profile="1g.10gb")
    machine.why(id, "XID 119")
    doctor = machine.system.cli("doctor", check=False)
    assert "reset it" in " ".join(doctor.stdout.split())
    machine.change("xid 0 119", "recovery 0 0")
    machine.wait(id, "succeeded")


def test_without_permission_a_job_waits_and_says_who_may(machine: Machine) -> None:
    """The last one here: what was refused is not tried again for ten minutes."""
    machine.wait(machine.submit(mig_profile="7g.80gb"), "succeeded")
    machine.change("unprivileged")
    id = machine.submit(mig_profile="2g.20gb")
    machine.why(id, "only root may")
