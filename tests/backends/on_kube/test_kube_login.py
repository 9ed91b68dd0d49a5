"""How a backend logs in, and that it does so again."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kube_cluster import KubeCluster
from orders import NAMESPACE, KubeHands, ordered
from running import wait_until

from raysched.backends.base import EngineRefused
from raysched.backends.kube.backend import KubeBackend
from raysched.backends.kube.cluster import Access, Cluster
from raysched.core.site import NOWHERE
from raysched.core.work import Launch
from raysched.testing.conformance import LASTS, new_launch

SPACE = f"/api/v1/namespaces/{NAMESPACE}"
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"


class Robot:
    """A service account whose tokens hold as long as a Secret is there: `file` has the one that it uses."""

    def __init__(self, cluster: KubeCluster, file: Path) -> None:
        self.cluster = cluster
        self.file = file
        self._count = 0
        self.renew()

    def renew(self) -> None:
        """Write another token into the file. The old one holds."""
        self._count += 1
        secret = self.cluster.call("POST", f"{SPACE}/secrets", {"metadata": {"name": self._secret}})
        bound = {"kind": "Secret", "apiVersion": "v1", "name": self._secret, "uid": secret["metadata"]["uid"]}
        asked = {"spec": {"boundObjectRef": bound, "expirationSeconds": 3600}}
        told = self.cluster.call("POST", f"{SPACE}/serviceaccounts/robot/token", asked)
        self.file.write_text(told["status"]["token"])

    @property
    def _secret(self) -> str:
        return f"robot-{self._count}"

    def expire(self) -> None:
        """End the token in the file, and wait until the server knows."""
        self.cluster.call("DELETE", f"{SPACE}/secrets/{self._secret}")
        wait_until(lambda: self.status() == 401, "the token holds no more", 60)

    def status(self) -> int:
        """What the API server answers to the token in the file."""
        return self._asked()[0]

    def flow(self) -> str:
        """The id of the flow schema by which the API server has room for it."""
        return self._asked()[1]

    def _asked(self) -> tuple[int, str]:
        request = urllib.request.Request(f"{self.cluster.url}{SPACE}/pods")
        request.add_header("Authorization", f"Bearer {self.file.read_text()}")
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.cluster.trusted()) as answer:
                return answer.status, answer.headers["X-Kubernetes-PF-FlowSchema-UID"]
        except urllib.error.HTTPError as error:
            return error.code, ""

    def kubeconfig(self) -> Path:
        """A kubeconfig that names the file."""
        return self._written({"tokenFile": str(self.file)})

    def plugin(self) -> Path:
        """A kubeconfig with a program that logs in, as those of clouds are. Each time it writes a line."""
        program = self.file.with_name("log-in")
        version = "client.authentication.k8s.io/v1"
        told = '{"apiVersion": "%s", "kind": "ExecCredential", "status": {"token": "%s"}}'
        says = f"printf '{told}' {version} \"$(cat {self.file})\""
        program.write_text(f"#!/bin/sh\necho once >>{self.logins}\n{says}\n")
        program.chmod(0o700)
        how = {"apiVersion": version, "command": str(program), "interactiveMode": "Never"}
        return self._written({"exec": how})

    @property
    def logins(self) -> Path:
        """What the program writes."""
        return self.file.with_name("logins")

    def _written(self, user: Any) -> Path:
        config = json.loads(self.cluster.kubeconfig.read_text())
        config["users"][0]["user"] = user
        path = self.file.with_name("robot.kubeconfig")
        path.write_text(json.dumps(config))
        return path


@pytest.fixture
def robot(cluster: KubeCluster, tmp_path: Path) -> Iterator[Robot]:
    cluster.call("POST", f"{SPACE}/serviceaccounts", {"metadata": {"name": "robot"}})
    subject = {"kind": "ServiceAccount", "name": "robot", "namespace": NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    cluster.call("POST", BINDINGS, {"metadata": {"name": "robot"}, "subjects": [subject], "roleRef": role})
    try:
        yield Robot(cluster, tmp_path / "token")
    finally:
        if cluster.get(f"{BINDINGS}/robot") is not None:
            cluster.call("DELETE", f"{BINDINGS}/robot")
        cluster.call("DELETE", f"{SPACE}/serviceaccounts/robot")
        cluster.call("DELETE", f"{SPACE}/secrets")


def order() -> Launch:
    return ordered(new_launch(LASTS, NOWHERE))


def ends(hands: KubeHands, launch: Launch) -> None:
    """A run that is started runs once, and its end is told."""
    hands.start(launch)
    hands.until(launch.run, "running")
    (pod,) = hands.pods(launch.run)
    hands.cluster.end(pod, 0)
    hands.until(launch.run, "exited")


@pytest.mark.parametrize("how", ["file", "plugin"])
def test_a_token_that_expires_is_renewed(
    make: Callable[..., KubeBackend], cluster: KubeCluster, robot: Robot, how: str
) -> None:
    """What ran before goes on and is followed, and more is started, with the token in the file now, or with
    the one that the kubeconfig's plugin says now."""
    path = robot.plugin() if how == "plugin" else robot.kubeconfig()
    access = Access(str(path), namespace=NAMESPACE)
    with closing(KubeHands(lambda: make(Cluster(access)), cluster)) as hands:
        before = order()
        hands.start(before)
        hands.until(before.run, "running")
        robot.expire()
        robot.renew()
        ends(hands, order())
        ends(hands, before)
    if how == "plugin":
        logins = len(robot.logins.read_text().splitlines())
        assert 1 < logins < 10, "it logs in once for each token"


