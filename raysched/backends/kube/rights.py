"""The rights that raysched needs in a cluster: `rbac.yaml` beside this file, and `rbac_nodes.yaml` for who
also administers nodes with it; and which of them we have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysched.backends.kube.cluster import Cluster

JOBS = Path(__file__).with_name("rbac.yaml")
NODES = Path(__file__).with_name("rbac_nodes.yaml")
PLUGINS = "gpu-operator"
"""The namespace in which NVIDIA's programs usually run."""
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
OPTIONAL = frozenset({"ray.io", "resource.k8s.io", "kai.scheduler", "kueue.x-k8s.io"})
"""Groups of the API that a cluster may lack; what is asked of them is needed only where they are."""


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """To do `verb` with a resource of a group, in the namespace of the jobs or (`everywhere`) in all."""

    everywhere: bool
    group: str
    resource: str
    verb: str

    @property
    def words(self) -> str:
        """As RBAC and kubectl have it: `create jobs.batch`."""
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}"


def manifests(namespace: str, account: str) -> str:
    """The service account, its roles and their bindings, as YAML."""
    return _named(JOBS, NAMESPACE=namespace, ACCOUNT=account)


def manifests_for_nodes(namespace: str, account: str, plugins: str = PLUGINS) -> str:
    """The roles for the administration of nodes, and their bindings, as YAML. `plugins` is the namespace of
    NVIDIA's device plugin and MIG manager."""
    return _named(NODES, NAMESPACE=namespace, ACCOUNT=account, PLUGINS=plugins)


def _named(file: Path, **names: str) -> str:
    """A file without its head, with names in their places."""
    text = file.read_text(encoding="utf-8")
    body = text[text.index("apiVersion") :]
    for place, name in names.items():
        body = body.replace(place, name)
    return body


def needed(file: Path = JOBS) -> Iterator[Right]:
    """Every right that a file gives."""
    import yaml

    for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
        for rule in document.get("rules", ()):
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        yield Right(document["kind"] == "ClusterRole", group, resource, verb)


async def missing(cluster: Cluster, rights: Sequence[Right], namespace: str = "") -> list[Right]:
    """Those of the rights that we do not have, in that namespace or that of jobs. Raises Answered or
    Unreachable."""
    allowed = await asyncio.gather(*(_may(cluster, right, namespace) for right in rights))
    return [right for right, may in zip(rights, allowed, strict=True) if not may]


async def _may(cluster: Cluster, right: Right, namespace: str) -> bool:
    resource, _, part = right.resource.partition("/")
    asked: dict[str, Any] = {"group": right.group, "resource": resource, "verb": right.verb}
    if part:
        asked["subresource"] = part
    if not right.everywhere:
        asked["namespace"] = namespace or cluster.namespace
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    answer = await cluster.call("POST", REVIEWS, review)
    return bool(answer["status"]["allowed"])
