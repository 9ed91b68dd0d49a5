"""A whole raysched with a real Slurm site: from the job file to Slurm's reasons."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator
from typing import Any

import pytest
from running import System, wait_until
from slurm_site import SlurmSite

pytestmark = pytest.mark.ray

RAY_S = 180
"""How long Ray may take to start on two nodes, or to notice that one is gone, on a busy machine."""
CALL = """
import os, ray, raysched

@raysched.remote(gpus=1, gpu_type="H100")
def where():
    return f"{os.environ['SLURMD_NODENAME']} {os.environ['CUDA_VISIBLE_DEVICES']}"

print(ray.get(where.remote()))
"""


@pytest.fixture(scope="module")
def site() -> Iterator[SlurmSite]:
    running = SlurmSite()
    yield running
    running.close()


@pytest.fixture(scope="module")
def beside(site: SlurmSite, _ray: None) -> Iterator[System]:
    """A system with that site: leave no job behind."""
    running = System("1xA100-80GB")
    running.env["SLURM_CONF"] = site.env["SLURM_CONF"]
    config = running.folder / "raysched.yaml"
    words = f"{{folder: {running.folder}/shared, gpu_memory: {{a100: 80GiB}}, simulate: H100-80GB}}"
    config.write_text(f"{config.read_text()}backends: {{slurm: {words}}}\n")
    try:
        running.up()
        wait_until(lambda: "n3" in nodes(running), "the site is there", 60)
        yield running
    finally:
        running.close()


def nodes(system: System) -> dict[str, Any]:
    return {node["name"]: node for node in system.json("gpus")["nodes"]}


def job(system: System, id: str) -> Any:
    (found,) = system.client().job(id)
    return found


def ended(system: System, id: str) -> Any:
    return wait_until(lambda: (one := job(system, id))["ended"] and one, f"{id} has ended", 60)


def output(system: System, id: str) -> str:
    return b"".join(system.client().logs(id)).decode()


def test_jobs_of_every_kind_run_where_slurm_puts_them(beside: System) -> None:
    """The ledger counts what Slurm gave, while they run and not after."""
    say = "echo $CUDA_VISIBLE_DEVICES; read -r line < go || true; exit 3"
    wait = f"mkfifo go; (sleep 600 > go) & {say}"
    wanted = {
        "whole": {"gpus": 2, "gpu_type": "A100"},
        "part": {"gpu_fraction": 0.3},
        "slice": {"mig_profile": "3g.39gb"},
    }
    ids = {name: beside.submit(name, wait, backend="slurm", resources=what) for name, what in wanted.items()}

    def placed(name: str) -> Any:
        lease = job(beside, ids[name])["lease"]
        return lease and lease["places"]

    places = {name: wait_until(lambda name=name: placed(name), f"{name} is placed", 60)[0] for name in ids}
    assert [gpu["share"] for gpu in places["whole"]["gpus"]] == [10_000, 10_000]
    assert [(gpu["share"], gpu["memory_mib"]) for gpu in places["part"]["gpus"]] == [(5000, 40960)]
    assert places["slice"]["node"] == "n3"
    held = {node: sum(gpu["share_used"] for gpu in shown["gpus"]) for node, shown in nodes(beside).items()}
    assert sorted(held[name] for name in ("n1", "n2", "n3")) == [5000, 10_000, 20_000]
    for name, id in ids.items():
        wait_until(lambda id=id: output(beside, id).endswith("\n"), f"{name} has begun", 60)
        indices = [str(gpu["index"]) for gpu in places[name]["gpus"]]
        assert output(beside, id).split() == [",".join(indices)]
        beside.cli("cancel", id)
        assert ended(beside, id)["state"] == "cancelled"
    wait_until(
        lambda: not any(gpu["tenants"] for n in nodes(beside).values() for gpu in n["gpus"]), "free", 30
    )


def test_mps_of_the_site_is_a_share(beside: System) -> None:
    """Slurm tells the job how much of the GPU it has."""
    say = "echo $CUDA_MPS_ACTIVE_THREAD_PERCENTAGE; exec sleep 600"
    id = beside.submit("mps", say, backend="slurm", resources={"gpu_fraction": 0.5, "sharing": "mps"})

    def placed() -> Any:
        lease = job(beside, id)["lease"]
        return lease and lease["places"]

    (place,) = wait_until(placed, "it is placed", 60)
    assert [gpu["share"] for gpu in place["gpus"]] == [5000]
    wait_until(lambda: output(beside, id) == "50\n", "it has begun", 60)
    beside.cli("cancel", id)
    assert ended(beside, id)["state"] == "cancelled"


def test_an_array_and_its_codes(beside: System) -> None:
    """Case slurm-03: each element is a job of its own."""
    resources = {"gpus": 0, "cpus": 1}
    spec = {"name": "sweep", "entrypoint": "exit $RAYSCHED_ARRAY_INDEX", "working_dir": None, "array": 6}
    jobs = beside.client().submit([{**spec, "backend": "slurm", "resources": resources}], [None])
    assert [ended(beside, one["id"])["exit_code"] for one in jobs] == [0, 1, 2, 3, 4, 5]


def test_slurms_own_reason_is_told(site: SlurmSite, beside: System) -> None:
    """And the node that is drained, with the administrator's words; a job that waits is cancelled."""
    site.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=fans broken")
    try:
        id = beside.submit("waits", "true", backend="slurm", resources={"gpus": 4})
        why = r"waits in Slurm as job \d+: nodes that it needs are down, drained or reserved"
        wait_until(lambda: re.match(why, beside.json("explain", id)["why"]), "the reason is told", 60)
        [handed] = [row for row in beside.json("queue")["waiting"] if row["id"] == id]
        assert handed["position"] is None
        assert re.match(why, handed["why"])
        wait_until(lambda: nodes(beside)["n2"]["closed"] == "drained: fans broken", "it is shown", 60)
        beside.cli("cancel", id)
        assert ended(beside, id)["exit_code"] == 143
        wait_until(
            lambda: not any(id in line and "PENDING" in line for line in site.jobs()), "it is gone", 30
        )
    finally:
        site.run("scontrol", "update", "NodeName=n2", "State=RESUME")


