"""Decorated classes on a real system."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import ray
from programs import Driver
from running import System, wait_until

import raysched

pytestmark = pytest.mark.ray


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waits for stays as a zombie."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def used(system: System) -> int:
    """The share in use on all GPUs."""
    return sum(gpu["share_used"] for node in system.client().gpus()["nodes"] for gpu in node["gpus"])


def test_methods_run_in_order_from_the_first_call_on(driver: Driver) -> None:
    """Before the lease is there, while the calls change over to the actor, and after."""

    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.25)
        class Counter:
            def __init__(self, start):
                self.value = start

            def add(self, by):
                self.value += by
                return self.value

            def device(self):
                return os.environ["CUDA_VISIBLE_DEVICES"], ray.get_gpu_ids()

        counter = Counter.remote(0)
        refs = [counter.add.remote(1) for _ in range(300)]  # the front still has them when the actor is there
        while not counter._actor:
            refs.append(counter.add.remote(1))
            time.sleep(0.01)
        refs += [counter.add.remote(1) for _ in range(200)]
        assert ray.get(refs) == list(range(1, len(refs) + 1))
        device, ids = ray.get(counter.device.remote())
        assert ids == [device]
        assert device.startswith("GPU-")


def test_everything_that_methods_can_be(driver: Driver) -> None:
    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.25)
        class Model:
            @ray.method(num_returns=2)
            def two(self):
                return 1, 2

            def numbers(self, n):
                yield from (number for number in range(n))

            def fail(self):
                raise KeyError("mine")

            def main(self):
                return threading.current_thread() is threading.main_thread()

            def pair(self, a, b):
                return a, b

        model = Model.remote()
        for _ in range(2):  # before the lease is there, and after
            two, numbers, fail = model.two.remote(), model.numbers.remote(3), model.fail.remote()
            pair = model.pair.options(num_returns=2).remote(ray.put(5), b=6)
            assert ray.get(two) == [1, 2]
            assert [ray.get(ref) for ref in numbers] == [0, 1, 2]
            with pytest.raises(KeyError):
                ray.get(fail)
            assert ray.get(pair) == [5, 6]
            assert ray.get(model.main.remote())
        with pytest.raises(AttributeError, match="no method nothing"):
            model.nothing.remote()
        with pytest.raises(TypeError):
            Model.remote(1)


def test_classes_with_async_methods(driver: Driver) -> None:
    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.25)
        class Meeting:
            def __init__(self):
                self.here = asyncio.Event()

            async def wait(self):
                await self.here.wait()
                return "met"

            async def come(self):
                self.here.set()

        for _ in range(2):
            meeting = Meeting.remote()
            waits = meeting.wait.remote()
            ray.get(meeting.come.remote(), timeout=100)
            assert ray.get(waits, timeout=100) == "met"
            assert ray.get(meeting.wait.remote(), timeout=100) == "met"


def test_handles_travel(driver: Driver) -> None:
    """To plain tasks and decorated calls, before and after the lease is there."""

    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.25)
        class Counter:
            def __init__(self):
                self.value = 0

            def add(self):
                self.value += 1
                return self.value

        @ray.remote(num_cpus=0)
        def plain(handles):
            return ray.get(handles[0].add.remote())

        @ray.remote(num_cpus=0)
        def bare(handle):
            return ray.get(handle.add.remote())

        @raysched.remote(gpu_fraction=0.25)
        def decorated(handle):
            return ray.get(handle.add.remote())

        counter = Counter.remote()
        first = [plain.remote([counter]), decorated.remote(counter)]
        assert sorted(ray.get(first)) == [1, 2]
        assert ray.get(counter.add.remote()) == 3
        assert ray.get(plain.remote([counter])) == 4
        assert ray.get(decorated.remote(counter)) == 5
        assert ray.get(bare.remote(counter)) == 6
        assert ray.get(bare.remote(Counter.remote())) == 1


def test_no_call_goes_to_a_worker_that_went_back(driver: Driver, system: System) -> None:
    """A call with a handle among its arguments goes through the relay though a worker is idle, which must not
    be counted twice then: it was called again after it had been given back."""
    wait_until(lambda: used(system) == 0, "nothing is held")

    @driver
    def _() -> None:
        global echo, keeper

        @raysched.remote(gpu_fraction=0.25)
        class Keeper:
            def here(self):
                return True

        @raysched.remote(gpu_fraction=0.25)
        def echo(value):
            return value

        keeper = Keeper.remote()
        assert ray.get(keeper.here.remote(), timeout=100)
        for _ in range(3):
            ray.get(echo.remote(keeper), timeout=100)
            assert ray.get(echo.remote(1), timeout=100) == 1

    wait_until(lambda: used(system) == 2500, "only the actor still holds its share")

    @driver
    def _() -> None:
        global keeper
        assert ray.get([echo.remote(n) for n in range(8)], timeout=100) == list(range(8))
        keeper = None


@pytest.mark.parametrize("end", ["ray.kill", "raysched.kill", "cancel", "kill -9", "handle dropped"])
def test_the_share_is_free_when_all_its_processes_are_gone(driver: Driver, system: System, end: str) -> None:
    """Case ray-03: an actor ends in any way, and a child of it that called setsid ends too, before the share
    is given to somebody else."""
    wait_until(lambda: used(system) == 0, "nothing is held")

    def start() -> list[int]:
        global loader

        @raysched.remote(gpu_fraction=0.5)
        class Loader:
            def __init__(self):
                self.child = subprocess.Popen(["sleep", "600"], start_new_session=True)

            def pids(self):
                return [os.getpid(), self.child.pid]

        loader = Loader.remote()
        return ray.get(loader.pids.remote())

    actor, child = driver(start)
    bystander = subprocess.Popen(["sleep", "600"])
    everything = {"gpus": 2}
    next_one = system.submit("next", "sleep 1", backend="ray", resources=everything)
    (job,) = [j["id"] for j in system.client().jobs(state="running") if j["name"] == "Loader"]
    if end == "cancel":
        system.cli("cancel", job)
    elif end == "kill -9":
        os.kill(actor, signal.SIGKILL)
    elif end == "ray.kill":
        driver(_ray_kill)
    elif end == "raysched.kill":
        driver(_raysched_kill)
    else:
        driver(_drop)
    wait_until(lambda: system.client().job(next_one)[0]["state"] in ("running", "succeeded"), "the next runs")
    assert gone(child)
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    wait_until(lambda: system.client().job(next_one)[0]["ended"], "the next is over")


def _ray_kill() -> None:
    ray.kill(loader)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(loader.pids.remote(), timeout=100)


def _raysched_kill() -> None:
    raysched.kill(loader)


def _drop() -> None:
    global loader
    loader = None


def test_an_actor_lives_until_its_last_call_has_ended(driver: Driver) -> None:
    """Though its only handle is gone before, as for plain actors."""

    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.25)
        class Slow:
            def work(self):
                time.sleep(0.5)
                return 1

        assert ray.get(Slow.remote().work.remote(), timeout=100) == 1

        def later():
            slow = Slow.remote()
            ray.get(slow.work.remote())
            return [slow.work.remote() for _ in range(3)]

        assert ray.get(later(), timeout=100) == [1, 1, 1]


def test_a_class_that_can_never_run_says_so(driver: Driver) -> None:
    @driver
    def _() -> None:
        @raysched.remote(gpus=9)
        class Huge:
            def work(self):
                pass

        huge = Huge.remote()
        for _ in range(2):
            with pytest.raises(raysched.Refused, match="9 GPUs"):
                ray.get(huge.work.remote(), timeout=100)

        @raysched.remote(gpu_fraction=0.25)
        class Broken:
            def __init__(self):
                raise ValueError("broken")

            def work(self):
                pass

        with pytest.raises(ray.exceptions.RayActorError, match="broken"):
            ray.get(Broken.remote().work.remote(), timeout=100)
        with pytest.raises(raysched.SpecError, match="functions"):
            raysched.remote(max_retries=1)(Broken._cls)
