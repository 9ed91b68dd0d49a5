"""The k8s backend passes what every backend passes, on a real control plane, with the rights that
`raysched k8s rbac` prints and no others; its pods run no processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import yaml
from accounts import account
from kube_cluster import KubeCluster
from orders import NAMESPACE, KubeHands

from raysched.backends.base import Backend
from raysched.backends.kube import rights
from raysched.backends.kube.cluster import Access
from raysched.testing.conformance import BackendConformance, Hands


@pytest.fixture(scope="module")
def least(cluster: KubeCluster) -> Access:
    """How a service account logs in that may do what is printed."""
    made = yaml.safe_load_all(rights.manifests(NAMESPACE, "conforming"))
    return Access(str(account(cluster, NAMESPACE, "conforming", list(made))), namespace=NAMESPACE)


@pytest.fixture
def access(least: Access) -> Access:
    return least


class TestKube(BackendConformance):
    """By the official client, as a service account."""

    @pytest.fixture
    def make(self, make: Callable[[], Backend]) -> Callable[[], Backend]:
        return make

    @pytest.fixture
    def hands(self, make: Callable[[], Backend], cluster: KubeCluster) -> Iterator[Hands]:
        hands = KubeHands(make, cluster)
        yield hands
        hands.close()
