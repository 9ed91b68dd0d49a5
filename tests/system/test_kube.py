"""A whole raysched with a real Kubernetes control plane: from the job file to Kubernetes' reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import plugin_play
import pytest
import yaml
from kube_cluster import KubeCluster
from running import System, wait_until

from raysched.testing import RayDashboard

pytestmark = pytest.mark.ray

GPU = "nvidia.com/gpu"
A100 = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB", "nvidia.com/gpu.memory": "81920"}
SPACE = "team-a"


@pytest.fixture(scope="module")
def cluster() -> Iterator[KubeCluster]:
    running = KubeCluster()
    try:
        running.add_namespace(SPACE)
        running.add_node("gpu-1", {GPU: "2"}, A100)
        running.add_node("cut-1", {GPU: "0", "nvidia.com/mig-1g.10gb": "7"}, A100)
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def beside(cluster: KubeCluster, _ray: None) -> Iterator[System]:
    """A system with that cluster: leave no job behind."""
    running = System("1xA100-80GB")
    config = running.folder / "raysched.yaml"
    words = f"{{kubeconfig: {cluster.kubeconfig}, namespace: {SPACE}, image: busybox}}"
    config.write_text(f"{config.read_text()}backends: {{k8s: {words}}}\n")
    try:
        running.up()
        wait_until(lambda: {"gpu-1", "cut-1"} <= set(nodes(running)), "the cluster is there", 60)
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


def pods(cluster: KubeCluster, id: str, phase: str = "Running", space: str = SPACE) -> list[Any]:
    return [
        pod
        for pod in cluster.pods(space)
        if pod["metadata"]["annotations"]["raysched.io/run"].startswith(f"{id}.")
        if pod["status"]["phase"] == phase
    ]


def pod(cluster: KubeCluster, id: str) -> Any:
    return wait_until(lambda: pods(cluster, id), f"{id} runs", 60)[0]


def test_jobs_run_where_kubernetes_puts_them(cluster: KubeCluster, beside: System) -> None:
    """The ledger counts what they got, while they run and not after."""
    wanted = {"whole": {"gpus": 2, "gpu_type": "A100"}, "slice": {"mig_profile": "1g.10gb"}}
    ids = {
        name: beside.submit(name, "sleep 600", backend="k8s", resources=what) for name, what in wanted.items()
    }
    limits = {
        name: pod(cluster, id)["spec"]["containers"][0]["resources"]["limits"] for name, id in ids.items()
    }
    assert limits == {"whole": {GPU: "2"}, "slice": {"nvidia.com/mig-1g.10gb": "1"}}

    def held() -> dict[str, int]:
        shown = nodes(beside)
        return {name: sum(gpu["share_used"] for gpu in shown[name]["gpus"]) for name in ("gpu-1", "cut-1")}

    wait_until(lambda: held() == {"gpu-1": 20_000, "cut-1": 10_000}, "what is held is counted", 60)
    cluster.end(pod(cluster, ids["whole"]), 3)
    whole = ended(beside, ids["whole"])
    assert (whole["state"], whole["exit_code"]) == ("failed", 3)
    beside.cli("cancel", ids["slice"])
    assert ended(beside, ids["slice"])["state"] == "cancelled"
    wait_until(lambda: held() == {"gpu-1": 0, "cut-1": 0}, "all is free", 60)


def test_a_taint_is_told_and_a_deleted_job_is_tried_again(cluster: KubeCluster, beside: System) -> None:
    """Cases kubernetes-01 and kubernetes-02."""
    taints = {"spec": {"taints": [{"key": "team", "value": "vision", "effect": "NoSchedule"}]}}
    cluster.patch("/api/v1/nodes/gpu-1", taints)
    id = beside.submit("taste", "true", backend="k8s", retries=1)
    wait_until(
        lambda: (
            "taints that it does not tolerate: team=vision:NoSchedule" in beside.json("explain", id)["why"]
        ),
        "it is told",
        60,
    )
    cluster.patch("/api/v1/nodes/gpu-1", {"spec": {"taints": []}})
    for attempt in (1, 2):
        name = pod(cluster, f"{id}.{attempt}")["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        wait_until(lambda: job(beside, id)["state"] == "running", "raysched knows that it runs", 60)
        path = f"/apis/batch/v1/namespaces/{SPACE}/jobs/{name}"
        cluster.call("DELETE", path, {"propagationPolicy": "Background"})
    last = ended(beside, id)
    assert last["state"] == "failed"
    assert "its Job was deleted in Kubernetes, not by raysched" in last["reason"]
    assert not pods(cluster, id)


def test_the_manifest_of_a_plan_is_taken_by_the_api_server(cluster: KubeCluster, beside: System) -> None:
    spec = {
        "name": "plan me",
        "entrypoint": "echo $HOME && true",
        "backend": "k8s",
        "resources": {"gpus": 1, "memory": "2GiB"},
        "k8s": {"tolerations": [{"key": "team"}], "pod": {"hostNetwork": True}},
    }
    file = beside.folder / "plan" / "plan.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(spec))
    (planned,) = beside.json("plan", "--script", str(file))["jobs"]
    (made,) = yaml.safe_load_all(planned["script"])
    assert made["metadata"]["namespace"] == SPACE
    path = f"/apis/batch/v1/namespaces/{SPACE}/jobs?dryRun=All&fieldValidation=Strict"
    taken = cluster.call("POST", path, made)["spec"]["template"]["spec"]
    assert taken["containers"][0]["resources"]["limits"] == {GPU: "1", "memory": "2Gi"}
    assert taken["hostNetwork"] is True


def test_what_shares_the_gpus_and_what_requests_become_is_shown(beside: System) -> None:
    shown = beside.json("k8s", "sharing")
    assert [group["nodes"] for group in shown["groups"]] == [["cut-1"], ["gpu-1"]]
    rows = {row["asks"]: row for row in shown["requests"]}
    assert rows["mig_profile: 1g.10gb"]["pod"].startswith("nvidia.com/mig-1g.10gb: 1")
    assert "no GPU of the cluster is shared: install HAMi" in rows["gpu_fraction: 0.25"]["refused"]
    assert "1 node: gpu-1" in beside.cli("k8s", "sharing").stdout


def test_what_the_cluster_can_never_give_is_refused_before(cluster: KubeCluster, beside: System) -> None:
    before = cluster.jobs(SPACE)
    spec = {"name": "a", "entrypoint": "true", "working_dir": None, "backend": "k8s"}
    for resources, reason in (
        ({"gpus": 3}, "the cluster has 2 such GPUs, 2 on one node at most"),
        ({"gpu_fraction": 0.5}, "no GPU of the cluster is shared"),
        ({"mig_profile": "2g.20gb"}, "the cluster has 1g.10gb"),
    ):
        (planned,) = beside.client().plan([{**spec, "resources": resources}])
        assert planned["outcome"] == "refused"
        assert reason in planned["why"]
    assert cluster.jobs(SPACE) == before


def test_a_share_is_asked_of_hami_and_counted_where_it_was_given(
    cluster: KubeCluster, beside: System
) -> None:
    """A test puts the pod where HAMi's scheduler would, and says of it what that would say."""
    gpus = [f"GPU-{index}" for index in range(2)]
    registered = "".join(f"{gpu},10,81920,100,NVIDIA-A100,0,true,0,hami-core:" for gpu in gpus)
    cluster.add_node("hami-1", {GPU: "20"})
    marks = {"metadata": {"annotations": {"hami.io/node-nvidia-register": registered}}}
    cluster.patch("/api/v1/nodes/hami-1", marks)
    try:
        wait_until(lambda: len(nodes(beside).get("hami-1", {}).get("gpus", ())) == 2, "it is seen", 60)
        part = {"gpu_fraction": 0.25, "isolation": "hard"}
        spec = {"entrypoint": "true", "working_dir": None, "backend": "k8s", "resources": part}
        (planned,) = beside.client().plan([spec])
        assert "0.25 of nvidia.com/gpu (NVIDIA-A100) by HAMi" in str(planned)
        id = beside.submit("part", "sleep 600", backend="k8s", resources=part)
        waiting = wait_until(lambda: pods(cluster, id, "Pending"), "its pod is there", 60)[0]
        limits = waiting["spec"]["containers"][0]["resources"]["limits"]
        assert (limits["nvidia.com/gpumem"], limits["nvidia.com/gpucores"]) == ("20480", "25")
        path = f"/api/v1/namespaces/{SPACE}/pods/{waiting['metadata']['name']}"
        given = {"hami.io/vgpu-devices-allocated": f"{gpus[1]},NVIDIA,20480,25:;"}
        cluster.patch(path, {"metadata": {"annotations": given}})
        target = {"apiVersion": "v1", "kind": "Node", "name": "hami-1"}
        binding = {"metadata": {"name": waiting["metadata"]["name"]}, "target": target}
        cluster.call("POST", f"{path}/binding", {"apiVersion": "v1", "kind": "Binding", **binding})

        def held() -> list[int]:
            return [gpu["share_used"] for gpu in nodes(beside)["hami-1"]["gpus"]]

        wait_until(lambda: held() == [0, 2_500], "what is held is counted", 60)
        cluster.end(pod(cluster, id), 0)
        assert ended(beside, id)["state"] == "succeeded"
        wait_until(lambda: held() == [0, 0], "all is free", 60)
    finally:
        cluster.delete_node("hami-1")


