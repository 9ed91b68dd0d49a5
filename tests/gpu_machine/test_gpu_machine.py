"""What only a real GPU can show. Skipped on a machine without one. Changes no clocks, no MIG mode, no
persistence, and wants the first GPU for itself while it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import wait_until

from raysched.core.environment import variables
from raysched.core.lease import Place, Slice
from raysched.core.node import GPUInfo
from raysched.gpu.mps import Daemons
from raysched.gpu.nvml import NVMLDriver

PROGRAM = Path(__file__).with_name("allocate.py")
OUT_OF_MEMORY = "2"

Tenant = subprocess.Popen[str]
Start = Callable[..., Tenant]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NVMLDriver]:
    driver = NVMLDriver(None, tmp_path_factory.mktemp("mps"))
    if not driver.discover().gpus:
        pytest.skip("no NVIDIA GPU here: run `pytest tests/gpu_machine` on a machine that has one")
    yield driver
    driver.close()


@pytest.fixture
def gpu(driver: NVMLDriver) -> GPUInfo:
    first = driver.discover().gpus[0]
    if first.layout.enabled:
        pytest.skip("the first GPU is in MIG mode, which is left as it is")
    return first


@pytest.fixture
def daemons(gpu: GPUInfo, tmp_path: Path) -> Iterator[Daemons]:
    if "mps" not in gpu.mechanisms:
        pytest.skip("this GPU, driver or machine has no MPS: `raysched doctor` says what is missing")
    daemons = Daemons(Path(f"/tmp/raysched-test-{os.getpid()}"))
    daemons.start(gpu.uuid)
    yield daemons
    daemons.stop_all()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts programs that take GPU memory; they end with the test."""
    started: list[Tenant] = []

    def begin(env: dict[str, str], *sizes: int) -> Tenant:
        command = [sys.executable, str(PROGRAM), *map(str, sizes)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env={**os.environ, **env}, **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield begin
    for each in started:
        each.communicate(timeout=60)


def answer(tenant: Tenant) -> str:
    assert tenant.stdout is not None
    return tenant.stdout.readline().strip()


def share(gpu: GPUInfo, daemons: Daemons, memory: int) -> dict[str, str]:
    """The variables of a tenant with half of a GPU under MPS."""
    slice = Slice(gpu.uuid, 5000, memory, pipe=daemons.pipe(gpu.uuid), total=gpu.memory)
    return variables("test.1", "mps", Place("here", (slice,), 0, 0))


def test_a_gpu_is_known_by_what_it_is(driver: NVMLDriver) -> None:
    found = driver.discover()
    assert found.driver_version
    assert found.cuda
    assert not found.problem
    for gpu in found.gpus:
        assert gpu.uuid.startswith("GPU-")
        assert gpu.memory > 1000
        assert gpu.pci
        assert float(gpu.capability) >= 3.5
        assert not gpu.fault
    assert found == driver.discover(), "to look changes nothing"


def test_the_memory_of_a_process_is_read_back(driver: NVMLDriver, gpu: GPUInfo, start: Start) -> None:
    tenant = start({"CUDA_VISIBLE_DEVICES": gpu.uuid}, 1000)
    assert answer(tenant) == "ok"
    uses = {use.pid: use.memory_mib for use in driver.sample()[gpu.uuid].processes}
    if tenant.pid not in uses:
        pytest.skip("process ids here are not the driver's: this is a container with ids of its own")
    assert (uses[tenant.pid] or 0) >= 1000


def test_two_tenants_of_a_half_are_held_to_their_memory(gpu: GPUInfo, daemons: Daemons, start: Start) -> None:
    one, other = (start(share(gpu, daemons, 4000), 1000, 4000, 500) for _ in range(2))
    for tenant in (one, other):
        assert answer(tenant) == "ok", "1000 of 4000 MiB"
        assert answer(tenant) == OUT_OF_MEMORY, "1000 and 4000 are more than 4000 MiB"
        assert answer(tenant) == "ok", "1500 of 4000 MiB"


def test_a_daemon_with_clients_that_left_ends(gpu: GPUInfo, daemons: Daemons, start: Start) -> None:
    tenant = start(share(gpu, daemons, 4000), 100)
    assert answer(tenant) == "ok"
    tenant.communicate(timeout=60)
    daemons.stop(gpu.uuid)
    wait_until(lambda: not daemons.pipe(gpu.uuid), "the daemon is gone")


def test_the_daemon_is_no_stranger(driver: NVMLDriver, gpu: GPUInfo, start: Start) -> None:
    """Its server holds some of the GPU's memory, and no lease."""
    if "mps" not in gpu.mechanisms:
        pytest.skip("no MPS here")
    own = driver._daemons  # pyright: ignore[reportPrivateUsage]
    own.start(gpu.uuid)
    try:
        tenant = start(share(gpu, own, 4000), 100)
        assert answer(tenant) == "ok"
        assert {use.pid for use in driver.sample()[gpu.uuid].processes} <= {tenant.pid}
    finally:
        own.stop_all()
