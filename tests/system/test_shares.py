"""Jobs that share one GPU, as a user sees it: real processes, a real Ray, only the card is made up."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import System, wait_until

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def one(_ray: None) -> Iterator[System]:
    """A system with one GPU."""
    running = System("1xA100-80GB")
    try:
        running.up()
        yield running
    finally:
        running.close()


def job(system: System, id: str) -> dict:
    return system.client().job(id)[0]


def state(system: System, id: str) -> str:
    return job(system, id)["state"]


def wait_for(system: System, id: str, *states: str) -> dict:
    wait_until(lambda: state(system, id) in states, f"{id} is {' or '.join(states)}")
    return job(system, id)


def log(system: System, id: str) -> str:
    return b"".join(system.client().logs(id)).decode()


def share_in_ray(system: System) -> float:
    """The GPU that `ray status` says is used inside placement groups."""
    said = system.ray("status").stdout
    used = re.search(r"\(([\d.]+) used of [\d.]+ reserved in placement groups\)\n?", gpu_line(said))
    return float(used[1]) if used else 0.0


def gpu_line(said: str) -> str:
    return next((line for line in said.splitlines() if line.strip().endswith("GPU") or " GPU " in line), "")


def share_in_gpus(system: System) -> float:
    return sum(gpu["share_used"] for node in system.client().gpus()["nodes"] for gpu in node["gpus"]) / 10_000


def agree(system: System, share: float) -> None:
    wait_until(lambda: share_in_gpus(system) == share, f"gpus says {share}")
    wait_until(lambda: share_in_ray(system) == share, f"ray status says {share}")


def test_two_halves_run_together_a_quarter_waits_and_ray_agrees(one: System, tmp_path: Path) -> None:
    go = tmp_path / "go"
    until = f"while [ ! -e {go} ]; do sleep 0.05; done"
    first, second = (one.submit(f"half-{n}", until, resources={"gpu_fraction": 0.5}) for n in (1, 2))
    for id in (first, second):
        wait_for(one, id, "running")
    third = one.submit("quarter", "true", resources={"gpu_fraction": 0.25})
    agree(one, 1.0)
    assert state(one, third) == "waiting"
    [waiting] = one.json("queue")["waiting"]
    assert "needs 0.25 of one GPU; the largest free share is 0" in waiting["why"]
    assert waiting["why"] in one.cli("queue").stdout
    go.touch()
    assert wait_for(one, third, "succeeded", "failed")["state"] == "succeeded"
    agree(one, 0.0)


def test_a_request_by_memory_gets_the_share_of_the_card_it_lands_on(one: System) -> None:
    """Cases spec-03 and sharing-01: plan, lease and variables give the same number."""
    spec = {"name": "units", "entrypoint": "echo $RAYSCHED_GPU_MEMORY_MIB $RAYSCHED_GPU_FRACTION"}
    id = one.submit(**spec, resources={"gpu_memory": "10GB"})
    [gpu] = wait_for(one, id, "succeeded")["lease"]["places"][0]["gpus"]
    assert (gpu["memory_mib"], gpu["share"]) == (9537, 9537 * 10_000 // 81920)
    assert log(one, id) == "9537 0.1164\n"
    [planned] = one.client().plan([{**spec, "working_dir": None, "resources": {"gpu_memory": "10GB"}}])
    assert planned["places"][0]["gpus"][0]["memory_mib"] == 9537


def test_a_whole_gpu_is_whole_also_after_the_ledger_was_killed(one: System, tmp_path: Path) -> None:
    """Case sharing-03."""
    go = tmp_path / "go"
    until = f"echo started >> {tmp_path}/$RAYSCHED_JOB_NAME; while [ ! -e {go} ]; do sleep 0.05; done"
    a = one.submit("A", until, resources={"gpus": 1})
    wait_for(one, a, "running")
    b = one.submit("B", until, resources={"gpu_fraction": 0.22})
    assert one.kill("ray::Ledger")
    c = one.submit("C", until, resources={"gpu_fraction": 0.22})
    for id in (b, c):
        assert state(one, id) == "waiting"
        assert re.search("exclusive|A", one.json("explain", id)["why"])
    one.cli("cancel", a)
    for id in (b, c):
        wait_for(one, id, "running")
    assert share_in_gpus(one) == 0.44
    d = one.submit("D", until, resources={"gpus": 1})
    assert state(one, d) == "waiting"
    go.touch()
    wait_for(one, d, "succeeded")
    assert (tmp_path / "A").read_text() == "started\n"


@pytest.mark.parametrize("backend", ["vm", "ray"])
def test_an_entrypoint_of_several_commands_runs_where_the_lease_is(one: System, backend: str) -> None:
    """Case spec-07."""
    entrypoint = 'echo "one $STAGE"; echo two && echo "three ; four"\nhostname\nexit 3\n'
    id = one.submit(
        "three-steps", entrypoint, env={"STAGE": "inside"}, backend=backend, resources={"gpu_fraction": 0.1}
    )
    ended = wait_for(one, id, "failed")
    assert ended["exit_code"] == 3
    lines = log(one, id).splitlines()
    assert lines[:3] == ["one inside", "two", "three ; four"]
    assert lines[3:] == [one.run("hostname").stdout.strip()]


@pytest.mark.parametrize("backend", ["vm", "ray"])
def test_a_list_is_run_without_a_shell(one: System, backend: str) -> None:
    """Case spec-07, second check."""
    id = one.submit("list", ["echo", "$STAGE; echo x"], backend=backend, resources={"gpus": 0})
    wait_for(one, id, "succeeded")
    assert log(one, id) == "$STAGE; echo x\n"


@pytest.mark.parametrize("backend", ["vm", "ray"])
def test_a_working_directory_with_a_space_arrives(one: System, tmp_path: Path, backend: str) -> None:
    """Case vm-04."""
    project = tmp_path / "my project (v2)"
    data = project / "it's data"
    data.mkdir(parents=True)
    (data / "naïve file.txt").write_text("arrived\n", encoding="utf-8")
    (project / "main file.py").write_text(
        'print(open("it\'s data/naïve file.txt", encoding="utf-8").read(), end="")'
    )
    (project / "job.yaml").write_text(
        "name: spaces\nentrypoint: [python, 'main file.py']\nworking_dir: .\n"
        f"backend: {backend}\nresources: {{gpu_fraction: 0.1}}\n"
    )
    done = one.cli("submit", "job.yaml", "--follow", cwd=project)
    assert done.stdout == "arrived\n"


def test_a_job_sees_the_devices_of_its_lease_and_only_these(one: System) -> None:
    [gpu] = one.client().gpus()["nodes"][0]["gpus"]
    show = "echo [$CUDA_VISIBLE_DEVICES] $RAYSCHED_GPU_FRACTION"
    with_gpu = one.submit("sees", show, resources={"gpu_fraction": 0.25})
    without = one.submit("blind", show, resources={"gpus": 0})
    wait_for(one, with_gpu, "succeeded")
    wait_for(one, without, "succeeded")
    assert log(one, with_gpu) == f"[{gpu['uuid']}] 0.25\n"
    assert log(one, without) == "[]\n"


def test_an_array_runs_four_at_a_time(one: System, tmp_path: Path) -> None:
    mine = f"{tmp_path}/$RAYSCHED_ARRAY_INDEX"
    count = f"mkdir {mine}; ls {tmp_path} | wc -l; sleep 1; rmdir {mine}"
    spec = {"name": "hpo", "entrypoint": count, "working_dir": None, "array": 6}
    jobs = one.client().submit([{**spec, "resources": {"gpu_fraction": 0.25}}], [None])
    ids = [each["id"] for each in jobs]
    assert len(ids) == 6
    for id in ids:
        wait_for(one, id, "succeeded")
    assert max(int(log(one, id)) for id in ids) <= 4


def test_a_submission_under_the_same_key_is_one_job(one: System) -> None:
    """Case ray-02, over HTTP."""
    spec = {"name": "once", "entrypoint": "true", "working_dir": None, "resources": {"gpus": 0}}
    answers = [one.client().submit([spec], [None], key="the-same") for _ in range(2)]
    assert answers[0][0]["id"] == answers[1][0]["id"]


def test_ray_job_submit_of_raysched_submit(one: System, tmp_path: Path) -> None:
    """Case ray-02: sent twice under one id it is one job that runs once."""
    entrypoint = f"echo ran >> {tmp_path}/count; echo from the inside"
    (tmp_path / "job.yaml").write_text(
        f"name: inner\nentrypoint: {entrypoint}\nresources: {{gpu_fraction: 0.5}}\n"
    )
    command = ["job", "submit", "--submission-id", "run-7", "--working-dir", str(tmp_path), "--"]
    done = one.ray(*command, "raysched", "submit", "job.yaml", "--follow")
    assert "from the inside" in done.stdout
    again = one.ray(*command, "raysched", "submit", "job.yaml", "--follow", check=False)
    assert again.returncode != 0
    assert "run-7" in again.stdout + again.stderr
    assert (tmp_path / "count").read_text() == "ran\n"


def test_ray_job_submit_of_a_script_with_the_decorator(one: System, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, ray, raysched\n"
        "@raysched.remote(gpu_fraction=0.25)\n"
        "def where(x): return x, os.environ['CUDA_VISIBLE_DEVICES']\n"
        "print('answers', sorted(x for x, gpu in ray.get([where.remote(x) for x in range(4)])))\n"
    )
    done = one.ray(
        "job", "submit", "--working-dir", str(tmp_path), "--", Path(sys.executable).name, "script.py"
    )
    assert "answers [0, 1, 2, 3]" in done.stdout