def test_a_drained_node_is_left_by_what_may_be_stopped_and_used_again(
    cluster: KubeCluster, beside: System
) -> None:
    """Case kubernetes-02: the job starts elsewhere, with no retry used."""
    for name in ("move-1", "move-2"):
        cluster.add_node(name, {GPU: "1"}, {**A100, "for": "moving"})
    here = {"node_selector": {"for": "moving"}}
    try:
        wait_until(lambda: {"move-1", "move-2"} <= set(nodes(beside)), "they are seen", 60)
        moves = beside.submit("moves", "sleep 600", backend="k8s", k8s=here, resources={"gpus": 1})
        first = pod(cluster, moves)["spec"]["nodeName"]
        there = {"node_selector": {"kubernetes.io/hostname": first}}
        fixed = beside.submit(
            "fixed", "sleep 600", backend="k8s", k8s=there, resources={"gpus": 0}, preemptible=False
        )
        pod(cluster, fixed)
        beside.until(fixed, "running")
        beside.until(moves, "running")
        planned = beside.json("node", "drain", first, "--plan")
        assert {one["job"]: bool(one["why"]) for one in planned["left"]} == {moves: False, fixed: True}
        assert not nodes(beside)[first]["closed"], "a plan closes nothing"
        drain = beside.begin("node", "drain", first, "--timeout", "10m")
        (second,) = {"move-1", "move-2"} - {first}
        wait_until(
            lambda: any(one["spec"]["nodeName"] == second for one in pods(cluster, moves)), "it moved", 60
        )
        assert (nodes(beside)[first]["closed"], drain.poll()) == ("cordoned", None)
        beside.cli("cancel", fixed)
        said, told = drain.communicate()
        assert (drain.returncode, said) == (0, f"{first} is drained: nobody is left\n")
        assert f"preemptible: false; `raysched cancel {fixed}` ends it" in told
        assert job(beside, moves)["attempt"] == 2
        assert beside.cli("node", "uncordon", first).stdout == f"{first} is used again\n"
        assert not nodes(beside)[first]["closed"]
        beside.cli("cancel", moves)
        ended(beside, moves)
    finally:
        for name in ("move-1", "move-2"):
            cluster.delete_node(name)


