"""`raysched k8s doctor` and `rbac`: the cluster of the configuration, whether or not a system runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from raysched.backends.kube import doctor, rights
from raysched.backends.kube.cluster import Access, Cluster
from raysched.cluster.doctor import Check
from raysched.errors import ConfigError
from raysched.specs.config import load_config
from raysched.specs.k8s import K8sBackend


def examine(config: Path | None) -> list[Check]:
    """What the cluster lacks. Changes nothing. Raises ConfigError where the configuration names none."""
    settings = _settings(config)
    if settings is None:
        raise ConfigError("no Kubernetes cluster is configured: name one under backends.k8s in raysched.yaml")
    return [Check(one.name, one.ok, one.detail, one.hint) for one in asyncio.run(_examined(settings))]


async def _examined(settings: K8sBackend) -> list[doctor.Finding]:
    access = Access(settings.kubeconfig, settings.context, settings.namespace, os.environ)
    cluster = Cluster(access)
    try:
        return await doctor.examine(
            cluster, kai=tuple(settings.kai.values()), kueue=tuple(settings.kueue.values())
        )
    finally:
        await cluster.close()


def rbac(config: Path | None, namespace: str | None, account: str, plugins: str | None = None) -> str:
    """The least rights as YAML, for jobs in a namespace: None is that of the configuration. With `plugins`,
    the namespace of NVIDIA's programs, those for the administration of nodes."""
    settings = _settings(config) if namespace is None else None
    space = namespace or (settings and settings.namespace) or "default"
    if plugins is not None:
        return rights.manifests_for_nodes(space, account, plugins)
    return rights.manifests(space, account)


def _settings(config: Path | None) -> K8sBackend | None:
    return load_config(config).backends.k8s
