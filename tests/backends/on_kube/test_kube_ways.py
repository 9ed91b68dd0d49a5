"""What shares GPUs in a cluster, on a real API server and scheduler: KAI by its settings, HAMi and
Volcano by what their nodes register, DRA by its slices. The schedulers of the first three are not there: a
test puts a pod where theirs would, and says of it what theirs would say.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import documented
import pytest
from kube_cluster import KubeCluster
from orders import NAMESPACE, KubeHands, ordered
from running import wait_until

from raysched.backends.base import Backend
from raysched.core.commands import NodeSeen, Placed
from raysched.core.lease import Slice
from raysched.core.pods import demand
from raysched.core.request import Request
from raysched.core.site import NOWHERE, Site
from raysched.core.work import Launch, Order, Run
from raysched.testing.conformance import LASTS, new_launch

LABELS = {"nvidia.com/gpu.product": documented.A100, "nvidia.com/gpu.memory": "81920"}
CONFIGS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "configs.kai.scheduler"},
    "spec": {
        "group": "kai.scheduler",
        "names": {"kind": "Config", "plural": "configs", "singular": "config", "listKind": "ConfigList"},
        "scope": "Cluster",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "admission": {
                                        "type": "object",
                                        "properties": {"gpuSharing": {"type": "boolean"}},
                                    },
                                    "global": {
                                        "type": "object",
                                        "properties": {
                                            "gpuSharingMode": {
                                                "type": "string",
                                                "enum": [
                                                    "Disabled",
                                                    "NonMemoryEnforced",
                                                    "HamiCore",
                                                    "NvFractions",
                                                ],
                                            }
                                        },
                                    },
                                },
                            }
                        },
                    }
                },
            }
        ],
    },
}
"""The part of KAI Scheduler's settings that is looked at."""


@contextmanager
def one_node(cluster: KubeCluster, name: str, resources: dict[str, str], **marks: str) -> Generator[None]:
    with cluster.node(name, resources=resources, labels=LABELS if not marks else None):
        if marks:
            cluster.patch(f"/api/v1/nodes/{name}", {"metadata": {"annotations": marks}})
        yield


def told(hands: KubeHands) -> list[Any]:
    return list(hands.do(hands.backend.mirror()))  # type: ignore[attr-defined]


def node(hands: KubeHands, name: str) -> Any:
    nodes = (one.node for one in told(hands) if isinstance(one, NodeSeen))
    return next((node for node in nodes if node.name == name), None)


def asking(hands: KubeHands, name: str, request: Request) -> Launch:
    """A launch that asks for this on the cluster, whose one node with GPUs this is."""
    info = wait_until(
        lambda: (found := node(hands, name)) is not None and found.gpus and found, "it is seen", 60
    )
    return replace(ordered(new_launch(LASTS, NOWHERE)), order=Order(demand(Site((info,)), request)))


def put(cluster: KubeCluster, hands: KubeHands, run: Run, where: str, **marks: str) -> Any:
    """Put the pod of a run on a node, as another scheduler would."""
    pod = wait_until(lambda: hands.pods(run), "its pod is made", 60)[0]
    bind(cluster, pod, where, **marks)
    hands.until(run, "running")
    return pod


def bind(cluster: KubeCluster, pod: Any, where: str, **marks: str) -> None:
    """Put a pod on a node."""
    assert "nodeName" not in pod["spec"], "another scheduler took it"
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}"
    cluster.patch(path, {"metadata": {"annotations": marks}})
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod["metadata"]["name"]},
        "target": {"apiVersion": "v1", "kind": "Node", "name": where},
    }
    cluster.call("POST", f"{path}/binding", binding)


def slices(hands: KubeHands, run: Run) -> tuple[Slice, ...]:
    """What the ledger is told that a run has, once it is."""

    def found() -> Any:
        ours = [one for one in told(hands) if isinstance(one, Placed) and one.lease == f"{run.job}.1"]
        return ours and ours[0].places[0].slices

    return wait_until(found, "it is placed", 60)


@pytest.fixture
def with_kai(cluster: KubeCluster, make: Callable[..., Backend]) -> Iterator[KubeHands]:
    """A backend whose jobs have a queue of KAI Scheduler."""
    hands = KubeHands(lambda: make(kai={"default": "team-a"}), cluster)
    yield hands
    hands.close()


def test_kai_scheduler_is_found_by_its_settings_and_asked_by_annotations(
    cluster: KubeCluster, with_kai: KubeHands
) -> None:
    hands = with_kai
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    with cluster.made((crds, CONFIGS)), one_node(cluster, "kai", {"nvidia.com/gpu": "2"}):
        configs = "/apis/kai.scheduler/v1/configs"
        wait_until(lambda: cluster.get(configs), "the kind is known", 60)
        with cluster.made((configs, documented.kai_config("HamiCore"))):
            share = Request(share=2_500, sharing="fraction", isolation="hard", backends=("k8s",))
            run = hands.start(asking(hands, "kai", share))
            pod = put(cluster, hands, run, "kai")
            assert pod["spec"]["schedulerName"] == "kai-scheduler"
            assert pod["metadata"]["labels"]["kai.scheduler/queue"] == "team-a"
            assert pod["metadata"]["annotations"]["gpu-fraction"] == "0.25"
            assert "limits" not in pod["spec"]["containers"][0]["resources"]
            (only,) = slices(hands, run)
            assert (only.share, only.memory) == (2_500, 20_480)


def test_hami_and_volcano_say_which_gpu_a_pod_was_given(cluster: KubeCluster, hands: KubeHands) -> None:
    second = documented.GUID.replace("0055", "0056")
    given = f"{second},NVIDIA,8192,10:;"
    request = Request(memory=8_192, sharing="fraction", isolation="hard", backends=("k8s",))
    for name, resources, register, mark in (
        ("hami", {"nvidia.com/gpu": "20"}, documented.HAMI, "hami.io/vgpu-devices-allocated"),
        ("volcano", {"volcano.sh/vgpu-number": "20"}, documented.VOLCANO, "volcano.sh/vgpu-ids-new"),
    ):
        key = "hami.io/node-nvidia-register" if name == "hami" else "volcano.sh/node-vgpu-register"
        with one_node(cluster, name, resources, **{key: register}):
            run = hands.start(asking(hands, name, request))
            put(cluster, hands, run, name, **{mark: given})
            (only,) = slices(hands, run)
            assert (only.gpu, only.memory, only.share) == (node(hands, name).gpus[1].uuid, 8_192, 1_000)


def test_instances_are_claimed_and_the_scheduler_says_which_they_are(
    cluster: KubeCluster, hands: KubeHands
) -> None:
    """By DRA; all of it is real but for the driver on the node."""
    group = "/apis/resource.k8s.io/v1"
    instances = [documented.dra_mig(1, start) for start in range(2)]
    devices = documented.resource_slice("claimed", documented.dra_gpu(0), *instances)
    things = [
        *((f"{group}/deviceclasses", one) for one in documented.DEVICE_CLASSES),
        (f"{group}/resourceslices", devices),
    ]
    with one_node(cluster, "claimed", {}), cluster.made(*things):
        request = Request(gpus=2, sharing="mig", mig_profile="1g.10gb", backends=("k8s",))
        run = hands.start(asking(hands, "claimed", request))
        hands.until(run, "running")
        whole, *cut = node(hands, "claimed").gpus
        assert {one.gpu for one in slices(hands, run)} == {gpu.uuid for gpu in cut}
        other = hands.start(asking(hands, "claimed", Request(backends=("k8s",))))
        hands.until(other, "running")
        assert [one.gpu for one in slices(hands, other)] == [whole.uuid]
