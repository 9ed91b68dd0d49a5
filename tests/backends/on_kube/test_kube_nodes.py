"""Nodes that are drained: who leaves, and what keeps those who stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kube_cluster import KubeCluster
from orders import NAMESPACE, KubeHands, ordered
from running import wait_until

from raysched.backends.base import EngineRefused
from raysched.backends.kube.backend import KubeBackend
from raysched.backends.kube.evictions import Drain
from raysched.core.site import NOWHERE
from raysched.testing.conformance import LASTS, new_launch

PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
BUDGETS = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets"
SETS = f"/apis/apps/v1/namespaces/{NAMESPACE}/replicasets"
DAEMONS = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets"
NODE = "drained"
TOLERATED = [{"key": "only", "operator": "Exists"}]
MAIN = [{"name": "main", "image": "busybox"}]


@pytest.fixture
def node(cluster: KubeCluster) -> Iterator[str]:
    """A node that nothing else may be put on; what a test put there is gone afterwards."""
    cluster.add_node(NODE, taints=[{"key": "only", "value": "drain", "effect": "NoSchedule"}])
    yield NODE
    for path in (SETS, DAEMONS, BUDGETS, PODS):
        cluster.call("DELETE", path)
    wait_until(lambda: not there(cluster), "all pods are gone", 60)
    cluster.delete_node(NODE)


def there(cluster: KubeCluster) -> dict[str, Any]:
    found = cluster.items(f"/api/v1/pods?fieldSelector=spec.nodeName={NODE}")
    return {pod["metadata"]["name"]: pod for pod in found}


def spec(**fields: Any) -> dict[str, Any]:
    return {"nodeName": NODE, "containers": MAIN, "terminationGracePeriodSeconds": 1, **fields}


def add(cluster: KubeCluster, name: str, metadata: dict[str, Any] | None = None, **fields: Any) -> None:
    """A pod of somebody else, straight on the node."""
    made = {"metadata": {"name": name, **(metadata or {})}, "spec": spec(**fields)}
    cluster.call("POST", PODS, made)
    wait_until(lambda: there(cluster)[name]["status"].get("phase") == "Running", f"{name} runs", 60)


def controlled(cluster: KubeCluster, path: str, name: str, **fields: Any) -> None:
    """A pod on the node that its controller makes again, there as long as nobody cordons the node."""
    app = {"app": name}
    chosen = {"kubernetes.io/hostname": NODE}
    pod = {"containers": MAIN, "nodeSelector": chosen, "tolerations": TOLERATED}
    template = {"metadata": {"labels": app}, "spec": {**pod, "terminationGracePeriodSeconds": 1}}
    made = {
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": app}, "template": template, **fields},
    }
    cluster.call("POST", path, made)
    wait_until(lambda: [one for one in running(cluster) if one.startswith(name)], f"{name} runs", 60)


def running(cluster: KubeCluster) -> list[str]:
    return [name for name, pod in there(cluster).items() if pod["status"].get("phase") == "Running"]


def left(hands: KubeHands, **how: Any) -> dict[str, str]:
    """Who is left after one look, and why; by the beginning of the pod's name."""
    assert isinstance(hands.backend, KubeBackend)
    found = hands.do(hands.backend.evict(NODE, Drain(how.pop("stay", {}), **how)))
    return {one.pod.removeprefix(f"{NAMESPACE}/").partition("-")[0]: one.why for one in found}


def test_a_budget_keeps_a_pod_until_it_allows_its_end(
    hands: KubeHands, cluster: KubeCluster, node: str
) -> None:
    budget = {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}
    cluster.call("POST", BUDGETS, {"metadata": {"name": "one-of-web"}, "spec": budget})
    controlled(cluster, SETS, "web", replicas=1)
    controlled(cluster, SETS, "batch", replicas=1)
    controlled(cluster, DAEMONS, "daemon")
    counted = f"{BUDGETS}/one-of-web"
    wait_until(
        lambda: cluster.get(counted)["status"].get("currentHealthy") == 1, "the budget counts its pod", 60
    )
    hands.do(hands.backend.cordon(node, True, ""))  # type: ignore[attr-defined]
    planned = left(hands, plan=True)
    assert planned["batch"] == ""
    assert "disruption budget" in planned["web"]
    assert "daemon" not in planned, "it belongs to the node"
    assert len(running(cluster)) == 3, "a plan ends nothing"
    wait_until(lambda: set(left(hands)) == {"web"}, "what may leave has left", 60)
    said = left(hands)["web"]
    assert "The disruption budget one-of-web needs 1 healthy pods and has 1 currently" in said
    assert {name.partition("-")[0] for name in running(cluster)} == {"daemon", "web"}
    cluster.call("DELETE", counted)
    wait_until(lambda: left(hands) == {}, "it leaves once it may", 60)


def test_what_nothing_makes_again_and_what_loses_data_stays_unless_it_is_said(
    hands: KubeHands, cluster: KubeCluster, node: str
) -> None:
    space = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    uid = cluster.call("POST", space, {"metadata": {"name": "some"}})["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "some", "uid": uid, "controller": True}
    try:
        add(cluster, "bare")
        add(cluster, "scratch", {"ownerReferences": [owner]}, volumes=[{"name": "a", "emptyDir": {}}])
        assert {name: bool(why) for name, why in left(hands).items()} == {"bare": True, "scratch": True}
        assert "--delete-emptydir-data" in left(hands)["scratch"]
        wait_until(lambda: set(left(hands, force=True)) == {"scratch"}, "the bare one leaves", 60)
        wait_until(lambda: left(hands, emptydir=True) == {}, "the other one leaves", 60)
    finally:
        cluster.call("DELETE", f"/api/v1/namespaces/{NAMESPACE}/configmaps/some")


def test_a_job_of_ours_leaves_unless_it_may_not_be_stopped(
    hands: KubeHands, cluster: KubeCluster, node: str
) -> None:
    there = {"kubernetes.io/hostname": NODE}
    run = hands.start(ordered(new_launch(LASTS, NOWHERE), node_selector=there, tolerations=TOLERATED))
    hands.until_pod(run)
    assert list(left(hands, stay={run.job: "it is needed"}).values()) == ["it is needed"]
    hands.until(run, "running")
    left(hands)
    assert "EvictionByEvictionAPI" in hands.until(run, "taken").reason
    wait_until(lambda: left(hands) == {}, "nobody is left", 60)


def test_labels_are_given_and_taken_and_refusals_told(
    hands: KubeHands, cluster: KubeCluster, node: str
) -> None:
    assert isinstance(hands.backend, KubeBackend)
    hands.do(hands.backend.label(node, {"team": "vision", "old": "yes"}))
    found = hands.do(hands.backend.label(node, {"old": None}))
    assert found["team"] == "vision"
    assert "old" not in found
    with pytest.raises(EngineRefused, match="drained keeps its labels: Kubernetes says no"):
        hands.do(hands.backend.label(node, {"team": "not a label!"}))
