"""Commands run through node agents, on a real Ray."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray_world import RAY_LEAVES_SOCKETS, start_agent

from raysched.backends.base import Backend, Holding
from raysched.backends.ray.backend import RayBackend
from raysched.core.lease import Place
from raysched.core.node import NodeInfo
from raysched.errors import Unreachable
from raysched.testing.conformance import LASTS, Hands, ProcessConformance, new_launch, pack

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(RAY_LEAVES_SOCKETS)]


@pytest.fixture
def node(nodes: dict[str, NodeInfo]) -> NodeInfo:
    """A node of the cluster under a name of its own, so that it has an agent of its own."""
    return replace(nodes["node-a"], name=f"node-{uuid.uuid4().hex[:8]}")


class TestRay(ProcessConformance):
    @pytest.fixture
    def place(self, node: NodeInfo) -> Place:
        return Place(node.name, (), 0, 0)

    @pytest.fixture
    def make(
        self, node: NodeInfo, folder: Path, base_env: dict[str, str], packages: Path
    ) -> Iterator[Callable[[], Backend]]:
        agent = start_agent(node, folder, base_env, packages)
        yield lambda: backend(packages, node)
        ray.kill(agent)

    def test_an_agent_that_was_killed_goes_on_with_what_runs(self, hands: Hands, place: Place) -> None:
        run = hands.start(LASTS)
        before = hands.until(run, "running")
        agent: Any = ray.get_actor(f"node/{place.node}", "raysched")
        pid = ray.get(agent.__ray_call__.remote(lambda self: os.getpid()), timeout=60)
        os.kill(pid, signal.SIGKILL)
        assert hands.until(run, "running") == before
        hands.stop(run)
        hands.until(run, "exited")


def backend(packages: Path, *nodes: NodeInfo) -> RayBackend:
    """A backend that knows these nodes."""

    async def known() -> dict[str, NodeInfo]:
        return {node.name: node for node in nodes}

    return RayBackend(packages, known)


def test_the_backend_keeps_both_contracts(node: NodeInfo, tmp_path: Path) -> None:
    checked: Backend = backend(tmp_path, node)
    assert isinstance(checked, Holding)


def test_a_working_directory_reaches_a_node_that_does_not_share_files(
    nodes: dict[str, NodeInfo], tmp_path: Path
) -> None:
    far = replace(nodes["node-b"], name=f"node-{uuid.uuid4().hex[:8]}")
    head, there = tmp_path / "head", tmp_path / "there"
    head.mkdir()
    agent = start_agent(far, there, dict(os.environ), there / "packages")
    hands = Hands(lambda: backend(head, far), Place(far.name, (), 0, 0))
    digest = pack(head, {"hello.txt": b"arrived\n"})
    assert hands.run(hands.launch("cat hello.txt", package=digest)) == "arrived\n"
    hands.close()
    ray.kill(agent)


def test_a_node_without_an_agent_delays_no_other(node: NodeInfo, tmp_path: Path) -> None:
    silent = replace(node, name="silent")
    agent = start_agent(node, tmp_path, dict(os.environ), tmp_path)
    hands = Hands(lambda: backend(tmp_path, silent, node), Place(node.name, (), 0, 0))
    run = hands.start("exit 3")
    assert hands.until(run, "exited").code == 3
    hands.restart()
    launch = new_launch("true", Place("silent", (), 0, 0))
    with pytest.raises(Unreachable, match="The raysched agent of silent does not answer"):
        hands.do(hands.backend.start(launch))
    with pytest.raises(Unreachable, match="silent"):
        hands.stop(new_launch("true").run)
    hands.do(hands.backend.forget(frozenset({run})))
    assert hands.seen(run) is None
    hands.do(hands.backend.close())
    hands.backend = backend(tmp_path, node)
    hands.close()
    ray.kill(agent)
