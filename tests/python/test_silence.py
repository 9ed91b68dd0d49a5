"""A program that is stopped keeps no GPU, and learns of it when it goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from programs import Driver
from running import System, wait_until

import raysched

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def impatient(_ray: None) -> Iterator[System]:
    """A system that waits for silent programs only as long as it must."""
    running = System("2xA100-80GB")
    try:
        running.configure("policy: {silence: 15s}")
        running.up()
        yield running
    finally:
        running.close()


@pytest.fixture
def start(impatient: System) -> Iterator[Callable[[], Driver]]:
    made: list[Driver] = []

    def start() -> Driver:
        made.append(Driver(impatient))
        return made[-1]

    yield start
    for each in made:
        each.process.send_signal(signal.SIGCONT)
        each.close()


def leases(system: System) -> list[dict[str, Any]]:
    return [job for job in system.client().jobs() if job["kind"] == "lease"]


def free(system: System) -> bool:
    gpus = [gpu for node in system.client().gpus()["nodes"] for gpu in node["gpus"]]
    return all(gpu["mode"] == "free" for gpu in gpus)


def hold_everything() -> None:
    """A call sent straight to its worker, calls that run and wait through the relay, a class and a lease."""
    global refs, lease, model, nap

    @raysched.remote(gpu_fraction=0.25)
    class Model:
        def ready(self):
            return True

    @raysched.remote(gpu_fraction=0.5)
    def nap(seconds):
        time.sleep(seconds)
        return seconds

    model = Model.remote()
    assert ray.get(model.ready.remote())
    lease = raysched.lease(gpu_fraction=0.25).__enter__()
    assert ray.get(nap.remote(0)) == 0
    refs = [nap.remote(1000) for _ in range(5)]
    time.sleep(1)


def find_out() -> None:
    straight, *others = refs
    # Its worker has told why it ended, and is dead: Ray says the one or the other, whatever it reads first.
    with pytest.raises((raysched.LeaseLost, ray.exceptions.ActorDiedError)):
        ray.get(straight, timeout=60)
    for ref in others:
        with pytest.raises(raysched.LeaseLost, match="did not answer for 15 s"):
            ray.get(ref, timeout=60)
    with pytest.raises(raysched.LeaseLost, match="did not answer for 15 s"):
        lease.__exit__(None, None, None)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(model.ready.remote(), timeout=60)
    assert ray.get([nap.remote(0.01) for _ in range(8)], timeout=60) == [0.01] * 8
    with raysched.lease(gpu_fraction=0.25, timeout=60) as again:
        assert again.gpus


def test_a_stopped_program_loses_its_leases_and_is_told(
    impatient: System, start: Callable[[], Driver]
) -> None:
    driver = start()
    driver(hold_everything)
    assert not free(impatient)
    driver.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: free(impatient), "what it held is free", 120)
    driver.process.send_signal(signal.SIGCONT)
    driver(find_out)


def test_a_program_that_is_busy_or_waits_keeps_its_leases(
    impatient: System, start: Callable[[], Driver]
) -> None:
    """It makes no call for longer than the patience, and the ledger is killed within that time."""
    driver = start()

    def begin() -> str:
        global lease
        lease = raysched.lease(gpus=2).__enter__()
        return lease.id

    def go_on() -> str:
        time.sleep(25)
        seen = lease.id
        lease.__exit__(None, None, None)
        return seen

    id = driver(begin)
    driver.begin(go_on)
    wait_until(lambda: impatient.kill("ray::Ledger"), "the ledger is killed")
    assert driver.answer() == id
    (job,) = [job for job in leases(impatient) if job["lease"] and job["lease"]["id"] == id]
    assert (job["state"], job["reason"]) == ("succeeded", "released")