def test_a_node_is_labelled_and_one_that_somebody_cordons_is_shown(
    cluster: KubeCluster, beside: System
) -> None:
    labels = beside.json("node", "label", "gpu-1", "team=vision", "size=large")["labels"]
    assert (labels["team"], labels["size"]) == ("vision", "large")
    assert "size=" not in beside.cli("node", "label", "gpu-1", "size-", "team-").stdout
    done = beside.cli("node", "label", "gpu-1", "team", check=False)
    assert (done.returncode, "write KEY=VALUE" in done.stderr) == (65, True)
    local = next(name for name, node in nodes(beside).items() if "vm" in node["backends"])
    refused = beside.cli("node", "label", local, "team=vision", check=False)
    assert (refused.returncode, "only nodes of Kubernetes" in refused.stderr) == (80, True)
    try:
        cluster.patch("/api/v1/nodes/gpu-1", {"spec": {"unschedulable": True}})
        wait_until(lambda: nodes(beside)["gpu-1"]["closed"] == "cordoned", "it is mirrored", 60)
    finally:
        beside.cli("node", "uncordon", "gpu-1")
    assert not cluster.get("/api/v1/nodes/gpu-1")["spec"].get("unschedulable")


def test_the_gpus_of_a_node_are_shared_in_another_way(cluster: KubeCluster, beside: System) -> None:
    """Case kubernetes-04: then a part of one is to be had, and a job gets it. The plugin is played."""
    plugin_play.install(cluster)
    cluster.add_node("share-1", {GPU: "1"}, {**A100, "nvidia.com/gpu.count": "1"})
    asked = ("k8s", "sharing", "set", "share-1", "--mps", "4")
    try:
        wait_until(lambda: "share-1" in nodes(beside), "it is seen", 60)
        planned = beside.cli(*asked, "--plan").stdout
        assert "nvidia.com/gpu: 1 -> nvidia.com/gpu.shared: 4" in planned
        refused = beside.cli(*asked, check=False)
        assert (refused.returncode, "--yes does it" in refused.stderr) == (82, True)
        setting = beside.begin(*asked, "--yes")
        wait_until(lambda: plugin_play.is_told(cluster, "share-1"), "the plugin is told", 60)
        plugin_play.play(cluster, "share-1")
        said, told = setting.communicate()
        assert (setting.returncode, said) == (
            0,
            "share-1: 4 replicas each by mps, nvidia.com/gpu.shared: 4\n",
        ), told
        here = {"node_selector": {"kubernetes.io/hostname": "share-1"}}
        part = {"gpu_fraction": 0.25, "isolation": "hard"}
        id = beside.submit("part", "sleep 600", backend="k8s", k8s=here, resources=part)
        limits = pod(cluster, id)["spec"]["containers"][0]["resources"]["limits"]
        assert limits == {"nvidia.com/gpu.shared": "1"}
        beside.until(id, "running")
        busy = beside.cli("k8s", "sharing", "set", "share-1", "--whole", "--yes", check=False)
        assert (busy.returncode, "are in use by team-a/" in busy.stderr) == (80, True)
        beside.cli("cancel", id)
        ended(beside, id)
    finally:
        cluster.delete_node("share-1")


