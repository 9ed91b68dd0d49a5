"""A whole raysched with a real Kubernetes: a kubelet and containerd run the pods, real Rays among them, with
devices of a device plugin. No GPU is real. It takes minutes, for real Rays: `make torture` runs it.

Jobs run beside each other; each test looks at one of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from kube_cluster import KubeCluster
from kubelet import NODE, RealNode
from pod_image import IMAGE
from running import System, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SPACE = "team-a"
LONG = 600
GPU, MIG = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"
SLICED = {
    "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-SHARED",
    "nvidia.com/gpu.memory": "81920",
    "nvidia.com/gpu.count": "1",
    "nvidia.com/gpu.replicas": "4",
    "nvidia.com/gpu.sharing-strategy": "time-slicing",
}
DEVICES = {GPU: [f"GPU-a::{replica}" for replica in range(4)], MIG: ["MIG-a", "MIG-b"]}
DRIVER = """\
import os, sys, ray
ray.init(log_to_driver=False)

@ray.remote(num_gpus=1, num_cpus=0, scheduling_strategy="SPREAD")
def given():
    return os.environ["NVIDIA_VISIBLE_DEVICES"], os.environ["CUDA_VISIBLE_DEVICES"]

@ray.remote(num_gpus=1, num_cpus=0)
class Holder:
    def given(self):
        return ray.get_runtime_context().get_node_id(), os.environ["NVIDIA_VISIBLE_DEVICES"]

holders = [Holder.remote() for _ in range(int(ray.cluster_resources()["GPU"]))]
told = ray.get([holder.given.remote() for holder in holders])
print(len({node for node, _ in told}), "pods:", *sorted(devices for _, devices in told))
print("of each", os.environ.get("RAYSCHED_GPU_FRACTION"), flush=True)
sys.exit(int(sys.argv[1]))
"""
PATIENT = """\
import signal, sys, time
def end(*_):
    print("asked to end", flush=True)
    time.sleep(0.5)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("begun", flush=True)
while True:
    time.sleep(0.1)
