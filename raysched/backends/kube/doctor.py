"""What a cluster lacks for raysched: rights, kinds of objects, drivers on its nodes; and how to get them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raysched.backends.kube.cluster import Answered, Cluster
from raysched.backends.kube.devices import node_info
from raysched.backends.kube.found import find
from raysched.backends.kube.plugin import config_map
from raysched.backends.kube.rights import NODES, OPTIONAL, Right, missing, needed
from raysched.backends.kube.sharing import DAEMONS
from raysched.core.cluster_views import group_words
from raysched.errors import Unreachable

Object = dict[str, Any]

PRESENT = "nvidia.com/gpu.present"
VENDOR = "feature.node.kubernetes.io/pci-10de.present"
"""Labels of nodes that have an NVIDIA GPU, by GPU feature discovery and by node feature discovery."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `hint` says how to get what is missing where it is not `ok`."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


async def examine(cluster: Cluster, *, kai: Sequence[str] = (), kueue: Sequence[str] = ()) -> list[Finding]:
    """Look at everything; `kai` and `kueue` are the queues that the configuration names. Changes nothing;
    raises nothing."""
    try:
        await cluster.open()
        version = await cluster.call("GET", "/version")
        groups = {group["name"] for group in (await cluster.call("GET", "/apis"))["groups"]}
    except (Answered, Unreachable) as error:
        hint = "see backends.k8s in raysched.yaml: kubeconfig, context"
        return [Finding("cluster", False, str(error), hint)]
    where = f"Kubernetes {version['gitVersion'].removeprefix('v')}, namespace {cluster.namespace}"
    findings = [Finding("cluster", True, where)]
    looks = (
        _rights(cluster, groups),
        _node_rights(cluster),
        _nodes(cluster, bool(kai)),
        _queues(cluster, groups, kai, kueue),
    )
    for look in looks:
        try:
            findings += [finding async for finding in look]
        except (Answered, Unreachable) as error:
            findings.append(Finding("cluster", False, str(error), "see the missing rights above"))
    return findings


async def _rights(cluster: Cluster, groups: set[str]) -> AsyncIterator[Finding]:
    rights = [right for right in needed() if right.group not in OPTIONAL - groups]
    lacking = await missing(cluster, rights)
    if not lacking:
        yield Finding("rights", True, f"all {len(rights)} that are needed")
    for everywhere in (False, True):
        for resource, those in _by_resource(right for right in lacking if right.everywhere == everywhere):
            verbs = ", ".join(right.verb for right in those)
            where = "in all namespaces" if everywhere else f"in {cluster.namespace}"
            if resource == "nodes":
                where = "of the cluster"
            hint = f"have an administrator apply: raysched k8s rbac --namespace {cluster.namespace}"
            yield Finding("rights", False, f"may not {verbs}: {resource} {where}", hint)


async def _node_rights(cluster: Cluster) -> AsyncIterator[Finding]:
    """The rights for `raysched node` and `raysched k8s sharing set`: not to have them is no fault."""
    lacking = await missing(cluster, [right for right in needed(NODES) if right.everywhere])
    where = None
    if not any(right.resource == "daemonsets" for right in lacking):
        where = config_map((await cluster.list(DAEMONS, {}))[0])
    if where is not None:
        lacking += await missing(cluster, [one for one in needed(NODES) if not one.everywhere], where[0])
    if not lacking:
        plugin = "" if where else "; NVIDIA's device plugin takes no configuration by label"
        yield Finding("node rights", True, f"raysched node and k8s sharing set may do all{plugin}")
        return
    those = ", ".join(right.words for right in lacking)
    yield Finding(
        "node rights",
        True,
        f"may not {those}: raysched node and k8s sharing set are refused without; "
        f"raysched k8s rbac --nodes --namespace {cluster.namespace} gives them",
    )


def _by_resource(rights: Iterator[Right]) -> list[tuple[str, list[Right]]]:
    found: dict[str, list[Right]] = {}
    for right in rights:
        found.setdefault(right.words.partition(" ")[2], []).append(right)
    return list(found.items())


async def _nodes(cluster: Cluster, kai: bool) -> AsyncIterator[Finding]:
    """What the nodes offer, and those that have GPUs and offer none."""
    nodes, _ = await cluster.list("/api/v1/nodes", {})
    shared = await find(cluster, kai=kai)
    alike: Counter[str] = Counter()
    for node in nodes:
        name, labels = node["metadata"]["name"], node["metadata"].get("labels") or {}
        info = node_info(node, name, shared)
        if info.gpus:
            alike[group_words(info)] += 1
        elif "true" in (labels.get(PRESENT), labels.get(VENDOR)):
            yield Finding(
                "GPUs",
                False,
                f"{name} has an NVIDIA GPU, and offers none",
                "install NVIDIA's GPU Operator, or its driver and device plugin, and see the plugin's log",
            )
    for words, count in sorted(alike.items()):
        yield Finding("GPUs", True, f"{count} node{'s' * (count != 1)} with {words}")
    if not alike:
        hint = "install NVIDIA's GPU Operator, or its device plugin"
        yield Finding("GPUs", False, f"none of {len(nodes)} nodes offers one", hint)


async def nodes_of(cluster: Cluster) -> frozenset[str]:
    """The ids of the nodes of a cluster, by which it is known; none where it does not tell."""
    try:
        nodes, _ = await cluster.list("/api/v1/nodes", {})
    except (Answered, Unreachable):
        return frozenset()
    return frozenset(node["metadata"]["uid"] for node in nodes)


async def _queues(
    cluster: Cluster, groups: set[str], kai: Sequence[str], kueue: Sequence[str]
) -> AsyncIterator[Finding]:
    """Whether the schedulers are there that the configuration names queues of, and the other way round."""
    ray = "is installed" if "ray.io" in groups else "is not installed: jobs with k8s: {ray: true} are refused"
    yield Finding("KubeRay", True, ray)
    for name, group, setting, queues in (
        ("KAI Scheduler", "kai.scheduler", "kai", kai),
        ("Kueue", "kueue.x-k8s.io", "kueue", kueue),
    ):
        if group not in groups and queues:
            hint = f"install {name}, or take {setting} out of backends.k8s"
            yield Finding(name, False, f"is not installed: its kinds ({group}) are not known", hint)
        elif group in groups and queues:
            yield Finding(name, True, f"is installed; jobs wait in {', '.join(sorted(set(queues)))}")
        elif group in groups:
            yield Finding(name, True, f"is installed, and not used: backends.k8s.{setting} names no queue")
