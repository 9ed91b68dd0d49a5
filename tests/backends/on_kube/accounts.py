"""Service accounts with the rights that manifests give them, on the control plane of the tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from kube_cluster import KubeCluster

RBAC = "/apis/rbac.authorization.k8s.io/v1"


def account(cluster: KubeCluster, namespace: str, name: str, manifests: Sequence[Any]) -> Path:
    """Make these objects, and a kubeconfig that logs in as the service account among them."""
    for thing in manifests:
        kind = f"{thing['kind'].lower()}s"
        group = "/api/v1" if thing["apiVersion"] == "v1" else RBAC
        space = "" if thing["kind"].startswith("Cluster") else f"/namespaces/{namespace}"
        cluster.call("POST", f"{group}{space}/{kind}", thing)
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    token = cluster.call("POST", path, {"spec": {"expirationSeconds": 36_000}})["status"]["token"]
    access = yaml.safe_load(cluster.kubeconfig.read_text())
    access["users"][0]["user"] = {"token": token}
    file = cluster.folder / f"{name}.kubeconfig"
    file.write_text(json.dumps(access))
    return file