def test_a_lease_is_a_pod_to_work_in_until_its_time_is_over(cluster: KubeCluster, beside: System) -> None:
    """The command to get in is told, once there is something to get into."""
    leasing = beside.begin(
        *("lease", "--backend", "k8s", "--for", "1h", "--image", "debian:12", "--gpu-type", "A100"), "--json"
    )
    said, told = leasing.communicate()
    assert leasing.returncode == 0, told
    answer = json.loads(said)
    id = answer["jobs"][0]["id"]
    there = pod(cluster, id)
    name = there["metadata"]["name"]
    assert answer["enter"] == f"kubectl exec -it -n {SPACE} {name} -c main -- sh"
    (container,) = there["spec"]["containers"]
    assert (container["image"], container["command"]) == ("debian:12", ["sleep", "3600"])
    assert container["resources"]["limits"] == {GPU: "1"}
    assert there["spec"]["activeDeadlineSeconds"] == 3_660
    assert f"kubectl exec -it -n {SPACE} {name}" in " ".join(beside.cli("explain", id).stdout.split())
    cluster.end(there, 0)
    assert ended(beside, id)["state"] == "succeeded"
    assert beside.json("explain", id)["enter"] is None
    wrong = beside.cli("lease", "--for", "1h", "--ray", check=False)
    assert (wrong.returncode, "are for --backend k8s" in wrong.stderr) == (65, True)


@pytest.fixture(scope="module")
def dashboard(cluster: KubeCluster) -> Iterator[RayDashboard]:
    """What KubeRay, which the cluster has from here on, asks about Ray jobs."""
    running = RayDashboard()
    try:
        cluster.add_ray(running.url)
        yield running
    finally:
        running.close()


def test_a_lease_with_ray_is_a_ray_to_work_in_until_it_is_cancelled(
    cluster: KubeCluster, beside: System, dashboard: RayDashboard
) -> None:
    """One gets into its head; nothing of it is left."""
    shape = ("--gpus", "2", "--nodes", "2", "--gpu-type", "A100", "--image", "rayproject/ray:2.60.0")
    leasing = beside.begin("lease", "--backend", "k8s", "--for", "1h", "--ray", *shape, "--json")
    group = f"/apis/ray.io/v1/namespaces/{SPACE}"

    def begun() -> Any:
        """The RayJob, once its driver has been submitted."""
        found = cluster.items(f"{group}/rayjobs")
        ready = [one for one in found if one.get("status", {}).get("jobDeploymentStatus") == "Running"]
        return ready and ready[0]["metadata"]["name"]

    dashboard.begin(wait_until(begun, "its Ray is there", 120))
    said, told = leasing.communicate()
    assert leasing.returncode == 0, told
    answer = json.loads(said)
    id = answer["jobs"][0]["id"]
    roles = {one["metadata"]["labels"]["raysched.io/role"]: one for one in pods(cluster, id)}
    assert set(roles) == {"head", "worker", "submitter"}
    head = roles["head"]["metadata"]["name"]
    assert answer["enter"] == f"kubectl exec -it -n {SPACE} {head} -c main -- sh"
    for role in ("head", "worker"):
        (container,) = roles[role]["spec"]["containers"]
        assert (container["image"], container["resources"]["limits"]) == ("rayproject/ray:2.60.0", {GPU: "1"})
    beside.cli("cancel", id)
    assert ended(beside, id)["state"] == "cancelled"
    wait_until(lambda: not cluster.items(f"{group}/rayclusters") and not pods(cluster, id), "it is gone", 60)


