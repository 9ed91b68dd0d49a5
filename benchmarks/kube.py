"""How long many Jobs take on a cluster through raysched, beside the same Jobs made by hand, in one run.

    python benchmarks/kube.py                             # 1,000 Jobs on 500 nodes, each way
    python benchmarks/kube.py --jobs 100 --nodes 20 --json
    python benchmarks/kube.py --by-hand kubectl           # with one `kubectl apply` of all of them
    python benchmarks/kube.py --requests 500              # controllers that may ask the API server more often

The cluster is a real control plane (etcd, API server, controllers, scheduler) on this machine; its nodes and
pods are made up (KWOK), and each pod ends as soon as it runs. By hand: the same Jobs, applied with the same
client library over as many connections or with kubectl, watched until all are complete, with raysched ended
and its Jobs gone. Through raysched: one array, submitted to a gateway, until raysched says that all have
succeeded. Both are timed from the first request; ledger and cluster are compared. As Kubernetes is installed,
its controllers make 20 requests a second, which is what either way waits for. Needs `make kube-tools`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from kube_cluster import KubeCluster  # noqa: E402
from running import System, wait_until  # noqa: E402

from raysched.backends.kube.cluster import Access, Cluster  # noqa: E402
from raysched.backends.kube.objects import is_over  # noqa: E402
from raysched.backends.kube.watching import Watch  # noqa: E402

GPU = "nvidia.com/gpu"
HAND, OURS = "by-hand", "through-raysched"
LIMIT_S = 3600
ENDS = {"raysched.test/exit": "0"}


async def add_nodes(cluster: KubeCluster, count: int) -> None:
    """Nodes with two GPUs each."""
    room = {"cpu": "16", "memory": "64Gi", "pods": "100", GPU: "2"}
    status = {"capacity": room, "allocatable": room}
    client = Cluster(Access(str(cluster.kubeconfig)))

    async def add(number: int) -> None:
        metadata = {"name": f"n{number}", "annotations": {"kwok.x-k8s.io/node": "fake"}}
        await client.create(
            "/api/v1/nodes", {"kind": "Node", "apiVersion": "v1", "metadata": metadata, "status": status}
        )

    await asyncio.gather(*map(add, range(count)))
    await client.close()
    wait_until(lambda: all(map(is_ready, cluster.items("/api/v1/nodes"))), "all nodes are ready", 300)


def is_ready(node: Any) -> bool:
    """Whether pods can run on a node."""
    conditions = node["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def bare_job(made: Any, number: int) -> Any:
    """A Job as raysched made one, for the other namespace."""
    template = made["spec"]["template"]
    pod = {name: value for name, value in template["spec"].items() if name != "schedulerName"}
    spec = {name: made["spec"][name] for name in ("backoffLimit", "podFailurePolicy", "podReplacementPolicy")}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"job-{number}", "namespace": HAND},
        "spec": {**spec, "template": {"metadata": {"annotations": ENDS}, "spec": pod}},
    }


def over(cluster: KubeCluster, namespace: str) -> int:
    """How many Jobs of a namespace have ended well."""
    return sum(job["status"].get("succeeded", 0) for job in cluster.jobs(namespace))


async def by_library(cluster: KubeCluster, jobs: Sequence[Any]) -> None:
    """Apply Jobs over as many connections as raysched has."""
    client = Cluster(Access(str(cluster.kubeconfig), namespace=HAND))
    path = f"/apis/batch/v1/namespaces/{HAND}/jobs"
    await asyncio.gather(*(client.apply(f"{path}/{job['metadata']['name']}", job) for job in jobs))
    await client.close()


async def by_kubectl(cluster: KubeCluster, jobs: Sequence[Any]) -> None:
    """Apply Jobs as one does by hand: all in one file."""
    file = cluster.folder / "jobs.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(jobs)}))
    command = ("kubectl", "--kubeconfig", str(cluster.kubeconfig), "apply", "-f", str(file))
    applying = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    assert await applying.wait() == 0, "kubectl failed"


BY_HAND = {"library": by_library, "kubectl": by_kubectl}


async def by_hand(cluster: KubeCluster, how: str, made: Any, jobs: int) -> float:
    """Seconds until all Jobs are complete that are applied without raysched."""
    client = Cluster(Access(str(cluster.kubeconfig), namespace=HAND))
    path = f"/apis/batch/v1/namespaces/{HAND}/jobs"
    complete: set[str] = set()
    news = asyncio.Event()

    def note(job: Any) -> None:
        if is_over(job):
            complete.add(job["metadata"]["name"])

    watch = Watch(client, lambda: path, {}, news.set, note=note)
    await watch.ready()
    bare = [bare_job(made, number) for number in range(jobs)]
    began = time.perf_counter()
    applied = asyncio.create_task(BY_HAND[how](cluster, bare))
    applied.add_done_callback(lambda _: news.set())
    while len(complete) < jobs:
        news.clear()
        if applied.done():
            applied.result()
        await asyncio.wait_for(news.wait(), LIMIT_S)
    took = time.perf_counter() - began
    await applied
    await watch.close()
    await client.close()
    return took


async def clear(cluster: KubeCluster) -> None:
    """Take away what raysched made, so that both ways begin with the same."""
    client = Cluster(Access(str(cluster.kubeconfig), namespace=OURS))
    path = f"/apis/batch/v1/namespaces/{OURS}/jobs"
    jobs, _ = await client.list(path, {})
    await asyncio.gather(*(client.delete(f"{path}/{job['metadata']['name']}") for job in jobs))
    await client.close()
    wait_until(lambda: not cluster.jobs(OURS) and not cluster.pods(OURS), "the Jobs are gone", 600)


def through_raysched(system: System, jobs: int) -> float:
    """Seconds until raysched knows that all of an array have ended."""
    client = system.client()
    began = time.perf_counter()
    array = {"array": jobs} if jobs > 1 else {}
    spec = {
        "name": "many",
        "entrypoint": ["true"],
        "working_dir": None,
        "backend": "k8s",
        "resources": {"gpus": 1, "cpus": 1},
        "k8s": {"annotations": ENDS},
        **array,
    }
    client.submit([spec], [None])
    wait_until(lambda: client.status()["jobs"].get("succeeded", 0) == jobs, "all have succeeded", LIMIT_S)
    return time.perf_counter() - began


def disagreements(cluster: KubeCluster, system: System, jobs: int) -> list[str]:
    """What the ledger and the cluster tell differently, now that all has ended."""
    told = {job["id"]: job for job in system.client().jobs()}
    there = cluster.jobs(OURS)
    runs = [job["metadata"]["annotations"]["raysched.io/run"].rsplit(".", 2)[0] for job in there]
    found: list[str] = []
    if sorted(runs) != sorted(told):
        found.append(
            f"the ledger has {len(told)} jobs, the cluster {len(runs)}, {len(set(runs))} of them different"
        )
    found += [f"{id} has {job['attempt']} attempts" for id, job in told.items() if job["attempt"] != 1]
    if (done := over(cluster, OURS)) != jobs:
        found.append(f"{done} of {jobs} have ended well in the cluster")
    held = [gpu for node in system.client().gpus()["nodes"] for gpu in node["gpus"] if gpu["share_used"]]
    if held:
        found.append(f"the ledger counts {len(held)} GPUs as used")
    return found


def measure(jobs: int, nodes: int, how: str, requests: int | None) -> dict[str, Any]:
    """Both ways, one after the other on one cluster."""
    cluster = KubeCluster(requests=requests)
    system = System("1xA100-80GB")
    try:
        for namespace in (HAND, OURS):
            cluster.add_namespace(namespace)
        words = f"{{kubeconfig: {cluster.kubeconfig}, namespace: {OURS}, image: busybox}}"
        config = system.folder / "raysched.yaml"
        config.write_text(f"{config.read_text()}backends: {{k8s: {words}}}\n")
        system.env["RAY_worker_niceness"] = "0"  # as what it is compared with
        system.up()
        asyncio.run(add_nodes(cluster, nodes))
        wait_until(lambda: len(system.client().gpus()["nodes"]) > nodes, "the ledger knows all nodes", 300)
        through = through_raysched(system, jobs)
        differ = disagreements(cluster, system, jobs)
        print(f"through raysched: {through:.1f} s; {differ or 'ledger and cluster agree'}", file=sys.stderr)
        made = cluster.jobs(OURS)[0]
        system.close()
        asyncio.run(clear(cluster))
        hand = asyncio.run(by_hand(cluster, how, made, jobs))
        return {
            "jobs": jobs,
            "nodes": nodes,
            "by_hand": how,
            "seconds_through_raysched": round(through, 1),
            "seconds_by_hand": round(hand, 1),
            "ratio": round(through / hand, 2),
            "disagreements": differ,
            "load": os.getloadavg()[0],
        }
    finally:
        try:
            system.close()
        finally:
            cluster.close()


def main() -> None:
    """Print both times, and whether ledger and cluster agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--by-hand", choices=list(BY_HAND), default="library")
    parser.add_argument("--requests", type=int, help="a second, of controllers and scheduler each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.jobs, options.nodes, options.by_hand, options.requests)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{found['jobs']} Jobs on {found['nodes']} nodes, load {found['load']:.1f}")
        print(f"by {options.by_hand:<14} {found['seconds_by_hand']:8.1f} s")
        print(f"through raysched  {found['seconds_through_raysched']:8.1f} s, {found['ratio']} of it")
        print(f"ledger and cluster {'; '.join(found['disagreements']) or 'agree'}")
    sys.exit(bool(found["disagreements"]))


if __name__ == "__main__":
    main()