def test_inside_a_cluster_the_pods_account_is_used(
    make: Callable[..., KubeBackend], cluster: KubeCluster, robot: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Its files lie elsewhere here.)"""
    from kubernetes.aio.config import incluster_config

    from raysched.backends.kube import cluster as module

    namespace = robot.file.with_name("namespace")
    namespace.write_text(NAMESPACE)
    certificate = json.loads(cluster.kubeconfig.read_text())["clusters"][0]["cluster"][
        "certificate-authority"
    ]
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(robot.file))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", certificate)
    monkeypatch.setattr(module, "POD_NAMESPACE", str(namespace))
    host, _, port = cluster.url.removeprefix("https://").partition(":")
    for name, value in (("HOST", host), ("PORT", port)):
        monkeypatch.setenv(f"KUBERNETES_SERVICE_{name}", value)
    monkeypatch.setenv("HOME", str(robot.file.parent))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    there = Cluster(Access())
    with closing(KubeHands(lambda: make(there), cluster)) as hands:
        ends(hands, order())
    assert there.namespace == NAMESPACE


def test_a_node_is_cordoned_where_the_account_may(
    make: Callable[..., KubeBackend], cluster: KubeCluster, robot: Robot
) -> None:
    """Where it may not, the answer is the command for somebody who may."""

    access = Access(str(robot.kubeconfig()), namespace=NAMESPACE)

    def closed() -> bool:
        return bool(cluster.call("GET", "/api/v1/nodes/plain")["spec"].get("unschedulable"))

    async def cordon(on: bool) -> None:
        backend = make(Cluster(access))
        try:
            await backend.cordon("plain", on, "drained by ana")
        finally:
            await backend.close()

    for on in (True, True, False):
        asyncio.run(cordon(on))
        assert closed() == on
    cluster.call("DELETE", f"{BINDINGS}/robot")

    def refused() -> bool:
        try:
            asyncio.run(cordon(False))
        except EngineRefused:
            return True
        return False

    wait_until(refused, "the server knows that it may not", 60)
    with pytest.raises(EngineRefused, match="plain is not cordoned: Kubernetes says no") as said:
        asyncio.run(cordon(True))
    assert said.value.reason.endswith("kubectl cordon plain")
    assert not closed()
