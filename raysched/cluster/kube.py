"""`raysched k8s doctor` and `rbac`: the clusters of the configuration, whether or not a system runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

from raysched.backends.kube import doctor, rights
from raysched.backends.kube.cluster import Access, Cluster
from raysched.cluster.doctor import Check
from raysched.errors import ConfigError
from raysched.specs.config import load_config
from raysched.specs.k8s import K8sCluster


def examine(config: Path | None) -> list[Check]:
    """What the clusters lack. Changes nothing. Raises ConfigError where the configuration names none."""
    clusters = _clusters(config)
    if not clusters:
        raise ConfigError("no Kubernetes cluster is configured: name one under backends.k8s in raysched.yaml")
    return asyncio.run(_checks(clusters))


async def _checks(clusters: Mapping[str, K8sCluster]) -> list[Check]:
    checks: list[Check] = []
    nodes: dict[str, frozenset[str]] = {}
    for name, settings in clusters.items():
        found, nodes[name] = await _examined(settings)
        label = f"{name}: " if name else ""
        checks += [Check(f"{label}{one.name}", one.ok, one.detail, one.hint) for one in found]
    return [*checks, *_twice(nodes)]


async def _examined(settings: K8sCluster) -> tuple[list[doctor.Finding], frozenset[str]]:
    access = Access(settings.kubeconfig, settings.context, settings.namespace, os.environ)
    cluster = Cluster(access)
    try:
        kai, kueue = tuple(settings.kai.values()), tuple(settings.kueue.values())
        return await doctor.examine(cluster, kai=kai, kueue=kueue), await doctor.nodes_of(cluster)
    finally:
        await cluster.close()


def _twice(nodes: Mapping[str, frozenset[str]]) -> Iterator[Check]:
    """Clusters that are one, under two names: its GPUs would be counted for each."""
    for one, other in combinations(nodes, 2):
        if nodes[one] & nodes[other]:
            yield Check(
                "clusters",
                False,
                f"{one} and {other} are one cluster: each of its nodes counts twice",
                "take one of them out of backends.k8s.clusters",
            )


def rbac(config: Path | None, namespace: str | None, account: str, plugins: str | None = None) -> str:
    """The least rights as YAML, for jobs in a namespace: None is that of the configuration. With `plugins`,
    the namespace of NVIDIA's programs, those for the administration of nodes. Raises ConfigError where
    clusters have several namespaces."""
    spaces = (
        {one.namespace or "default" for one in _clusters(config).values()} if namespace is None else set()
    )
    if len(spaces) > 1:
        raise ConfigError(f"jobs run in several namespaces: say --namespace {' or '.join(sorted(spaces))}")
    space = namespace or next(iter(spaces), "default")
    if plugins is not None:
        return rights.manifests_for_nodes(space, account, plugins)
    return rights.manifests(space, account)


def _clusters(config: Path | None) -> dict[str, K8sCluster]:
    settings = load_config(config).backends.k8s
    return settings.each() if settings is not None else {}