"""
MEETING = """\
import os, socket, time
rank, where = os.environ["RANK"], (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if rank == "0":
    with socket.create_server(("", where[1])) as server:
        other, _ = server.accept()
        print("met", other.recv(99).decode(), flush=True)
else:
    while True:
        try:
            socket.create_connection(where).send(f"rank {rank} of {os.environ['WORLD_SIZE']}".encode())
            break
        except OSError as error:
            time.sleep(0.2)
    print("greeted", flush=True)
"""
COMMANDS = """\
name: fails
entrypoint: echo $GREETING from $NVIDIA_VISIBLE_DEVICES; echo wrong >&2; exit 7
env: {GREETING: hello $(HOME)}
resources: {gpu_fraction: 0.25, cpus: 0.1}
---
name: cancelled
entrypoint: python patient.py; echo never
resources: {gpus: 0, cpus: 0.1}
k8s: {grace: 60s}
---
name: hungry
entrypoint: [python, -c, "print('eats', flush=True); all = bytearray(2**30)"]
resources: {gpus: 0, memory: 100MiB, cpus: 0.1}
---
name: without image
image: registry.invalid/nothing:1
entrypoint: 'true'
resources: {gpus: 0, cpus: 0.1}
---
name: meets
entrypoint: python meeting.py
resources: {gpus: 0, nodes: 2, cpus: 0.1}
"""
# Few Rays at a time, and retries: a Ray gives up that could not start within half a minute.
PARTS = """\
name: ray fraction
entrypoint: python driver.py 0
resources: {gpu_fraction: 0.25, cpus: 0.1}
retries: 9
k8s: {ray: true}
"""
FAILS = """\
name: ray fails
entrypoint: python driver.py 7
resources: {gpu_fraction: 0.25, cpus: 0.1}
k8s: {ray: true}
"""
INSTANCES = """\
name: ray instances
entrypoint: python driver.py 0
resources: {mig_profile: 1g.10gb, gpus: 2, nodes: 2, cpus: 0.2}
retries: 9
k8s: {ray: true}
---
name: ray cancelled
entrypoint: [python, patient.py]
resources: {gpu_fraction: 0.25, cpus: 0.1}
retries: 9
k8s: {ray: true, grace: 60s}
"""


@pytest.fixture(scope="module")
def node() -> Iterator[RealNode]:
    """A real node, the only one of its control plane, which has KubeRay."""
    if not os.environ.get("RAYSCHED_KUBELET"):
        pytest.skip("takes minutes: set RAYSCHED_KUBELET=1, or python tests/torture.py --only kubelet")
    running = RealNode()
    try:
        cluster = KubeCluster(running.address)
        try:
            cluster.add_ray()
            cluster.add_namespace(SPACE)
            running.join(cluster, SLICED)
            running.offer(DEVICES)
            yield running
        finally:
            cluster.close()
    finally:
        running.close()


@pytest.fixture(scope="module")
def beside(node: RealNode, _ray: None) -> Iterator[System]:
    """A system with that cluster."""
    running = System("1xA100-80GB")
    access = f"{{kubeconfig: {node.cluster.kubeconfig}, namespace: {SPACE}, image: '{IMAGE}'}}"
    running.configure(f"backends: {{k8s: {access}}}")
    try:
        running.up()
        there = lambda: NODE in {found["name"] for found in running.json("gpus")["nodes"]}  # noqa: E731
        wait_until(there, "the cluster is there", LONG)
        yield running
    finally:
        running.close()


def submitted(system: System, jobs: str) -> dict[str, str]:
    """The ids of the jobs in a file, by their names, once it is submitted."""
    work = system.folder / "work"
    work.mkdir(exist_ok=True)
    for name, text in (("driver.py", DRIVER), ("patient.py", PATIENT), ("meeting.py", MEETING)):
        (work / name).write_text(text)
    file = work / "jobs.yaml"
    documents = jobs.split("---\n")
    file.write_text("---\n".join(f"{document}backend: k8s\nworking_dir: .\n" for document in documents))
    return {job["name"]: job["id"] for job in system.json("submit", str(file))["jobs"]}


@pytest.fixture(scope="module")
def parts(beside: System) -> dict[str, str]:
    """The Ray jobs with a part of a GPU, once they are submitted."""
    return submitted(beside, f"{PARTS}---\n{FAILS}")


@pytest.fixture(scope="module")
def commands(beside: System, parts: dict[str, str]) -> dict[str, str]:
    """The jobs without Ray, beside them."""
    return submitted(beside, COMMANDS)


@pytest.fixture(scope="module")
def instances(beside: System, parts: dict[str, str]) -> dict[str, str]:
    """The other Ray jobs, after the first ones."""
    for id in parts.values():
        ended(beside, id)
    return submitted(beside, INSTANCES)


def job(system: System, id: str) -> Any:
    (found,) = system.client().job(id)
    return found


def ended(system: System, id: str) -> tuple[str, int | None, str]:
    """State, exit code and reason of a job once it has ended."""
    found = wait_until(lambda: (one := job(system, id))["ended"] and one, f"{id} has ended", LONG)
    return found["state"], found["exit_code"], found["reason"]


def until_it_says(system: System, id: str, line: str) -> None:
    """Return when a job has written that."""
    wait_until(lambda: line in system.output(id), f"{id} says {line}", LONG)


def test_a_command_ends_with_its_code_and_all_it_wrote(beside: System, commands: dict[str, str]) -> None:
    """On the GPU whose replica the device plugin gave it; `$(HOME)` stays as it is written."""
    state, code, _ = ended(beside, commands["fails"])
    assert (state, code) == ("failed", 7)
    # The runtime reads the two streams apart, so that which one comes first is not known.
    assert sorted(beside.output(commands["fails"]).splitlines()) == ["hello $(HOME) from GPU-a", "wrong"]


def test_who_takes_more_memory_than_it_asked_for_is_told_so(beside: System, commands: dict[str, str]) -> None:
    state, code, reason = ended(beside, commands["hungry"])
    assert (state, code) == ("failed", 137)
    assert "ran out of memory (OOMKilled)" in reason
    assert beside.output(commands["hungry"]) == "eats\n"


def test_an_image_that_is_nowhere_is_told(beside: System, commands: dict[str, str]) -> None:
    id = commands["without image"]
    client = beside.client()
    wait_until(lambda: "can't be pulled" in client.explain(id)["why"], "it is told", LONG)
    assert "registry.invalid/nothing:1" in beside.cli("explain", id).stdout
    beside.cli("cancel", id)
    assert ended(beside, id)[0] == "cancelled"


def test_a_command_that_is_cancelled_may_finish(beside: System, commands: dict[str, str]) -> None:
    """The signal goes to the whole pod, not to its shell alone."""
    id = commands["cancelled"]
    until_it_says(beside, id, "begun\n")
    beside.cli("cancel", id)
    assert ended(beside, id)[0] == "cancelled"
    assert beside.output(id) == "begun\nasked to end\nsaved\n"


def test_the_pods_of_a_job_meet(beside: System, commands: dict[str, str]) -> None:
    assert ended(beside, commands["meets"])[:2] == ("succeeded", 0)
    lines = beside.output(commands["meets"]).splitlines()
    assert sorted(lines) == ["greeted", "met rank 1 of 2"]


def test_a_ray_job_has_a_part_of_a_gpu(beside: System, parts: dict[str, str]) -> None:
    assert ended(beside, parts["ray fraction"])[:2] == ("succeeded", 0)
    lines = beside.output(parts["ray fraction"]).splitlines()
    assert "1 pods: GPU-a" in lines
    assert "of each 0.25" in lines


def test_each_pod_of_a_ray_job_has_its_own_mig_instance(beside: System, instances: dict[str, str]) -> None:
    assert ended(beside, instances["ray instances"])[:2] == ("succeeded", 0)
    assert "2 pods: MIG-a MIG-b" in beside.output(instances["ray instances"]).splitlines()


def test_a_ray_job_ends_with_the_code_of_its_driver(beside: System, parts: dict[str, str]) -> None:
    state, code, reason = ended(beside, id := parts["ray fails"])
    while "the head of its Ray ended" in reason:  # before the driver did anything
        state, code, reason = ended(beside, id := submitted(beside, FAILS)["ray fails"])
    assert (state, code) == ("failed", 7)
    assert "1 pods: GPU-a" in beside.output(id).splitlines()


def test_a_ray_job_that_is_cancelled_may_finish(beside: System, instances: dict[str, str]) -> None:
    id = instances["ray cancelled"]
    until_it_says(beside, id, "begun\n")
    beside.cli("cancel", id)
    assert ended(beside, id)[0] == "cancelled"
    assert "saved" in beside.output(id).splitlines()


def test_nothing_of_the_jobs_is_left(
    node: RealNode, beside: System, commands: dict[str, str], instances: dict[str, str]
) -> None:
    """No pod that goes on, no Ray, and the ledger has all its GPUs again."""
    for id in (*commands.values(), *instances.values()):
        ended(beside, id)

    def left() -> list[str]:
        pods = [pod for pod in node.cluster.pods(SPACE) if pod["status"]["phase"] in ("Pending", "Running")]
        rays = node.cluster.items(f"/apis/ray.io/v1/namespaces/{SPACE}/rayclusters")
        return [thing["metadata"]["name"] for thing in (*pods, *rays)]

    wait_until(lambda: not left(), "nothing of them is left", LONG)

    def held() -> int:
        (real,) = [one for one in beside.json("gpus")["nodes"] if one["name"] == NODE]
        return sum(gpu["share_used"] for gpu in real["gpus"])

    wait_until(lambda: not held(), "all is free", LONG)
