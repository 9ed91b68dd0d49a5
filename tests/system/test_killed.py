"""Processes of a running system are killed while jobs run: nothing is lost, nothing runs twice."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from running import System, wait_until

pytestmark = pytest.mark.ray
MakeSystem = Callable[..., System]


@pytest.fixture(scope="module")
def faulty(_ray: None) -> Iterator[System]:
    """A system with two GPUs, whose actors are killed."""
    running = System("2xA100-80GB")
    try:
        running.up()
        yield running
    finally:
        running.close()


def state(system: System, id: str) -> str:
    return system.client().job(id)[0]["state"]


def wait_for(system: System, id: str, *states: str) -> None:
    wait_until(lambda: state(system, id) in states, f"{id} is {' or '.join(states)}", 120)


def told(folder: Path, go: Path) -> str:
    """A command that notes each start of it and then waits for the file `go`."""
    return f"echo started >> {folder}/$RAYSCHED_JOB; while [ ! -e {go} ]; do sleep 0.05; done; echo over"


@pytest.mark.parametrize("victim", ["Ledger", "NodeAgent", "Gateway", "BackendActor", "Resident"])
def test_jobs_outlive_a_killed_actor(faulty: System, tmp_path: Path, victim: str) -> None:
    go = tmp_path / "go"
    run = told(tmp_path, go)
    jobs = [
        faulty.submit(f"{backend}-{victim}", run, backend=backend, resources={"gpu_fraction": 0.25})
        for backend in ("vm", "ray")
    ]
    for id in jobs:
        wait_for(faulty, id, "running")
    assert faulty.kill(f"ray::{victim}"), faulty.processes("ray::")
    jobs.append(faulty.submit(f"after-{victim}", run, resources={"gpu_fraction": 0.25}))
    wait_for(faulty, jobs[-1], "running")
    assert [state(faulty, id) for id in jobs] == ["running"] * 3
    go.touch()
    for id in jobs:
        wait_for(faulty, id, "succeeded")
        assert (tmp_path / id).read_text() == "started\n"
        assert b"".join(faulty.client().logs(id)) == b"over\n"
    wait_until(lambda: not tenants(faulty), "nothing is held")


def tenants(system: System) -> list[str]:
    return [
        tenant["display"]
        for node in system.client().gpus()["nodes"]
        for gpu in node["gpus"]
        for tenant in gpu["tenants"]
    ]


def test_each_acknowledged_job_runs_exactly_once_though_the_ledger_is_killed(
    faulty: System, tmp_path: Path
) -> None:
    """200 submissions by 8 clients; the ledger is killed -9 in the middle, twice."""
    acknowledged: list[str] = []
    threads = [
        threading.Thread(target=submit_some, args=(faulty, tmp_path, n, acknowledged)) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for count in (40, 120):
        wait_until(lambda count=count: len(acknowledged) >= count, f"{count} are acknowledged")
        assert faulty.kill("ray::Ledger")
    for thread in threads:
        thread.join()
    assert len(set(acknowledged)) == 200
    wait_until(lambda: ended(faulty) >= set(acknowledged), "all have ended", 200)
    runs = Counter((tmp_path / "runs").read_text().split())
    assert runs == Counter(acknowledged)
    assert {job["state"] for job in faulty.client().jobs() if job["id"] in runs} == {"succeeded"}


def submit_some(system: System, folder: Path, number: int, acknowledged: list[str]) -> None:
    """25 jobs, every fifth with a share of a GPU."""
    for count in range(25):
        resources = {"gpu_fraction": 0.05} if count % 5 == 0 else {"gpus": 0, "cpus": 0}
        run = f"echo $RAYSCHED_JOB >> {folder}/runs"
        acknowledged.append(system.submit(f"client-{number}-{count}", run, resources=resources))


def ended(system: System) -> set[str]:
    return {job["id"] for job in system.client().jobs() if job["ended"]}


def test_jobs_outlive_all_of_ray_and_are_adopted(faulty: System, tmp_path: Path) -> None:
    """Every process of Ray is killed; `up` again finds the jobs of vm and of ray still running."""
    system = faulty
    go = tmp_path / "go"
    jobs = [
        system.submit(backend, told(tmp_path, go), backend=backend, resources={"gpu_fraction": 0.5})
        for backend in ("vm", "ray")
    ]
    waiting = system.submit("waiting", told(tmp_path, go), resources={"gpus": 2})
    for id in jobs:
        wait_for(system, id, "running")
    before = system.client().job("vm")[0]["lease"]["places"]
    kill_ray(system)
    assert system.cli("status", check=False).returncode == 69
    system.up()
    wait_until(lambda: all(tenant in ("vm", "ray") for tenant in tenants(system)), "they hold their GPUs")
    assert [state(system, id) for id in [*jobs, waiting]] == ["running", "running", "waiting"]
    assert system.client().job("vm")[0]["lease"]["places"] == before
    go.touch()
    for id in [*jobs, waiting]:
        wait_for(system, id, "succeeded")
        assert system.client().job(id)[0]["attempt"] == 1
        assert (tmp_path / id).read_text() == "started\n"


def kill_ray(system: System) -> None:
    """kill -9 of everything but the runners and what runs under them."""
    runners = system.processes("runner.py").keys()

    def ray() -> list[int]:
        """Looked at one by one, as jobs start processes all the time."""
        return [pid for pid in system.processes() if not runners & {pid, *ancestors(pid)}]

    for pid in ray():
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    wait_until(lambda: not ray(), "Ray is dead")


def ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.add(pid)
    return found


def test_a_job_that_ended_while_all_was_down_is_told_truly(faulty: System, tmp_path: Path) -> None:
    system = faulty
    run = f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 7"
    ids = [
        system.submit(backend, run, backend=backend, resources={"gpu_fraction": 0.5})
        for backend in ("vm", "ray")
    ]
    for id in ids:
        wait_for(system, id, "running")
    kill_ray(system)
    (tmp_path / "go").touch()
    wait_until(lambda: not system.processes("runner.py"), "the jobs have ended")
    system.up()
    for id in ids:
        wait_for(system, id, "failed")
        assert system.client().job(id)[0]["exit_code"] == 7


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk: run as root")
def test_a_full_disk_is_told_and_nothing_is_half_done(make_system: MakeSystem) -> None:
    system = make_system()
    system.home.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "tmpfs", system.home], check=True)
    try:
        system.up()
        filler = system.home / "filler"
        fill(filler)
        done = system.cli("submit", str(job_file(system)), check=False)
        assert done.returncode == 74, done.stderr
        assert "Traceback" not in done.stderr
        assert not system.client().jobs()
        filler.unlink()
        system.cli("submit", str(job_file(system)), "--follow")
        system.cli("down")
    finally:
        system.kill()
        subprocess.run(["umount", "-l", system.home], check=True)


def fill(file: Path) -> None:
    """Write until nothing fits any more."""
    with file.open("wb", buffering=0) as disk, suppress(OSError):
        while True:
            disk.write(bytes(4096))


def job_file(system: System) -> Path:
    file = system.folder / "job.yaml"
    file.write_text("entrypoint: 'true'\nworking_dir: null\nresources: {gpus: 0}\n")
    return file


def test_ctrl_c_in_follow_leaves_the_job_running_and_says_how_to_come_back(
    faulty: System, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    file = tmp_path / "job.yaml"
    file.write_text(
        f"name: long\nentrypoint: '{told(tmp_path, go)}'\nworking_dir: null\nresources: {{gpus: 0}}\n"
    )
    follow = faulty.begin("submit", str(file), "--follow")
    wait_until(lambda: any(tmp_path.glob("[0-9a-f]*")), "it has started")
    follow.send_signal(2)
    _, said = follow.communicate(timeout=120)
    assert follow.returncode == 130
    assert "raysched logs -f" in said
    [job] = [job for job in faulty.client().jobs() if job["name"] == "long"]
    assert job["state"] == "running"
    go.touch()
    wait_for(faulty, job["id"], "succeeded")


def test_killed_at_random_moments_nothing_runs_twice(faulty: System, tmp_path: Path) -> None:
    """Thirty short jobs while one actor after the other is killed, at moments drawn from a printed seed."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    ids = [
        faulty.submit(
            f"short-{number}",
            f"echo $RAYSCHED_JOB >> {tmp_path}/runs; sleep 0.5",
            backend=chance.choice(["vm", "ray"]),
            resources=chance.choice([{"gpus": 0, "cpus": 0}, {"gpu_fraction": 0.5}, {"gpus": 1}]),
        )
        for number in range(30)
    ]
    victims = ["Ledger", "NodeAgent", "BackendActor", "Resident", "Gateway"]
    chance.shuffle(victims)
    for victim in victims:
        time.sleep(chance.uniform(0.1, 2.5))
        faulty.kill(f"ray::{victim}")
    wait_until(lambda: ended(faulty) >= set(ids), "all have ended", 200)
    assert Counter((tmp_path / "runs").read_text().split()) == Counter(ids)
    jobs = [faulty.client().job(id)[0] for id in ids]
    assert not [(job, faulty.client().explain(job["id"])) for job in jobs if job["state"] != "succeeded"]
