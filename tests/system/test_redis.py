"""With Redis behind Ray's GCS the whole head may die: Ray's own state is kept too, and no job is lost."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from engines import need
from programs import Driver
from running import System, free_port, wait_until
from test_killed import kill_ray, state, tenants, told, wait_for

import raysched

pytestmark = pytest.mark.ray


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[int]:
    """The port of a Redis of the test's own, which outlives the heads."""
    program = shutil.which("redis-server")
    need(program, "apt-get install redis-server")
    port = free_port()
    options = {"port": port, "bind": "127.0.0.1", "dir": tmp_path, "save": "", "appendonly": "no"}
    with (tmp_path / "redis.log").open("wb") as log:
        server = subprocess.Popen(
            [str(program), *(word for name, value in options.items() for word in (f"--{name}", str(value)))],
            stdout=log,
        )
    try:
        wait_until(lambda: answer(port, b"PING\r\n") == b"+PONG\r\n", "Redis answers")
        yield port
    finally:
        server.kill()
        server.wait()


def answer(port: int, request: bytes) -> bytes:
    """What Redis says; nothing where it does not listen yet."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(request)
            return connection.recv(1000)
    except ConnectionError:
        return b""


@pytest.fixture
def start_driver(make_system: object) -> Iterator[Callable[[System], Driver]]:
    """Starts programs, and ends them before their system goes down."""
    with ExitStack() as made:

        def start(system: System) -> Driver:
            driver = Driver(system)
            made.callback(driver.close)
            return driver

        yield start


def hold() -> None:
    global ref

    @raysched.remote(gpu_fraction=0.1)
    def nap():
        time.sleep(1000)

    with raysched.lease(gpu_fraction=0.1):
        ref = nap.remote()
        time.sleep(1000)


def test_killing_the_whole_head_loses_no_job(
    redis: int,
    make_system: Callable[..., System],
    start_driver: Callable[[System], Driver],
    tmp_path: Path,
) -> None:
    """Two that run, one that ends while all is down, one that waits, and a program's leases; then the next
    `up`, at another port."""
    system = make_system()
    system.env["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{redis}"
    system.up()
    assert answer(redis, b"DBSIZE\r\n") > b":0"
    go, end = tmp_path / "go", tmp_path / "end"
    running = [
        system.submit(backend, told(tmp_path, go), backend=backend, resources={"gpu_fraction": 0.4})
        for backend in ("vm", "ray")
    ]
    short = f"echo started >> {tmp_path}/$RAYSCHED_JOB; while [ ! -e {end} ]; do sleep 0.05; done; exit 7"
    ending = system.submit("ending", short, backend="ray", resources={"gpu_fraction": 0.4})
    driver = start_driver(system)
    driver.begin(hold)
    for id in [*running, ending]:
        wait_for(system, id, "running")
    wait_until(lambda: len(tenants(system)) == 5, "the program holds two leases")
    waiting = system.submit("waiting", told(tmp_path, go), resources={"gpus": 2})

    kill_ray(system)
    driver.process.wait()
    end.touch()
    wait_until(lambda: len(system.processes("runner.py")) == 2, "one job ended")
    config = system.folder / "raysched.yaml"
    config.write_text(config.read_text().replace(str(system.port), str(free_port())))
    system.up()

    wait_for(system, ending, "failed")
    assert system.client().job(ending)[0]["exit_code"] == 7
    wait_until(lambda: sorted(tenants(system)) == ["ray", "vm"], "what ended and whose program died is free")
    assert [state(system, id) for id in [*running, waiting]] == ["running", "running", "waiting"]
    go.touch()
    for id in [*running, waiting]:
        wait_for(system, id, "succeeded")
        assert b"".join(system.client().logs(id)) == b"over\n"
    for id in [*running, ending, waiting]:
        assert (tmp_path / id).read_text() == "started\n"
        assert system.client().job(id)[0]["attempt"] == 1
    system.wait_for_no_demands()
