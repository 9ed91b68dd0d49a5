"""`raysched k8s doctor` and `rbac`: what is missing is told, and the printed rights are those that it takes.
That they suffice is shown by the conformance suite, which runs with them (test_kube_conformance.py).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import documented
import plugin_play
import pytest
import yaml
from accounts import RBAC, account
from kube_cluster import KubeCluster
from orders import NAMESPACE

from raysched.backends.base import EngineRefused
from raysched.backends.kube import doctor, rights
from raysched.backends.kube.backend import KubeBackend
from raysched.backends.kube.cluster import Access, Cluster
from raysched.backends.kube.evictions import Drain
from raysched.cluster import kube
from raysched.errors import ConfigError


def least(name: str, *without: tuple[str, str]) -> list[Any]:
    """The objects that are printed for an account, without these verbs on these resources."""
    made = list(yaml.safe_load_all(rights.manifests(NAMESPACE, name)))
    for thing in made:
        for rule in thing.get("rules", ()):
            for verb, resource in without:
                if resource in rule["resources"] and verb in rule["verbs"]:
                    rule["verbs"].remove(verb)
        if "rules" in thing:
            thing["rules"] = [rule for rule in thing["rules"] if rule["verbs"]]
    return made


def examined(file: Path, **queues: tuple[str, ...]) -> list[doctor.Finding]:
    async def examine() -> list[doctor.Finding]:
        cluster = Cluster(Access(str(file), namespace=NAMESPACE))
        try:
            return await doctor.examine(cluster, **queues)
        finally:
            await cluster.close()

    return asyncio.run(examine())


def bad(findings: list[doctor.Finding], name: str) -> list[str]:
    return [one.detail for one in findings if one.name == name and not one.ok]


def test_with_the_printed_rights_nothing_is_missing_and_one_less_is_told(
    cluster: KubeCluster,
) -> None:
    all_of_them = account(cluster, NAMESPACE, "all", least("all"))
    assert bad(examined(all_of_them), "rights") == []
    fewer = least("fewer", ("create", "jobs"), ("get", "pods/log"), ("watch", "nodes"))
    told = bad(examined(account(cluster, NAMESPACE, "fewer", fewer)), "rights")
    assert told == [
        f"may not create: jobs.batch in {NAMESPACE}",
        f"may not get: pods/log in {NAMESPACE}",
        "may not watch: nodes of the cluster",
    ]


def test_the_rights_for_nodes_are_apart_and_suffice(cluster: KubeCluster, installed: None) -> None:
    """An account that may run jobs may not touch a node; with the printed rights it may."""
    file = account(cluster, NAMESPACE, "keeper", least("keeper"))

    async def administer() -> list[doctor.Finding]:
        there = Cluster(Access(str(file), namespace=NAMESPACE))
        backend = KubeBackend(there, "keeper", file.parent, file.parent / "keeper")
        try:
            await backend.cordon("plain", True, "")
            await backend.label("plain", {"kept": None})
            await backend.cordon("plain", False, "")
            left = await backend.evict("plain", Drain({}, plan=True))
            assert [one for one in left if "forbidden" in one.why] == []
            return await doctor.examine(there)
        finally:
            await backend.close()

    (told,) = [one for one in examined(file) if one.name == "node rights"]
    assert told.ok
    assert told.detail.startswith("may not patch nodes, create pods/eviction, list daemonsets.apps: ")
    with pytest.raises(EngineRefused, match="plain is not cordoned"):
        asyncio.run(administer())
    made = list(yaml.safe_load_all(rights.manifests_for_nodes(NAMESPACE, "keeper", plugin_play.SPACE)))
    try:
        for thing in made:
            space = f"/namespaces/{plugin_play.SPACE}" if "namespace" in thing["metadata"] else ""
            cluster.call("POST", f"{RBAC}{space}/{thing['kind'].lower()}s", thing)
        (told,) = [one for one in asyncio.run(administer()) if one.name == "node rights"]
        assert told.detail == "raysched node and k8s sharing set may do all"
    finally:
        cluster.patch("/api/v1/nodes/plain", {"spec": {"unschedulable": None}})


def test_an_account_without_any_rights_is_told_how_to_get_them(cluster: KubeCluster) -> None:
    """The nodes can't be looked at then, which is told too and ends nothing."""
    nobody = account(cluster, NAMESPACE, "nobody", least("nobody")[:1])
    found = examined(nobody)
    assert "may not list, watch: nodes of the cluster" in bad(found, "rights")
    hints = {one.hint for one in found if one.name == "rights"}
    assert hints == {f"have an administrator apply: raysched k8s rbac --namespace {NAMESPACE}"}
    assert "nodes is forbidden" in bad(found, "cluster")[0]


def test_what_a_cluster_lacks_beside_rights_is_told(cluster: KubeCluster) -> None:
    found = examined(cluster.kubeconfig, kai=("team-a",), kueue=("user-queue",))
    assert "none of 1 nodes offers one" in bad(found, "GPUs")
    assert "is not installed" in bad(found, "KAI Scheduler")[0]
    assert "is not installed" in bad(found, "Kueue")[0]
    labels = {"nvidia.com/gpu.present": "true", "nvidia.com/gpu.product": documented.A100}
    cluster.add_node("bare", {}, labels)
    cluster.add_node("good", {"nvidia.com/gpu": "4"}, labels)
    try:
        found = examined(cluster.kubeconfig)
        assert bad(found, "GPUs") == ["bare has an NVIDIA GPU, and offers none"]
        (good,) = [one.detail for one in found if one.name == "GPUs" and one.ok]
        assert good == f"1 node with 4 x {documented.A100}, whole"
    finally:
        for name in ("bare", "good"):
            cluster.delete_node(name)


def test_a_cluster_that_can_not_be_reached_is_told(tmp_path: Path) -> None:
    (only,) = examined(tmp_path / "missing")
    assert not only.ok
    assert "can't log in" in only.detail


def test_the_printed_manifests_have_the_names_that_were_asked_for() -> None:
    text = kube.rbac(None, "team-b", "robot")
    assert "NAMESPACE" not in text
    assert "ACCOUNT" not in text
    kinds = [thing["kind"] for thing in yaml.safe_load_all(text)]
    assert kinds == ["ServiceAccount", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"]


def test_doctor_without_a_cluster_in_the_configuration_says_so(tmp_path: Path) -> None:
    file = tmp_path / "raysched.yaml"
    file.write_text("gateway: {port: 0}\n")
    with pytest.raises(ConfigError, match=r"name one under backends\.k8s"):
        kube.examine(file)