def test_a_plan_shows_what_would_be_sent(site: SlurmSite, beside: System) -> None:
    """It is what a shell could run: Slurm takes it, and gets an array as one."""
    spec = {"name": 'it\'s "x" $HOME', "entrypoint": "true", "working_dir": None, "backend": "slurm"}
    asked = {**spec, "array": 3, "max_runtime": "2h", "resources": {"gpus": 2}}
    before = site.jobs()
    plans = beside.client().plan([asked], script=True)
    assert site.jobs() == before
    assert [plan["script"] is not None for plan in plans] == [True, False, False]
    assert "id" not in plans[0], "an id of a plan is nothing to come back to"
    site.run("sh", "-c", plans[0]["script"].replace("sbatch ", "sbatch --hold ", 1))
    (line,) = [line for line in site.jobs("%i %K %l %b %k") if "it's" in line]
    id, tasks, limit, gres, comment = line.split(" ", 4)
    assert (tasks, limit, gres) == ("0-2", "2:00:00", "gres:gpu:a100:2")
    assert comment.partition(" ")[2].rstrip() == spec["name"]
    site.run("scancel", id.partition("_")[0])


def test_a_node_of_the_site_is_drained_in_slurm(site: SlurmSite, beside: System) -> None:
    """With who did it as the reason, and used again; what runs there goes on."""
    said = beside.cli("node", "cordon", "n3").stdout
    try:
        assert said == "n3 is cordoned: nobody is on its GPUs\n"
        by = f"raysched: drained by {getpass.getuser()}"
        assert nodes(beside)["n3"]["closed"] == f"drained: {by}"
        assert by in site.run("scontrol", "show", "node", "n3")
        beside.cli("node", "drain", "n3")
    finally:
        beside.cli("node", "uncordon", "n3")
    # Slurm calls it silent until it has heard of it again.
    wait_until(lambda: nodes(beside)["n3"]["closed"] == "", "it is used again", 60)
    beside.cli("node", "uncordon", "n3")
    assert "DRAIN" not in site.run("scontrol", "show", "node", "n3")


def test_doctor_says_whether_slurm_answers(beside: System) -> None:
    def look() -> dict[str, Any]:
        (check,) = [one for one in beside.json("doctor", check=False)["checks"] if one["name"] == "Slurm"]
        return check

    assert look() == {"name": "Slurm", "ok": True, "detail": "answers; 3 nodes", "hint": ""}
    there = beside.env["SLURM_CONF"]
    beside.env["SLURM_CONF"] = "/nowhere/slurm.conf"
    try:
        assert look()["ok"] is False
        assert look()["detail"].startswith("sinfo: ")
    finally:
        beside.env["SLURM_CONF"] = there


def test_what_the_site_can_never_give_is_refused_before(site: SlurmSite, beside: System) -> None:
    """Case slurm-02: nothing waits for ever."""
    before = site.jobs()
    spec = {"name": "a", "entrypoint": "true", "working_dir": None, "backend": "slurm"}
    for resources, reason in (
        ({"gpus": 2, "gpu_fraction": 0.75}, "a site gives parts of one GPU a job"),
        ({"gpu_fraction": 0.25, "isolation": "hard"}, "a site's shards do not hold memory"),
        ({"mig_profile": "2g.20gb"}, "the site has 1g.10gb and 3g.40gb"),
    ):
        (planned,) = beside.client().plan([{**spec, "resources": resources}])
        assert planned["outcome"] == "refused"
        assert reason in planned["why"]
    assert site.jobs() == before


