"""One control plane for all tests of this folder."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import plugin_play
import pytest
from documented import KUEUE, WORKLOADS
from kube_cluster import KubeCluster
from orders import NAMESPACE, KubeHands, ordered
from running import wait_until

from raysched.backends.base import Backend, EngineRefused
from raysched.backends.kube.backend import KubeBackend
from raysched.backends.kube.cluster import Access, Cluster
from raysched.core.site import NOWHERE
from raysched.testing import RayDashboard
from raysched.testing.conformance import new_launch


@pytest.fixture(scope="session")
def cluster() -> Iterator[KubeCluster]:
    """A running control plane with one node, which tests share: leave no other node and no job behind."""
    running = KubeCluster()
    try:
        running.add_node("plain")
        running.add_namespace(NAMESPACE)
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def installed(cluster: KubeCluster) -> None:
    """NVIDIA's device plugin and MIG manager, as an administrator has them."""
    plugin_play.install(cluster)


@pytest.fixture(scope="session")
def dashboard() -> Iterator[RayDashboard]:
    running = RayDashboard()
    yield running
    running.close()


@pytest.fixture(scope="session")
def refused(cluster: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> EngineRefused:
    """What is said of a Ray job before the cluster has KubeRay."""
    folder = tmp_path_factory.mktemp("refused")
    access = Access(str(cluster.kubeconfig), namespace=NAMESPACE)
    hands = KubeHands(lambda: KubeBackend(Cluster(access), "early", folder, folder / "runs"), cluster)
    try:
        with pytest.raises(EngineRefused) as said:
            hands.start(ordered(new_launch("python train.py", NOWHERE), ray=True))
        assert not hands.do(hands.backend.observe())
    finally:
        hands.close()
    return said.value


@pytest.fixture(scope="session")
def kuberay(cluster: KubeCluster, dashboard: RayDashboard, refused: EngineRefused) -> KubeCluster:
    """The control plane, with KubeRay from here on."""
    cluster.add_ray(dashboard.url)
    return cluster


@pytest.fixture(scope="module")
def kueue(cluster: KubeCluster) -> Iterator[None]:
    """The kinds of Kueue; whoever needs it does what its controller would."""
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    with cluster.made((crds, WORKLOADS)):
        wait_until(lambda: cluster.get(f"{KUEUE}/workloads"), "the kind is known", 60)
        yield
    name = WORKLOADS["metadata"]["name"]
    wait_until(lambda: cluster.get(f"{crds}/{name}") is None, "the kind is gone, and can be made again", 60)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Where packed working directories lie."""
    path = tmp_path / "packages"
    path.mkdir()
    return path


@pytest.fixture
def access(cluster: KubeCluster) -> Access:
    """How the control plane is reached."""
    return Access(str(cluster.kubeconfig), namespace=NAMESPACE)


@pytest.fixture
def make(access: Access, packages: Path, tmp_path: Path) -> Callable[..., Backend]:
    """Makes the backend of a raysched that no other test has."""
    system = uuid.uuid4().hex[:12]

    def make(by: Cluster | None = None, **options: Any) -> Backend:
        runs = tmp_path / "runs"
        return KubeBackend(by or Cluster(access), system, packages, runs, patience=4_000, **options)

    return make


@pytest.fixture
def hands(make: Callable[[], Backend], cluster: KubeCluster) -> Iterator[KubeHands]:
    """The backend."""
    hands = KubeHands(make, cluster)
    yield hands
    hands.close()
