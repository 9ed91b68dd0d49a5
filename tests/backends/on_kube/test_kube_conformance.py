"""The k8s backend passes what every backend passes, on a real control plane; its pods run no processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from kube_cluster import KubeCluster
from orders import KubeHands

from raysched.backends.base import Backend
from raysched.testing.conformance import BackendConformance, Hands


class TestKube(BackendConformance):
    """By the official client."""

    @pytest.fixture
    def make(self, make: Callable[[], Backend]) -> Callable[[], Backend]:
        return make

    @pytest.fixture
    def hands(self, make: Callable[[], Backend], cluster: KubeCluster) -> Iterator[Hands]:
        hands = KubeHands(make, cluster)
        yield hands
        hands.close()
