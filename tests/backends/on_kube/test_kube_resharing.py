"""`raysched k8s sharing set`, step by step: what is written, and when a node counts as done. NVIDIA's
programs are played (`tests/plugin_play.py`); API server and eviction are real.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plugin_play
import pytest
import yaml
from kube_cluster import KubeCluster
from orders import NAMESPACE, KubeHands
from running import wait_until

from raysched.backends.base import EngineRefused
from raysched.backends.kube import plugin
from raysched.backends.kube.backend import KubeBackend
from raysched.backends.kube.evictions import Drain
from raysched.backends.kube.plugin import Sharing
from raysched.backends.kube.sharing import Look

GPU = "nvidia.com/gpu"
NODE = "reshared"
PATH = f"/api/v1/nodes/{NODE}"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
MPS = Sharing("mps", 4)
LAYOUTS = yaml.safe_load(plugin_play.LAYOUTS)["mig-configs"]


@pytest.fixture
def node(cluster: KubeCluster, installed: None) -> Iterator[str]:
    labels = {"gpu.product": "NVIDIA-A100-SXM4-80GB", "gpu.count": "2", "mig.strategy": "mixed"}
    cluster.add_node(NODE, {GPU: "2"}, {f"nvidia.com/{key}": value for key, value in labels.items()})
    yield NODE
    cluster.call("DELETE", PODS)
    wait_until(lambda: not cluster.pods(NAMESPACE), "all pods are gone", 60)
    cluster.delete_node(NODE)


def look(hands: KubeHands, sharing: Sharing, *, end: bool = False, **how: Any) -> Look:
    assert isinstance(hands.backend, KubeBackend)
    return hands.do(hands.backend.share(NODE, sharing, Drain({}, **how), end=end))


def use_a_gpu(cluster: KubeCluster, name: str = "user") -> None:
    """A pod that somebody else has on a GPU of the node."""
    container = {"name": "main", "image": "busybox", "resources": {"limits": {GPU: "1"}}}
    spec = {"nodeName": NODE, "containers": [container], "terminationGracePeriodSeconds": 1}
    cluster.call("POST", PODS, {"metadata": {"name": name}, "spec": spec})
    wait_until(lambda: cluster.get(f"{PODS}/{name}")["status"].get("phase") == "Running", "it runs", 60)


def closed(cluster: KubeCluster) -> bool:
    return bool(cluster.get(PATH)["spec"].get("unschedulable"))


def marks(cluster: KubeCluster) -> list[str]:
    return [key for key in cluster.get(PATH)["metadata"]["annotations"] if key.startswith("raysched.io/")]


def test_replicas_are_written_named_and_waited_for(hands: KubeHands, cluster: KubeCluster, node: str) -> None:
    """Case kubernetes-04: under a name of their own, so that nobody gets a part who asks for a GPU."""
    before = cluster.get(PATH)
    planned = look(hands, MPS, plan=True)
    assert (planned.state, planned.offers, planned.wanted) == ("planned", {GPU: 2}, {f"{GPU}.shared": 8})
    assert planned.changes == (
        "ConfigMap plugin-configs in nvidia: raysched-mps-4",
        "label nvidia.com/device-plugin.config=raysched-mps-4",
    )
    assert cluster.get(PATH)["metadata"]["labels"] == before["metadata"]["labels"]
    assert look(hands, MPS).state == "waiting"
    assert closed(cluster)
    assert plugin_play.configured(cluster, NODE) == {
        "version": "v1",
        "sharing": {
            "mps": {
                "renameByDefault": True,
                "failRequestsGreaterThanOne": True,
                "resources": [{"name": GPU, "replicas": 4}],
            }
        },
    }
    assert cluster.get(f"{plugin_play.CONFIGS}/plugin-configs")["data"]["default"] == "version: v1\n"
    assert look(hands, MPS).state == "waiting", "the node does not say so yet"
    with pytest.raises(EngineRefused, match="is on its way to raysched-mps-4"):
        look(hands, Sharing("whole"))
    plugin_play.play(cluster, NODE)
    assert look(hands, MPS).state == "done"
    assert (closed(cluster), marks(cluster)) == (False, [])
    assert look(hands, MPS).state == "done", "asked again it is silent"
    assert look(hands, Sharing("whole")).state == "waiting"
    plugin_play.play(cluster, NODE)
    assert look(hands, Sharing("whole")).offers == {GPU: 2}


def test_busy_gpus_are_refused_and_left_as_they_were_unless_they_are_drained(
    hands: KubeHands, cluster: KubeCluster, node: str
) -> None:
    use_a_gpu(cluster)
    with pytest.raises(EngineRefused, match="the GPUs of reshared are in use by work/user: wait"):
        look(hands, MPS)
    assert (closed(cluster), marks(cluster)) == (False, [])
    assert [one.pod for one in look(hands, MPS, plan=True).left] == ["work/user"]
    first = look(hands, MPS, end=True)
    assert (first.state, first.left[0].why) == (
        "draining",
        "nothing makes it again; --force ends it all the same",
    )
    assert closed(cluster), "nothing new gets there meanwhile"
    wait_until(lambda: look(hands, MPS, end=True, force=True).state == "waiting", "it has left", 60)
    plugin_play.play(cluster, NODE)
    assert look(hands, MPS).state == "done"


def test_a_node_that_was_cordoned_before_stays_so(hands: KubeHands, cluster: KubeCluster, node: str) -> None:
    cluster.patch(PATH, {"spec": {"unschedulable": True}})
    sliced = Sharing("time-slicing", 2)
    look(hands, sliced)
    plugin_play.play(cluster, NODE)
    assert look(hands, sliced).state == "done"
    assert closed(cluster)


def test_a_layout_is_done_when_the_manager_and_the_node_say_so(
    hands: KubeHands, cluster: KubeCluster, node: str
) -> None:
    cut = Sharing("mig", layout="all-1g.10gb")
    cluster.patch(PATH, {"metadata": {"labels": {"nvidia.com/mig.config.state": "success"}}})
    with pytest.raises(EngineRefused, match=r"has no layout 1g: it has all-1g.10gb, all-disabled, half"):
        look(hands, Sharing("mig", layout="1g"))
    assert look(hands, cut).state == "waiting"
    labels = cluster.get(PATH)["metadata"]["labels"]
    assert (labels["nvidia.com/mig.config"], labels["nvidia.com/mig.config.state"]) == (
        "all-1g.10gb",
        "pending",
    )
    plugin_play.offer(cluster, NODE, {GPU: "0", "nvidia.com/mig-1g.10gb": "14"})
    assert look(hands, cut).state == "waiting"
    cluster.patch(PATH, {"metadata": {"labels": {"nvidia.com/mig.config.state": "success"}}})
    assert look(hands, cut).state == "done"
    with pytest.raises(EngineRefused, match="cut into MIG instances: set --mig all-disabled first"):
        look(hands, MPS)
    look(hands, Sharing("mig", layout="all-disabled"))
    cluster.patch(PATH, {"metadata": {"labels": {"nvidia.com/mig.config.state": "failed"}}})
    with pytest.raises(EngineRefused, match=r"could not cut the GPUs of reshared: .* stays cordoned"):
        look(hands, Sharing("mig", layout="all-disabled"))
    assert (closed(cluster), marks(cluster)) == (True, [])


def test_without_nvidias_programs_it_is_refused(hands: KubeHands, cluster: KubeCluster, node: str) -> None:
    for daemon in (plugin_play.PLUGIN, plugin_play.MANAGER):
        cluster.call("DELETE", f"{plugin_play.DAEMONS}/{daemon['metadata']['name']}")
    try:
        with pytest.raises(EngineRefused, match=r"takes no configuration by label here: name a ConfigMap"):
            look(hands, MPS)
        with pytest.raises(EngineRefused, match="no MIG manager runs in this cluster"):
            look(hands, Sharing("mig", layout="half"))
        assert not closed(cluster)
    finally:
        for daemon in (plugin_play.PLUGIN, plugin_play.MANAGER):
            cluster.call("POST", plugin_play.DAEMONS, daemon)


# ---------------------------------------------------------------- pure


@pytest.mark.parametrize(
    ("sharing", "strategy", "wanted"),
    [
        (Sharing("whole"), "none", [{GPU: 2}]),
        (Sharing("time-slicing", 3), "none", [{f"{GPU}.shared": 6}]),
        (Sharing("mig", layout="all-disabled"), "mixed", [{GPU: 2}]),
        (Sharing("mig", layout="all-1g.10gb"), "single", [{GPU: 14}, {GPU: 8}]),
        (
            Sharing("mig", layout="half"),
            "mixed",
            [{GPU: 1, "nvidia.com/mig-1g.10gb.me": 1, "nvidia.com/mig-3g.40gb": 1}],
        ),
    ],
)
def test_what_a_node_will_offer_is_known_before(
    sharing: Sharing, strategy: str, wanted: list[dict[str, int]]
) -> None:
    assert plugin.expected(sharing, 2, LAYOUTS, strategy) == wanted


def test_the_plugin_of_the_operator_is_found_by_what_it_mounts() -> None:
    """Its volume has the ConfigMap's name, that of the chart is always called available-configs."""
    found = {**plugin_play.PLUGIN, "metadata": {"name": "a", "namespace": "gpu-operator"}}
    assert plugin.config_map([plugin_play.MANAGER, found]) == ("gpu-operator", "plugin-configs")
    manager = {**plugin_play.MANAGER, "metadata": {"name": "nvidia-mig-manager", "namespace": "gpu-operator"}}
    assert plugin.layout_file([found, manager]) == (
        "gpu-operator",
        "default-mig-parted-config",
        "config.yaml",
    )
    assert plugin.config_map([manager]) is None
