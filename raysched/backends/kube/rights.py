"""The rights that raysched needs in a cluster: `rbac.yaml` beside this file, and which of them we have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysched.backends.kube.cluster import Cluster

FILE = Path(__file__).with_name("rbac.yaml")
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
    """The service account, the roles and their bindings, as YAML."""
    text = FILE.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    head = [line for line in lines if line.startswith("#")][:2]
    body = "".join(line for line in lines if line not in head)
    return body.replace("NAMESPACE", namespace).replace("ACCOUNT", account)


def needed() -> Iterator[Right]:
    """Every right that the file gives."""
    import yaml

    for document in yaml.safe_load_all(FILE.read_text(encoding="utf-8")):
        for rule in document.get("rules", ()):
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        yield Right(document["kind"] == "ClusterRole", group, resource, verb)


async def missing(cluster: Cluster, rights: Sequence[Right]) -> list[Right]:
    """Those of the rights that we do not have. Raises Answered or Unreachable."""
    allowed = await asyncio.gather(*(_may(cluster, right) for right in rights))
    return [right for right, may in zip(rights, allowed, strict=True) if not may]


async def _may(cluster: Cluster, right: Right) -> bool:
    resource, _, part = right.resource.partition("/")
    asked: dict[str, Any] = {"group": right.group, "resource": resource, "verb": right.verb}
    if part:
        asked["subresource"] = part
    if not right.everywhere:
        asked["namespace"] = cluster.namespace
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    answer = await cluster.call("POST", REVIEWS, review)
    return bool(answer["status"]["allowed"])
