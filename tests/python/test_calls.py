"""Decorated functions on a real system: what they return, raise, see and hold."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from programs import Driver
from running import System, free_port, wait_until

import raysched

pytestmark = pytest.mark.ray
StartDriver = Callable[..., Driver]


def held(system: System) -> list[str]:
    """The jobs that programs hold or wait for."""
    return [job["id"] for job in system.client().jobs() if job["kind"] == "lease" and not job["ended"]]


def gpus(system: System) -> list[dict[str, Any]]:
    return [gpu for node in system.client().gpus()["nodes"] for gpu in node["gpus"]]


def test_calls_return_plain_references(driver: Driver) -> None:
    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.25)
        def add(a, b=1):
            return a + b

        ref = add.remote(1)
        assert type(ref) is ray.ObjectRef
        assert ray.get(ref) == 2
        many = [add.remote(i, b=2) for i in range(40)]
        assert ray.get(many) == [i + 2 for i in range(40)]
        assert ray.wait(many, num_returns=40)[1] == []
        assert ray.get(add.remote(add.remote(1), b=add.remote(2))) == 5
        with pytest.raises(TypeError, match=r"add\.remote"):
            add(1)
        with pytest.raises(TypeError):
            add.remote()


def test_values_go_through_unchanged(driver: Driver) -> None:
    """Straight to a worker or through the relay: arrays, references within values, handles, own classes."""

    @driver
    def _() -> None:
        import numpy

        class Own:
            def __init__(self, value):
                self.value = value

        @raysched.remote(gpu_fraction=0.25)
        def same(value):
            time.sleep(0.01)
            return value

        big = numpy.arange(300_000)
        inner = ray.put("inner")
        for _ in range(2):
            refs = [same.remote(big) for _ in range(12)]
            assert all((value == big).all() for value in ray.get(refs))
            refs = [same.remote({"ref": inner, "own": Own(3)}) for _ in range(12)]
            assert all(ray.get(v["ref"]) == "inner" and v["own"].value == 3 for v in ray.get(refs))


def test_exceptions_are_the_functions_own(driver: Driver) -> None:
    @driver
    def _() -> None:
        class OwnError(Exception):
            pass

        @raysched.remote(gpu_fraction=0.25)
        def fail(kind):
            if kind == "own":
                raise OwnError("mine", 3)
            if kind == "exit":
                sys.exit(3)
            if kind == "lock":
                return threading.Lock()
            raise ValueError("no")

        for kind, error in (
            ("value", ValueError),
            ("own", OwnError),
            ("exit", RuntimeError),
            ("lock", TypeError),
        ):
            for ref in [fail.remote(kind) for _ in range(10)]:
                with pytest.raises(error):
                    ray.get(ref)
        with pytest.raises(OwnError, match="in fail") as raised:
            ray.get([fail.remote("own") for _ in range(10)])
        assert raised.value.cause.args == ("mine", 3)


def test_several_values(driver: Driver) -> None:
    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.25, num_returns=2)
        def halves(pair):
            return pair

        for _ in range(2):
            pairs = [halves.remote((i, -i)) for i in range(10)]
            assert [ray.get(pair) for pair in pairs] == [[i, -i] for i in range(10)]
        for first, _ in [halves.remote((1, 2, 3)) for _ in range(10)]:
            with pytest.raises(ValueError, match="2"):
                ray.get(first)


def test_a_function_without_gpus_sees_none(driver: Driver, system: System) -> None:
    """Case ray-01: called from the program, inside another call, and inside a plain task."""

    def look_alone() -> str:
        global look

        @raysched.remote(gpus=0, cpus=1)
        def look():
            return os.environ.get("CUDA_VISIBLE_DEVICES")

        return ray.get(look.remote())

    def look_inside() -> list[str]:
        @raysched.remote(gpu_fraction=0.25)
        def parent():
            return os.environ["CUDA_VISIBLE_DEVICES"], ray.get(look.remote())

        @ray.remote(num_cpus=0)
        def task():
            return ray.get(look.remote())

        return [*ray.get(parent.remote()), ray.get(task.remote())]

    wait_until(lambda: not held(system), "the others' leases went back")
    assert driver(look_alone) in ("", "-1")
    assert [gpu["share_used"] for gpu in gpus(system)] == [0, 0]
    own, inside, in_task = driver(look_inside)
    assert inside in ("", "-1")
    assert in_task in ("", "-1")
    assert own.startswith("GPU-")
    assert "," not in own


def test_what_fits_no_card_waits(start_driver: StartDriver, system: System, tmp_path: Path) -> None:
    """Case sharing-04: two of 0.6 run on different cards; the third waits with us, not in Ray."""
    wait_until(lambda: not held(system), "the others' leases went back")
    driver = start_driver(FOLDER=str(tmp_path))

    def begin() -> None:
        global refs

        @raysched.remote(gpu_fraction=0.6)
        def hold(folder):
            with open(f"{folder}/{os.getpid()}", "w") as file:
                file.write(os.environ["CUDA_VISIBLE_DEVICES"])
            while not os.path.exists(f"{folder}/go"):
                time.sleep(0.05)

        refs = [hold.remote(os.environ["FOLDER"]) for _ in range(3)]

    def notes() -> list[str]:
        return [path.read_text() for path in tmp_path.iterdir()]

    driver(begin)
    wait_until(lambda: len(notes()) == 2 and all(notes()), "two run")
    assert len(set(notes())) == 2

    def queue() -> list[dict[str, Any]]:
        return [each for each in system.client().queue() if each["display"] == "hold"]

    wait_until(lambda: len(queue()) == 1, "one waits, and what was asked for in excess is taken back")
    (waiting,) = queue()
    assert "0.6" in waiting["why"]
    assert "0.4" in str(system.client().explain(waiting["id"])["change"])
    system.wait_for_no_demands()
    (tmp_path / "go").touch()

    @driver
    def _() -> None:
        ray.get(refs)


def test_functions_of_one_shape_share_leases(driver: Driver, system: System) -> None:
    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.2)
        def one():
            return os.environ["RAYSCHED_LEASE"]

        @raysched.remote(gpu_fraction=0.2)
        def other():
            return os.environ["RAYSCHED_LEASE"]

        first = ray.get(one.remote())
        assert [ray.get(f.remote()) for f in (other, one, other)] == [first] * 3
        wider = other.options(gpu_fraction=0.3)
        assert ray.get(wider.remote()) != first


def test_idle_leases_go_back(driver: Driver, system: System) -> None:
    """A few seconds after the last call nothing is held, though the program lives."""

    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.25)
        def nothing():
            pass

        ray.get([nothing.remote() for _ in range(20)])

    wait_until(lambda: not held(system), "every lease went back")


def test_a_call_that_waits_runs_beside_long_ones(driver: Driver) -> None:
    """Short calls pass a long one that came before them, wherever each of them was sent."""

    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.5)
        def nap(seconds):
            time.sleep(seconds)

        ray.get([nap.remote(0.1) for _ in range(8)])  # four leases are warm now
        long = nap.remote(1000)
        ray.get([nap.remote(0.001) for _ in range(100)], timeout=100)
        assert ray.wait([long], timeout=0)[0] == []
        ray.cancel(long)


def test_no_call_overtakes_one_that_was_sent_to_the_worker_before_it(driver: Driver) -> None:
    """The first one is held up on its way, by an argument that is still being made; with only one lease to be
    had, a long one that came later would keep it waiting."""

    @driver
    def _() -> None:
        @ray.remote(num_cpus=0)
        def soon():
            time.sleep(0.3)
            return 0.1

        @raysched.remote(gpus=2)
        def nap(seconds):
            time.sleep(seconds)
            return seconds

        lanes = raysched.python.connection.connect().dispatcher._lanes
        assert ray.get([soon.remote(), nap.remote(0)]) == [0.1, 0]
        while not any(lane._idle for lane in lanes.values()):
            time.sleep(0.01)
        first, later = nap.remote(soon.remote()), nap.remote(1000)
        assert ray.get(first, timeout=100) == 0.1
        ray.cancel(later)


def test_threads_of_one_program(driver: Driver) -> None:
    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.25)
        def square(x):
            return x * x

        found = {}

        def work(start):
            found[start] = ray.get([square.remote(i) for i in range(start, start + 100)])

        threads = [threading.Thread(target=work, args=(k * 100,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {k * 100: [i * i for i in range(k * 100, k * 100 + 100)] for k in range(8)}


def test_decorated_functions_travel(driver: Driver) -> None:
    """One that calls itself, and one that is passed as an argument."""

    @driver
    def _() -> None:
        @raysched.remote(gpu_fraction=0.1)
        def countdown(n):
            return [n] + (ray.get(countdown.remote(n - 1)) if n else [])

        @ray.remote(num_cpus=0)
        def call(function):
            return ray.get(function.remote(1))

        assert ray.get(countdown.remote(2)) == [2, 1, 0]
        assert ray.get(call.remote(countdown)) == [1, 0]


def test_what_is_wrong_is_said_at_once(driver: Driver) -> None:
    @driver
    def _() -> None:
        wrong = {
            "gpu_fracton": (0.5, "did you mean gpu_fraction"),
            "num_gpus": (1, "gpu_fraction"),
            "runtime_env": ({}, "ray.init"),
            "num_returns": ("streaming", "list"),
            "max_retries": (-2, "max_retries"),
            "gpu_fraction": (2, "gpus"),
        }
        for name, (value, said) in wrong.items():
            with pytest.raises(raysched.SpecError, match=said):
                raysched.remote(**{name: value})
        with pytest.raises(raysched.SpecError, match="one node"):
            raysched.remote(gpus=2, nodes=2)
        with pytest.raises(raysched.SpecError, match="generator"):

            @raysched.remote
            def numbers():
                yield 1

        with pytest.raises(raysched.SpecError, match="async"):

            @raysched.remote
            async def later():
                pass

        @raysched.remote(gpus=9)
        def too_much():
            pass

        with pytest.raises(raysched.Refused, match="9 GPUs"):
            ray.get(too_much.remote())


def test_without_raysched_it_says_so(system: System, tmp_path: Path) -> None:
    """Where nothing answers, and on a Ray without raysched."""
    code = "import ray, raysched; {}raysched.remote(len).remote([])"
    environment = ["env", f"RAYSCHED_HOME={tmp_path}", f"RAY_ADDRESS=127.0.0.1:{free_port()}"]
    for start in ("", "ray.init('local', num_cpus=1, include_dashboard=False); "):
        done = system.run(*environment, sys.executable, "-c", code.format(start), check=False)
        assert "raysched.errors.Unreachable" in done.stderr
        assert "raysched up" in done.stderr