# ---------------------------------------------------------------- several clusters

SIDES = {"k8s-east": SPACE, "k8s-west": "team-b"}


@pytest.fixture(scope="module")
def two(cluster: KubeCluster, _ray: None) -> Iterator[System]:
    """A system with two clusters, which are this one under two names: each node has a namesake, and what one
    of them did with the other's would be seen."""
    cluster.add_namespace(SIDES["k8s-west"])
    running = System("1xA100-80GB")
    clusters = f"{{east: {{context: test, namespace: {SPACE}}}, west: {{namespace: {SIDES['k8s-west']}}}}}"
    running.configure(
        f"backends: {{k8s: {{kubeconfig: {cluster.kubeconfig}, image: busybox, clusters: {clusters}}}}}"
    )
    try:
        running.up()
        wait_until(lambda: len(sides(running)) == 2, "both are there", 60)
        yield running
    finally:
        running.close()


def sides(system: System) -> dict[str, Any]:
    """What each of them has of one node, by backend."""
    found = (node for name, node in nodes(system).items() if name.partition("@")[0] == "gpu-1")
    return {node["backends"][0]: node for node in found}


def test_each_cluster_is_a_backend_of_its_own(cluster: KubeCluster, two: System) -> None:
    """Neither nodes nor GPUs nor jobs of the two meet."""
    there = sides(two)
    names = {backend: node["name"] for backend, node in there.items()}
    (second,) = {"gpu-1@k8s-east", "gpu-1@k8s-west"} & set(names.values())
    assert set(names.values()) == {"gpu-1", second}
    assert len({gpu["uuid"] for node in there.values() for gpu in node["gpus"]}) == 4
    ids = {
        backend: two.submit(name, "sleep 600", backend="k8s", k8s={"cluster": name})
        for backend, name in (("k8s-east", "east"), ("k8s-west", "west"))
    }
    for backend, id in ids.items():
        two.until(id, "running")
        assert [one for one in ids.values() if pods(cluster, one, space=SIDES[backend])] == [id]
        (shown,) = two.client().job(id)
        assert shown["backend"] == backend

    def held() -> dict[str, int]:
        return {
            backend: sum(gpu["share_used"] for gpu in node["gpus"]) for backend, node in sides(two).items()
        }

    wait_until(lambda: held() == dict.fromkeys(SIDES, 10_000), "each is counted where it is", 60)
    enter = {backend: two.json("explain", id)["enter"] for backend, id in ids.items()}
    assert enter["k8s-east"].startswith("kubectl --context test exec -it -n team-a ")
    assert enter["k8s-west"].startswith("kubectl exec -it -n team-b ")
    for id in ids.values():
        two.cli("cancel", id)
    wait_until(lambda: held() == dict.fromkeys(SIDES, 0), "all is free", 60)


def test_a_cluster_is_named_where_there_are_several(cluster: KubeCluster, two: System) -> None:
    asked = two.cli("k8s", "sharing", check=False)
    assert asked.returncode
    assert "there are several Kubernetes clusters: choose one of east, west" in asked.stderr
    west = sides(two)["k8s-west"]["name"]
    groups = two.json("k8s", "sharing", "--cluster", "west")["groups"]
    assert [west] in [group["nodes"] for group in groups]
    two.cli("node", "cordon", west)
    try:
        assert cluster.get("/api/v1/nodes/gpu-1")["spec"]["unschedulable"] is True
    finally:
        two.cli("node", "uncordon", west)
    lost = two.cli("lease", "--backend", "k8s", "--for", "1h", "--cluster", "north", check=False)
    assert "k8s.cluster: north is not configured here; choose one of east, west" in lost.stderr
    checks = two.json("k8s", "doctor", check=False)["checks"]
    assert {"east: cluster", "west: cluster"} <= {check["name"] for check in checks}
    (twice,) = [check for check in checks if check["name"] == "clusters"]
    assert twice["detail"] == "east and west are one cluster: each of its nodes counts twice"
