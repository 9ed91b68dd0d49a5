"""Leases and placement groups that a program holds."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
import ray
from programs import Driver
from running import System, wait_until

import raysched

pytestmark = pytest.mark.ray


def free(system: System) -> int:
    """How many GPUs nobody holds."""
    gpus = [gpu for node in system.client().gpus()["nodes"] for gpu in node["gpus"]]
    return sum(gpu["mode"] == "free" for gpu in gpus)


def test_stages_of_one_program(driver: Driver, start_driver: Callable[..., Driver], system: System) -> None:
    """Case ray-04: each stage gets its lease, also after one that failed, and nothing is held in the end."""
    wait_until(lambda: free(system) == 2, "nothing is held")

    @driver
    def _() -> None:
        seen = []
        for stage in (1, 2, 3):
            with suppress(RuntimeError), raysched.lease(gpus=2) as lease:
                assert len(lease.gpus) == 2
                assert str(lease).startswith(f"Lease({lease.id}: GPU-")
                seen.append(stage)
                if stage == 2:
                    raise RuntimeError("stage 2 fails")
        assert seen == [1, 2, 3]

    wait_until(lambda: free(system) == 2, "both are free while the program lives")
    second = start_driver()

    @second
    def _() -> None:
        with raysched.lease(gpus=2, timeout=100):
            pass


def test_plain_tasks_run_in_a_lease(driver: Driver) -> None:
    @driver
    def _() -> None:
        @ray.remote
        def see():
            return os.environ["CUDA_VISIBLE_DEVICES"], os.environ["RAYSCHED_LEASE"]

        with raysched.lease(gpus=2) as lease:
            seen = ray.get(see.options(**lease.options()).remote(), timeout=100)
            assert seen == (",".join(lease.gpus), lease.id)
            assert lease.placement_group.bundle_specs == [{"GPU": 2.0}]
            assert lease.env["CUDA_VISIBLE_DEVICES"] == ",".join(lease.gpus)
        with raysched.lease(gpu_fraction=0.25) as lease:
            refs = [see.options(**lease.options()).remote() for _ in range(3)]
            assert ray.get(refs, timeout=100) == [(lease.gpus[0], lease.id)] * 3
            assert lease.env["RAYSCHED_GPU_FRACTION"] == "0.25"
            used = ray.cluster_resources()["GPU"] - ray.available_resources().get("GPU", 0)
            assert used >= 0.25
        with pytest.raises(raysched.RayschedError, match="not held"):
            print(lease.gpus)


def test_waiting_for_a_lease_can_be_given_up(driver: Driver, system: System) -> None:
    """By a time-out, which says why it waited, and by an interruption: nothing stays in the queue."""

    @driver
    def _() -> None:
        with raysched.lease(gpus=2):
            with pytest.raises(TimeoutError, match="GPU"), raysched.lease(gpus=1, timeout=0.5):
                pass
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt), raysched.lease(gpus=1):
                pass

    wait_until(lambda: free(system) == 2 and not system.client().queue(), "nothing is held or waits")


def test_placement_groups(driver: Driver, system: System) -> None:
    """Real ones, of whole GPUs, that go back in three ways."""

    @driver
    def _() -> None:
        @ray.remote(num_cpus=0, num_gpus=1)
        def gpu():
            return ray.get_gpu_ids()

        group = raysched.placement_group(gpus=2)
        assert type(group).__module__ == "ray.util.placement_group"
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)
        assert len(ray.get(gpu.options(scheduling_strategy=strategy).remote(), timeout=100)) == 1
        raysched.release(group)
        raysched.release(group)
        ray.util.remove_placement_group(raysched.placement_group(gpus=2, timeout=100))
        group = raysched.placement_group(gpus=2, timeout=100)
        raysched.release(group)
        for wrong in ({"gpu_fraction": 0.5}, {"gpus": 0}):
            with pytest.raises(raysched.SpecError, match=r"raysched\.lease"):
                raysched.placement_group(**wrong)

    wait_until(lambda: free(system) == 2, "all went back")
