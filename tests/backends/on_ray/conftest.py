"""A real Ray of two nodes, node-a with four simulated GPUs and node-b with two, and backends on it."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray_world import World, describe, start_agent

from raysched.backends.ray.agents import NAMESPACE
from raysched.core.node import NodeInfo


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A real Ray cluster of this session alone, with node-a; the tests are its driver."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tempfile.mkdtemp(prefix="rs", dir="/tmp")  # Ray's sockets bear no long path
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=4, num_gpus=4, include_dashboard=False)
            ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
            gc.collect()  # while the warnings of what Ray dropped are still ignored


@pytest.fixture(scope="package")
def nodes(cluster: Cluster) -> dict[str, NodeInfo]:
    """What the ledger would know of the two nodes."""
    there = cluster.add_node(num_cpus=4, num_gpus=2)
    return {
        "node-a": describe("node-a", cluster.head_node.node_id, 4),
        "node-b": describe("node-b", there.node_id, 2),
    }


@pytest.fixture(scope="package")
def agents(nodes: dict[str, NodeInfo]) -> Iterator[None]:
    """A node agent on each node."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in nodes}
        actors = [
            start_agent(node, paths[name], dict(os.environ), paths[name]) for name, node in nodes.items()
        ]
        yield
        for actor in actors:
            ray.kill(actor)


@pytest.fixture
def world(nodes: dict[str, NodeInfo], agents: None, tmp_path: Path) -> Iterator[World]:
    """A backend on the cluster, which is empty again afterwards."""
    world = World(nodes, tmp_path)
    yield world
    world.close()