def test_nodes_of_the_site_join_ray_for_a_time(beside: System) -> None:
    """Decorated calls run in the allocation; a GPU that Slurm gave and Ray has is one GPU; a cancel ends it
    all, and nothing is left."""
    before = beside.json("status")["system"]["gpus"]["total"]
    (one,) = beside.json("lease", "--gpus", "2", "--nodes", "2", "--memory", "2GiB", "--for", "1h")["jobs"]
    id = one["id"]
    lent = [f"{node}-{id}.1" for node in ("n1", "n2")]
    wait_until(lambda: set(lent) <= nodes(beside).keys(), "its nodes are in Ray", RAY_S)
    assert [len(nodes(beside)[name]["gpus"]) for name in lent] == [1, 1]
    assert beside.json("status")["system"]["gpus"]["total"] == before
    assert beside.json("explain", id)["why"] == f"runs on n1, n2, which Ray has as {' and '.join(lent)}"
    ran = beside.python("-c", CALL).stdout.split()
    assert ran in [[name.partition("-")[0], nodes(beside)[name]["gpus"][0]["uuid"]] for name in lent]
    beside.cli("cancel", id)
    assert ended(beside, id)["state"] == "cancelled"
    wait_until(lambda: not set(lent) & nodes(beside).keys(), "its nodes are gone", RAY_S)
    assert not beside.processes("rs-ray-")
    assert beside.cli("logs", id).returncode == 0


def test_a_cancel_leaves_time_to_save(beside: System) -> None:
    """The command is told, and ends with its own code before its grace is over."""
    save = "trap 'echo saved; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    slow = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    ids = {
        name: beside.submit(name, command, backend="slurm", resources={"gpus": 0}, slurm={"grace": grace})
        for name, command, grace in (("saves", save, "5m"), ("slow", slow, "1s"))
    }
    for name, id in ids.items():
        wait_until(lambda id=id: output(beside, id) == "ready\n", f"{name} has begun", 60)
        beside.cli("cancel", id)
    ends = {name: ended(beside, id) for name, id in ids.items()}
    assert {name: (end["state"], end["exit_code"]) for name, end in ends.items()} == {
        "saves": ("cancelled", 7),
        "slow": ("cancelled", 137),
    }
    assert output(beside, ids["saves"]).endswith("saved\n")  # its shell may say that `sleep` was terminated


def test_the_signal_that_was_asked_for_reaches_the_command(site: SlurmSite, beside: System) -> None:
    """Slurm is asked to send it before the limit, and what it sends to the script comes to the command."""
    warned = "trap 'echo warned; exit 9' USR1; echo ready; while :; do sleep 0.05; done"
    spec = {"resources": {"gpus": 0}, "max_runtime": "10m", "slurm": {"signal": "USR1@120"}}
    id = beside.submit("warned", warned, backend="slurm", **spec)
    (planned,) = beside.client().plan(
        [{"name": "x", "entrypoint": "true", "working_dir": None, "backend": "slurm", **spec}], script=True
    )
    assert "--signal=B:USR1@120" in planned["script"]
    wait_until(lambda: output(beside, id) == "ready\n", "it has begun", 60)
    (line,) = [line for line in site.jobs() if f"-{id}.1.0" in line]
    site.run("scancel", "--batch", "--signal=USR1", line.split()[0])
    end = ended(beside, id)
    assert (end["state"], end["exit_code"]) == ("failed", 9)
    assert output(beside, id).endswith("warned\n")


def test_a_job_that_slurm_takes_away_starts_again_as_its_next_attempt(beside: System) -> None:
    """It waits again with Slurm's reason, uses up no retry, and knows how often it was started."""
    both = {"gpus": 4, "gpu_type": "a100"}
    say = 'echo "attempt $RAYSCHED_ATTEMPT"; exec sleep 600'
    low = beside.submit("low", say, backend="slurm", resources=both, slurm={"partition": "low"})
    wait_until(lambda: "attempt 1" in output(beside, low), "it has begun", 60)
    high = beside.submit("high", "true", backend="slurm", resources=both, slurm={"partition": "main"})
    assert ended(beside, high)["state"] == "succeeded"
    wait_until(lambda: job(beside, low)["attempt"] == 2, "it was granted again", 60)
    wait_until(lambda: "attempt 2" in output(beside, low), "it has begun again", 60)
    assert "attempt 1" in beside.cli("logs", low, "--attempt", "1").stdout
    beside.cli("cancel", low)
    assert ended(beside, low)["state"] == "cancelled"
