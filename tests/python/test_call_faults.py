"""What becomes of decorated calls when they are cancelled, and when processes die under them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from programs import Driver
from running import System, wait_until

import raysched

pytestmark = pytest.mark.ray
StartDriver = Callable[..., Driver]


def held(system: System) -> list[str]:
    """The jobs that programs hold or wait for."""
    return [job["id"] for job in system.client().jobs() if job["kind"] == "lease" and not job["ended"]]


def test_cancelled_calls_end(driver: Driver) -> None:
    """Running straight, running through the relay, and waiting: each ends, and others go on."""

    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.5)
        def nap(seconds):
            time.sleep(seconds)
            return seconds

        ray.get([nap.remote(0.3) for _ in range(8)])
        running = [nap.remote(100) for _ in range(4)]
        waiting = [nap.remote(100) for _ in range(4)]
        last = nap.remote(0.5)
        time.sleep(1)
        for ref in [waiting[0], running[0], waiting[1], running[1]]:
            ray.cancel(ref)
        for ref in [waiting[0], running[0], waiting[1], running[1]]:
            with pytest.raises(ray.exceptions.TaskCancelledError):
                ray.get(ref, timeout=100)
        for ref in running + waiting:
            ray.cancel(ref)
        assert ray.get(last, timeout=100) == 0.5
        assert ray.get([nap.remote(0.01) for _ in range(8)], timeout=100) == [0.01] * 8


def test_only_the_call_that_kills_its_worker_fails(driver: Driver, tmp_path: Path) -> None:
    """It is started four times at most, like a plain task (Ray counts a try also where the worker was not
    back yet); calls beside it are not harmed."""

    @driver
    def _() -> None:
        def read(path):
            with open(path) as file:
                return file.read()

        @raysched.remote(gpu_fraction=0.5)
        def work(path, kill):
            if kill:
                with open(path, "a") as file:
                    file.write("x")
                os.kill(os.getpid(), 9)
            return 1

        ray.get([work.remote(None, False) for _ in range(20)])
        for number in range(2):  # straight, then through the relay
            path = f"/tmp/raysched-test-{os.getpid()}-{number}"
            before = [work.remote(None, False) for _ in range(30 * number)]
            culprit = work.remote(path, True)
            behind = [work.remote(None, False) for _ in range(30)]
            assert ray.get(before + behind, timeout=100) == [1] * len(before + behind)
            with pytest.raises((ray.exceptions.WorkerCrashedError, ray.exceptions.RayActorError)):
                ray.get(culprit, timeout=100)
            assert 1 <= len(read(path)) <= 4
            os.remove(path)
        once = work.options(max_retries=0)
        path = f"/tmp/raysched-test-{os.getpid()}"
        refs = [once.remote(path, True)] + [once.remote(None, False) for _ in range(20)]
        assert ray.get(refs[1:], timeout=60) == [1] * 20
        with pytest.raises((ray.exceptions.WorkerCrashedError, ray.exceptions.RayActorError)):
            ray.get(refs[0], timeout=60)
        assert read(path) == "x"
        os.remove(path)


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_what_a_program_held_goes_back_with_it(
    start_driver: StartDriver, system: System, end: signal.Signals | None
) -> None:
    """Calls that run and wait, a class, a lease and a placement group."""
    driver = start_driver()

    @driver
    def _() -> None:
        global kept

        @raysched.remote(gpu_fraction=0.25)
        def nap():
            time.sleep(1000)

        @raysched.remote(gpu_fraction=0.25)
        class Model:
            def ready(self):
                return True

        model = Model.remote()
        assert ray.get(model.ready.remote())
        kept = [model, raysched.placement_group(gpus=1), raysched.lease(gpu_fraction=0.25).__enter__()]
        kept += [nap.remote() for _ in range(10)]

    wait_until(lambda: len(held(system)) > 4, "the calls ask too")
    if end is None:
        driver.close()
    else:
        os.kill(driver.process.pid, end)
    wait_until(lambda: not held(system), "all of it went back")
    wait_until(lambda: _free(system) == 2, "both GPUs are free")


def _free(system: System) -> int:
    gpus = [gpu for node in system.client().gpus()["nodes"] for gpu in node["gpus"]]
    return sum(gpu["mode"] == "free" for gpu in gpus)


def test_a_killed_ledger_takes_no_lease_away(driver: Driver, system: System) -> None:
    """Calls go on while it is down, and new leases come when it is back."""
    driver.begin(_work_on)
    time.sleep(1)
    assert system.kill("ray::Ledger")
    driver.answer()
    wait_until(lambda: not held(system), "every lease went back")


def _work_on() -> None:
    @raysched.remote(gpu_fraction=0.25)
    def nap():
        time.sleep(0.05)
        return os.environ["RAYSCHED_LEASE"]

    leases = set()
    end = time.monotonic() + 4
    while time.monotonic() < end:
        leases |= set(ray.get([nap.remote() for _ in range(8)]))
    assert len(leases) <= 8
    wider = nap.options(gpu_fraction=0.3)
    assert ray.get(wider.remote(), timeout=100)


def test_a_cancelled_lease_is_replaced(driver: Driver, system: System) -> None:
    """`raysched cancel` ends what runs under a lease: waiting calls start again under another one."""
    driver.begin(_long_calls)
    (job,) = wait_until(
        lambda: [j["id"] for j in system.client().jobs() if j["name"] == "long" and j["state"] == "running"][
            :1
        ],
        "one runs",
    )
    time.sleep(1)
    system.cli("cancel", job)
    driver.answer()


def test_a_call_on_a_lease_that_is_cancelled_says_so(driver: Driver, system: System) -> None:
    """One that was sent straight to its worker; and a lease of a `with` block, where it is used and left."""
    wait_until(lambda: not held(system), "the others' leases went back")
    driver(_hold_two)
    for job in held(system):
        system.cli("cancel", job)
    driver(_learn_of_it)


def _hold_two() -> None:
    global lease, ref

    @raysched.remote(gpu_fraction=0.25)
    def nap(seconds):
        time.sleep(seconds)

    lease = raysched.lease(gpu_fraction=0.25).__enter__()
    ray.get(nap.remote(0))
    lanes = raysched.python.connection.connect().dispatcher._lanes
    while not any(lane._idle for lane in lanes.values()):
        time.sleep(0.01)
    ref = nap.remote(1000)
    time.sleep(0.5)


def _learn_of_it() -> None:
    with pytest.raises(raysched.LeaseLost, match="cancelled by"):
        ray.get(ref, timeout=60)
    lost = raysched.python.connection.connect().dispatcher.lost_leases
    while not lost:
        time.sleep(0.01)
    with pytest.raises(raysched.LeaseLost, match="cancelled by"):
        lease.options()
    with pytest.raises(raysched.LeaseLost, match="cancelled by"):
        lease.__exit__(None, None, None)


def test_what_goes_back_while_the_ledger_is_down_is_free(driver: Driver, system: System) -> None:
    """Nothing is held when the program is done with it, though it lives; the ledger is killed many times."""
    wait_until(lambda: not held(system), "the others' leases went back")
    driver.begin(_take_and_give_back)
    for _ in range(3):
        wait_until(lambda: system.kill("ray::Ledger"), "the ledger is killed")
        time.sleep(0.7)
    assert driver.answer() >= 16
    wait_until(lambda: not held(system), "everything went back")


def _take_and_give_back() -> int:
    done = 0

    def work():
        nonlocal done
        end = time.monotonic() + 5
        while time.monotonic() < end or done < 16:
            with raysched.lease(gpu_fraction=0.2, timeout=100):
                done += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def test_what_goes_back_while_there_is_no_ledger_is_free_when_there_is(
    make_system: Callable[..., System],
) -> None:
    """The ledger is killed for good, and made again by `raysched up`: everybody finds it."""
    system = make_system()
    system.up()
    driver = Driver(system)
    try:
        driver(_release_without_a_ledger)
        system.up()
        assert driver(_call_again)
        wait_until(lambda: not held(system), "everything went back")
    finally:
        driver.close()


def _release_without_a_ledger() -> None:
    global where

    @raysched.remote(gpu_fraction=0.25)
    def where():
        return os.environ["RAYSCHED_LEASE"]

    with raysched.lease(gpu_fraction=0.25):
        ray.get(where.remote())
        ray.kill(ray.get_actor("ledger", namespace="raysched"), no_restart=True)


def _call_again() -> str:
    return ray.get(where.remote())


def _long_calls() -> None:
    @raysched.remote(gpus=1)
    def long():
        time.sleep(3)
        return 1

    assert ray.get([long.remote() for _ in range(3)], timeout=100) == [1, 1, 1]
