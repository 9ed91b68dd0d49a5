"""A system whose vm backend reaches hosts over real sshds: two with simulated GPUs of their own, and one with
the real driver, on a fake NVML and a stand-in for the MPS program."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from engines import need
from fake_mps.install import install
from fake_nvml import fake_state
from fake_nvml.build import compile_fake
from programs import MEET
from running import System, raylets, wait_until
from ssh_hosts import HostWorld, world

GPU = f"GPU-3f2a0030-aaaa-bbbb-cccc-{os.getpid():012d}"
"""That of delta; of its own, as the pipe directories of all who run as this user lie in one folder."""
DELTA = (fake_state.DRIVER, "cuda 12080", *fake_state.gpu(0, GPU, "A30"), "pci 0 00:07.0 8.0")
POLICY = {"watchdog": {"sample": "1s", "over_memory": "end", "grace": "2s"}}
LASTS = "echo on $(hostname); exec sleep 600"
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def hosts() -> Iterator[HostWorld]:
    with world() as made:
        made.add("alpha", alone=True)
        made.add("beta", alone=True)
        made.add("omega")
        made.add("late", environment=_clock("-3d"))
        made.add("early", environment=_clock("+3d"))
        made.add("delta", alone=True, environment=_driver(made.folder / "driver"))
        yield made


def _clock(off: str) -> dict[str, str]:
    """What sets the clock off for all that is started over SSH."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    need(libraries, "apt-get install -y libfaketime")
    return {"LD_PRELOAD": str(libraries[0]), "FAKETIME": off, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def _driver(folder: Path) -> dict[str, str]:
    """What finds the fake NVML, and the MPS program, in `folder`."""
    for part in ("lib", "bin"):
        (folder / part).mkdir(parents=True)
    (folder / "nvml").write_text("\n".join(DELTA))
    path = f"{install(folder / 'bin')}:/usr/local/bin:/usr/bin:/bin"
    library = compile_fake(folder / "lib")
    return {"LD_LIBRARY_PATH": str(library), "FAKE_NVML_STATE": str(folder / "nvml"), "PATH": path}


@pytest.fixture(scope="module")
def system(_ray: None, hosts: HostWorld) -> Iterator[System]:
    """Its own machine has an L4, alpha two A100, beta an H100, delta an A30 and omega two T4."""
    running = System("1xL4")
    running.env["HOME"] = str(hosts.home)
    running.env.pop("SSH_AUTH_SOCK", None)
    running.env["RAY_raylet_start_wait_time_s"] = "120"  # a busy machine
    gpus = {"alpha": "2xA100-80GB", "beta": "1xH100-80GB", "delta": None, "omega": "2xT4"}
    gpus |= {"late": "1xV100-32GB", "early": "1xL40S"}
    inventory = [_entry(hosts, name, simulate) for name, simulate in gpus.items()]
    config = {"gateway": {"port": running.port}, "backends": {"vm": {"hosts": inventory}}, "policy": POLICY}
    (running.folder / "raysched.yaml").write_text(json.dumps(config))
    try:
        running.up()
        yield running
    finally:
        running.close()


def _entry(hosts: HostWorld, name: str, gpus: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "address": hosts.hosts[name].address,
        "user": "user",
        "python": "/usr/bin/python3",
        "folder": str(hosts.folder / name / "raysched"),
        "simulate": gpus,
        "cpus": 16,
    }


def _nodes(system: System) -> dict[str, dict[str, Any]]:
    return {node["name"]: node for node in system.client().gpus()["nodes"]}


def _free(system: System, node: str) -> bool:
    found = _nodes(system)[node]
    return found["alive"] and not any(gpu["tenants"] for gpu in found["gpus"])


def test_hosts_are_nodes(system: System) -> None:
    ready = dict.fromkeys(("alpha", "beta", "delta", "omega", "late", "early"), "ready")
    wait_until(lambda: {host["name"]: host["state"] for host in system.client().hosts()} == ready, "ready")
    nodes = _nodes(system)
    assert [gpu["model"] for gpu in nodes["alpha"]["gpus"]] == ["A100-80GB", "A100-80GB"]
    assert nodes["beta"]["backends"] == ["vm"]
    assert nodes["beta"]["simulated"]
    assert not nodes["delta"]["simulated"]


def test_a_job_that_names_no_backend_runs_on_the_host_that_has_its_gpu(
    system: System, submit: Callable[..., str]
) -> None:
    job = submit('echo "$(hostname) $CUDA_VISIBLE_DEVICES $RAYSCHED_GPU_MEMORY_MIB"; exit 3', "H100")
    ended = system.ended(job)
    assert ended["exit_code"] == 3
    (place,) = ended["lease"]["places"]
    assert system.output(job) == f"beta {place['gpus'][0]['uuid']} 81559\n"


def test_shares_of_one_gpu_on_a_host(system: System, submit: Callable[..., str]) -> None:
    both = [submit(LASTS, "H100", resources={"gpu_fraction": 0.5}) for _ in range(2)]
    for job in both:
        system.until(job, "running")
    third = submit("true", "H100", resources={"gpu_fraction": 0.5})
    assert system.client().job(third)[0]["state"] == "waiting"
    system.client().cancel(both[0])
    assert system.ended(third)["exit_code"] == 0


def test_a_gpu_of_a_host_is_cut_for_a_lease(system: System, submit: Callable[..., str]) -> None:
    job = submit('echo "$CUDA_VISIBLE_DEVICES"', resources={"gpus": 1, "mig_profile": "1g.10gb"})
    ended = system.ended(job)
    (gpu,) = ended["lease"]["places"][0]["gpus"]
    assert ended["lease"]["places"][0]["node"] in ("alpha", "beta")
    assert system.output(job) == f"{gpu['instance']}\n"
    assert gpu["instance"].startswith("MIG-")


def test_what_a_job_leaves_on_a_host_is_gone_before_its_gpu_is_free(
    system: System, hosts: HostWorld, submit: Callable[..., str]
) -> None:
    """Case ray-03: a child in a session of its own, which ignores SIGTERM, under a runner that is killed."""
    job = submit("setsid sh -c 'trap \"\" TERM; sleep 600; sleep 600' & echo $!; wait", "H100", retries=0)
    wait_until(lambda: system.output(job), "it has written")
    hosts.hosts["beta"].kill("runner.py")
    assert "runner was killed" in system.ended(job)["reason"]
    wait_until(lambda: _free(system, "beta"), "the GPU is free")
    assert not hosts.hosts["beta"].processes("sleep 600")


def test_a_cancelled_job_is_gone(system: System, hosts: HostWorld, submit: Callable[..., str]) -> None:
    job = submit(LASTS, "H100")
    system.until(job, "running")
    system.client().cancel(job)
    assert system.ended(job)["state"] == "cancelled"
    wait_until(lambda: _free(system, "beta"), "the GPU is free")
    assert not hosts.hosts["beta"].processes("sleep 600")


def test_no_key_is_written_down(system: System, hosts: HostWorld, submit: Callable[..., str]) -> None:
    """Neither in the journal nor in any log of raysched or Ray, also where a host does not let us in."""
    address = hosts.add("closed").address
    key = ["--key", str(hosts.key), "--user", "nobody", "--address", address]
    assert "let us in" in system.cli("vm", "add", "closed", *key, check=False).stdout
    system.cli("vm", "remove", "closed")
    secret = hosts.key.read_bytes().splitlines()[2]
    files = [path for path in system.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.name == "journal.sqlite" for path in files)
    assert [path for path in files if secret in path.read_bytes()] == []


def test_killed_actors_find_the_job_again(system: System, tmp_path: Path, submit: Callable[..., str]) -> None:
    work = 'echo started >> "$MARK"; until [ -e "$MARK.go" ]; do sleep 0.1; done; cat "$MARK"; exit 5'
    mark = tmp_path / "mark"
    job = submit(work, "A100", env={"MARK": str(mark)})
    system.until(job, "running")
    assert system.kill("ray::Ledger")
    assert system.kill("ray::BackendActor")
    assert system.ended(submit("true", "H100"))["exit_code"] == 0
    Path(f"{mark}.go").touch()
    assert system.ended(job)["exit_code"] == 5
    assert system.output(job) == "started\n"


def test_a_host_that_loses_its_power_loses_its_job_which_is_tried_again(
    system: System, hosts: HostWorld, submit: Callable[..., str]
) -> None:
    job = submit(LASTS, "H100", retries=1)
    wait_until(lambda: system.output(job), "it runs")
    hosts.hosts["beta"].power_off()
    wait_until(lambda: {h["name"]: h["state"] for h in system.client().hosts()}["beta"] == "out", "it is out")
    hosts.hosts["beta"].start()
    wait_until(lambda: system.client().job(job)[0]["attempt"] == 2, "it is tried again")
    system.until(job, "running")


GANG = {"gpus": 2, "nodes": 2, "gpu_type": ["A100", "H100"]}


def test_the_ranks_of_a_gang_meet_over_the_network(
    system: System, hosts: HostWorld, submit: Callable[..., str]
) -> None:
    job = submit(["python3", "-c", MEET], resources=GANG)
    ended = system.ended(job)
    assert {rank["node"] for rank in ended["ranks"]} == {"alpha", "beta"}
    lines = system.cli("logs", job).stdout.splitlines()
    assert [line.split(" at ")[0] for line in lines] == ["rank 0 | met [0, 1]", "rank 1 | met [0, 1]"], ended


def test_a_host_that_loses_its_power_ends_the_whole_gang_which_is_tried_again(
    system: System, hosts: HostWorld, submit: Callable[..., str]
) -> None:
    job = submit("exec sleep 4711", resources=GANG, retries=1)
    alpha, beta = hosts.hosts["alpha"], hosts.hosts["beta"]
    wait_until(lambda: alpha.processes("sleep 4711") and beta.processes("sleep 4711"), "both ranks run")
    first = alpha.processes("sleep 4711")
    beta.power_off()
    beta.start()
    wait_until(lambda: system.client().job(job)[0]["attempt"] == 2, "it is tried again")
    wait_until(lambda: alpha.processes("sleep 4711") and beta.processes("sleep 4711"), "both ranks run again")
    assert len(alpha.processes("sleep 4711")) == len(beta.processes("sleep 4711")) == 1
    assert alpha.processes("sleep 4711") != first


def test_hosts_are_listed_checked_added_and_removed(system: System, hosts: HostWorld) -> None:
    """Case vm-01: one host that answers with another key is out, and nobody else is."""
    hosts.add("gamma", known=False)
    given = [
        "--address",
        hosts.hosts["gamma"].address,
        "--user",
        "user",
        "--simulate",
        "1xA30",
        "--cpus",
        "2",
    ]
    folder = ["--folder", str(hosts.folder / "gamma" / "raysched")]
    refused = system.cli("vm", "add", "gamma", *given, *folder, check=False)
    assert refused.returncode == 1
    assert "the host key of gamma is not known" in refused.stdout
    (found,) = [one for one in system.json("doctor", check=False)["checks"] if one["name"] == "hosts"]
    assert (found["ok"], "gamma" in found["detail"]) == (False, True)
    states = {host["name"]: host["state"] for host in system.json("vm", "list")["hosts"]}
    assert states["alpha"] == "ready"
    checks = system.json("vm", "check", "gamma", "--accept-new")["checks"]
    assert checks == [{"name": "gamma", "ok": True, "reason": ""}]
    wait_until(lambda: "gamma" in {n["name"] for n in system.client().gpus()["nodes"]}, "it is a node")
    assert "1 x A30" in system.cli("vm", "list").stdout
    assert "gamma is cordoned" in system.cli("node", "cordon", "gamma").stdout
    assert system.cli("vm", "remove", "gamma").stdout == "gamma is removed\n"
    assert "gamma" not in {node["name"] for node in system.client().gpus()["nodes"]}
    said = system.cli("vm", "remove", "alpha", check=False)
    assert (said.returncode, "alpha is in the configuration" in said.stderr) == (82, True)


@pytest.mark.parametrize(("host", "gpu"), [("late", "V100"), ("early", "L40S")])
def test_a_host_whose_clock_is_three_days_off_tells_times_that_can_be(
    system: System, submit: Callable[..., str], host: str, gpu: str
) -> None:
    job = submit("date +%s; sleep 1; exit 3", gpu)
    ended = system.ended(job)
    assert (ended["exit_code"], ended["lease"]["places"][0]["node"]) == (3, host)
    now = datetime.now(timezone.utc) + timedelta(seconds=1)  # the ledger's clock follows this one
    assert abs(int(system.output(job)) - now.timestamp()) > 2 * 86_400
    times = [datetime.fromisoformat(ended[name]) for name in ("submitted", "started", "ended")]
    assert [*times, now] == sorted([*times, now])
    # By a clock that is ahead it began when that was told, a moment later.
    assert (1 if host == "late" else 0) <= ended["run_s"] < 3600


def test_a_cut_link_does_not_lose_a_job(system: System, hosts: HostWorld, submit: Callable[..., str]) -> None:
    job = submit("sleep 3; echo done; exit 4", "H100")
    system.until(job, "running")
    hosts.hosts["beta"].cut()
    wait_until(lambda: {h["name"]: h["state"] for h in system.client().hosts()}["beta"] == "out", "it is out")
    other = submit("hostname", "A100")
    assert system.ended(other)["exit_code"] == 0  # nobody waits for the host that does not answer
    hosts.hosts["beta"].heal()
    ended = system.ended(job)
    assert (ended["exit_code"], ended["attempt"]) == (4, 1)
    assert system.output(job) == "done\n"


# ------------------------------------------------------------ a machine that Ray reaches too


@pytest.fixture
def in_ray(system: System) -> Iterator[Callable[[], set[int]]]:
    """Has omega join Ray as well; the processes of that."""
    added: set[int] = set()

    def join() -> set[int]:
        address = json.loads((system.home / "up.json").read_text())["ray"]
        before = raylets(system)
        labels = "raysched.io/node=omega,raysched.io/simulate=2xT4"
        try:
            system.ray("start", "--address", address, "--num-gpus=2", "--num-cpus=4", "--labels", labels)
        finally:
            added.update(raylets(system) - before)
        return added

    yield join
    for pid in added:
        with suppress(ProcessLookupError):
            system.kill_process(pid)


def test_a_gpu_that_ray_and_ssh_reach_is_one_gpu_and_both_share_it(
    system: System, hosts: HostWorld, submit: Callable[..., str], in_ray: Callable[[], set[int]]
) -> None:
    """A real node of Ray and a real sshd. A job that ran by SSH before Ray came goes on."""
    half = {"gpu_fraction": 0.5}
    before = submit("hostname; exec sleep 4713", "T4", resources=half)
    system.until(before, "running")
    pids = in_ray()
    wait_until(lambda: _nodes(system)["omega"]["backends"] == ["ray", "vm"], "both ways lead to it")
    assert len(_nodes(system)["omega"]["gpus"]) == 2
    (shown,) = [host for host in system.client().hosts() if host["name"] == "omega"]
    assert (shown["state"], shown["node"], len(shown["gpus"])) == ("ready", "omega", 2)

    told = 'echo "$(hostname) $CUDA_VISIBLE_DEVICES"; exec sleep 4713'
    by_ray = submit(told, "T4", resources=half, backend="ray")
    by_ssh = submit(told, "T4", resources=half)
    last = submit(told, "T4", resources=half, backend="ray")
    lines = {
        job: wait_until(lambda job=job: system.output(job), f"{job} runs") for job in (by_ray, by_ssh, last)
    }
    here = os.uname().nodename
    assert [lines[job].split()[0] for job in (by_ray, by_ssh, last)] == [here, "omega", here]
    assert sorted(len(gpu["tenants"]) for gpu in _nodes(system)["omega"]["gpus"]) == [2, 2]
    assert system.client().job(before)[0]["state"] == "running"
    waits = submit("true", "T4", resources=half)
    assert system.client().job(waits)[0]["state"] == "waiting"
    system.client().cancel(by_ssh)
    assert system.ended(waits)["exit_code"] == 0
    for job in (before, by_ray, last):
        system.client().cancel(job)
    wait_until(lambda: _free(system, "omega"), "the GPUs are free")
    assert not hosts.hosts["omega"].processes("sleep 4713")

    for pid in pids:
        system.kill_process(pid)
    wait_until(lambda: _nodes(system)["omega"]["backends"] == ["vm"], "it is a host again")
    assert system.ended(submit("true", "T4"))["exit_code"] == 0


# ------------------------------------------------------------ the driver of a host


class Delta:
    """The host with the fake NVML."""

    def __init__(self, system: System, hosts: HostWorld) -> None:
        self.system = system
        self.state = hosts.folder / "driver" / "nvml"

    def change(self, *more: str) -> None:
        """Let these lines be true as well, and no others."""
        aside = self.state.with_suffix(".new")
        aside.write_text("\n".join([*DELTA, *more]))
        aside.replace(self.state)

    def gpu(self) -> dict[str, Any]:
        return _nodes(self.system)["delta"]["gpus"][0]

    def tenant(self) -> dict[str, Any]:
        """The only tenant; empty if there is none."""
        return next(iter(self.gpu()["tenants"]), {})


@pytest.fixture
def delta(system: System, hosts: HostWorld) -> Iterator[Delta]:
    delta = Delta(system, hosts)
    wait_until(lambda: not delta.tenant(), "the GPU is free")
    yield delta
    delta.change()


def test_what_a_tenant_uses_on_a_host_is_measured_and_the_watchdog_ends_one_that_takes_more(
    system: System, delta: Delta, submit: Callable[..., str]
) -> None:
    job = submit("echo $$; exec sleep 600", "A30", resources={"gpu_fraction": 0.25})
    pid = wait_until(lambda: system.output(job).strip(), "it tells its process id, as it is on the host")
    use = ("busy 0 60", f"active 0 {pid} 40", "watts 0 150")
    delta.change(*use, f"process 0 {pid} 5000 compute", "process 0 1 300 compute")
    wait_until(lambda: delta.tenant().get("memory_used_mib") == 5000, "it is measured")
    gpu = wait_until(lambda: delta.gpu() if delta.tenant()["busy"] else None, "and how busy it is")
    assert (gpu["busy"], gpu["power_w"], gpu["foreign_mib"]) == (6000, 150, 300)
    assert [(each["pid"], each["memory_mib"]) for each in gpu["strangers"]] == [(1, 300)]
    delta.change(*use, f"process 0 {pid} 7000 compute")
    ended = system.ended(job)
    assert (ended["state"], "used 7000 MiB of" in ended["reason"]) == ("failed", True), ended["reason"]
    delta.change()
    wait_until(lambda: not delta.tenant(), "the GPU is free")
    (row,) = [row for row in system.json("usage", "--by", "gpu")["rows"] if row["name"].endswith(GPU)]
    assert row["memory_peak_mib"] == 7000


def test_tenants_under_mps_share_a_daemon_on_the_host(
    system: System, hosts: HostWorld, delta: Delta, submit: Callable[..., str]
) -> None:
    """Nobody says MPS: it is what holds them where no instance is to be had."""
    held = {"gpu_fraction": 0.5, "isolation": "hard", "use_mig": False}
    jobs = [submit("env | grep ^CUDA_MPS | sort; exec sleep 600", "A30", resources=held) for _ in range(2)]
    for job in jobs:
        system.until(job, "running")
    assert {tenant["mechanism"] for tenant in delta.gpu()["tenants"]} == {"mps"}
    output = wait_until(lambda: system.output(jobs[0]) if "PIPE" in system.output(jobs[0]) else "", "env")
    told = dict(line.split("=", 1) for line in output.splitlines())
    assert told["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == f"{GPU}=12288M"
    assert told["CUDA_MPS_PIPE_DIRECTORY"].endswith(GPU)
    there = hosts.hosts["delta"].processes
    wait_until(lambda: there("fake_mps/control.py", "-d"), "it is seen there")
    for job in jobs:
        system.client().cancel(job)
    wait_until(lambda: not there("fake_mps/control.py"), "it ends with the last")
    assert system.ended(submit("true", "A30"))["exit_code"] == 0


def test_a_gpu_of_a_host_is_cut_at_somebodys_word(
    system: System, delta: Delta, submit: Callable[..., str]
) -> None:
    plan = system.cli("mig", "set", "delta/0", "2g.12gb,1g.6gb,1g.6gb", "--plan").stdout
    assert plan.count("create") == 3
    done = system.json("mig", "set", "delta/0", "2g.12gb,1g.6gb,1g.6gb")
    assert done["mode"] == "on"
    wait_until(lambda: not delta.tenant(), "the GPU is free")
    job = submit("echo $CUDA_VISIBLE_DEVICES", "A30", resources={"mig_profile": "2g.12gb"})
    ended = system.ended(job)
    (given,) = ended["lease"]["places"][0]["gpus"]
    assert system.output(job) == f"{given['instance']}\n"
    wait_until(lambda: not delta.tenant(), "the GPU is free")
    shown = system.cli("mig").stdout
    assert "2g.12gb at" in shown
    system.cli("mig", "set", "delta/0", "off")
    wait_until(lambda: not delta.gpu()["tenants"], "the GPU is free")
