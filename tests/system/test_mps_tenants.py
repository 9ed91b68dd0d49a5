"""MPS as a user has it: real Ray, ledger, agent and processes; NVML is the fake, and NVIDIA's control program
the stand-in of `fake_mps`. What a GPU does with its clients is not seen here."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_mps.install import install
from fake_nvml import fake_state
from fake_nvml.build import compile_fake
from running import System, wait_until

from raysched.gpu import mps

pytestmark = pytest.mark.ray

GPU = f"GPU-3f2a0009-aaaa-bbbb-cccc-{os.getpid():012d}"
"""Of its own: pipe directories are named after GPUs, and lie in one folder for all who run as this user."""
SHOW = "env | grep -E '^(CUDA|RAYSCHED_GPU|XLA)' | sort; sleep 600"


class Machine:
    """One A100 with MPS, and raysched on it."""

    def __init__(self, folder: Path) -> None:
        self.system = System(None)
        state = folder / "nvml"
        lines = [fake_state.DRIVER, "cuda 12080", *fake_state.gpu(0, GPU, "A100-80GB"), "pci 0 00:07.0 8.0"]
        state.write_text("\n".join(lines))
        self.system.env["LD_LIBRARY_PATH"] = str(compile_fake(folder))
        self.system.env["FAKE_NVML_STATE"] = str(state)
        (folder / "bin").mkdir()
        self.system.env["PATH"] = f"{install(folder / 'bin')}{os.pathsep}{self.system.env['PATH']}"
        self.daemons = mps.Daemons()

    def submit(self, **more: Any) -> str:
        asked = {"gpu_memory": "20GiB", "sharing": "mps", "isolation": "hard", **more}
        return self.system.submit("job", SHOW, resources=asked)

    def job(self, id: str) -> dict[str, Any]:
        return self.system.client().job(id)[0]

    def wait(self, id: str, state: str) -> dict[str, Any]:
        wait_until(lambda: self.job(id)["state"] == state, f"{id} is {state}")
        return self.job(id)

    def told(self, id: str) -> dict[str, str]:
        """The variables that a job has."""
        log = self.system.client().logs
        wait_until(lambda: "XLA" in b"".join(log(id)).decode(), f"{id} shows its variables")
        lines = b"".join(log(id)).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def pid(self) -> int:
        return int((Path(self.daemons.pipe(GPU)) / mps.PID_FILE).read_text())

    def empty(self) -> None:
        wait_until(lambda: not self.daemons.pipe(GPU), "the daemon has ended")


@pytest.fixture(scope="module")
def machine(_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    try:
        machine.system.up()
        yield machine
        machine.system.cli("down", "--cancel")
        assert not machine.daemons.pipe(GPU), "no daemon is left behind"
    finally:
        machine.system.close()
        machine.daemons.stop(GPU)


def test_tenants_share_a_daemon_that_ends_with_the_last_of_them(machine: Machine) -> None:
    first, second = machine.submit(), machine.submit(gpu_memory="40GiB")
    machine.wait(first, "running")
    job = machine.wait(second, "running")
    assert (job["lease"]["mechanism"], job["lease"]["sharing"]) == ("mps", "mps")
    one, other = machine.told(first), machine.told(second)
    assert one["CUDA_MPS_PIPE_DIRECTORY"] == other["CUDA_MPS_PIPE_DIRECTORY"] == machine.daemons.pipe(GPU)
    assert one["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == f"{GPU}=20480M"
    assert other["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == f"{GPU}=40960M"
    assert (one["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"], one["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == ("25", "0.25")
    machine.system.cli("cancel", first)
    machine.wait(first, "cancelled")
    assert machine.daemons.pipe(GPU), "one tenant is left"
    machine.system.cli("cancel", second)
    machine.empty()


def test_others_wait_until_the_daemon_has_ended(machine: Machine) -> None:
    tenant = machine.submit(sharing=None, use_mig=False)
    assert machine.wait(tenant, "running")["lease"]["mechanism"] == "mps", "as nothing else would hold it"
    whole = machine.system.submit("whole", "env | grep -c MPS; true", resources={"gpus": 1})
    assert "shared by MPS until job" in machine.system.json("explain", whole)["why"]
    machine.system.cli("cancel", tenant)
    machine.wait(whole, "succeeded")
    assert b"".join(machine.system.client().logs(whole)) == b"0\n"
    machine.empty()


def test_a_daemon_that_dies_ends_its_tenants(machine: Machine) -> None:
    tenant = machine.submit()
    machine.wait(tenant, "running")
    pid = machine.pid()
    os.kill(pid, signal.SIGKILL)
    job = machine.wait(tenant, "failed")
    assert "MPS daemon" in job["reason"]
    again = machine.submit()
    machine.wait(again, "running")
    assert machine.pid() != pid
    machine.system.cli("cancel", again)
    machine.empty()


def test_doctor_and_plan_tell_of_it(machine: Machine, tmp_path: Path) -> None:
    assert "held to its share by a whole GPU or MIG or MPS" in machine.system.cli("doctor").stdout
    file = tmp_path / "job.yaml"
    file.write_text("entrypoint: 'true'\nresources: {gpu_fraction: 0.5, sharing: mps}\n")
    shown = machine.system.cli("plan", str(file), "--env").stdout
    assert f"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT={GPU}=40960M" in shown
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=50" in shown
