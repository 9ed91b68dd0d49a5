"""NVIDIA's device plugin, GPU feature discovery and MIG manager, played: the objects by which each is set up,
in the form that its project documents (the chart of k8s-device-plugin, the assets of the GPU Operator), and
what they do at a node once its label says so. The kubelet's part, too: what a node offers is patched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from kube_cluster import KubeCluster

SPACE = "nvidia"
CONFIGS = f"/api/v1/namespaces/{SPACE}/configmaps"
DAEMONS = f"/apis/apps/v1/namespaces/{SPACE}/daemonsets"
LAYOUTS = """\
version: v1
mig-configs:
  all-disabled:
    - devices: all
      mig-enabled: false
  all-1g.10gb:
    - device-filter: ["0x233010DE", "0x20B210DE"]
      devices: all
      mig-enabled: true
      mig-devices:
        "1g.10gb": 7
    - device-filter: ["0x20B010DE"]
      devices: all
      mig-enabled: true
      mig-devices:
        "1g.10gb": 4
  half:
    - devices: [0]
      mig-enabled: true
      mig-devices:
        "3g.40gb": 1
        "1g.10gb+me": 1
    - devices: [1]
      mig-enabled: false
"""


def daemon(name: str, variables: Mapping[str, str], folder: str, config_map: str) -> dict[str, Any]:
    """A DaemonSet, on no node here, with a ConfigMap in a folder."""
    app = {"app": name}
    container = {
        "name": name,
        "image": "nvidia",
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "volumeMounts": [{"name": "some", "mountPath": folder}],
    }
    volumes = [{"name": "some", "configMap": {"name": config_map}}]
    spec = {"containers": [container], "volumes": volumes, "nodeSelector": {"nowhere": "yes"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": app}, "template": {"metadata": {"labels": app}, "spec": spec}},
    }


PLUGIN = daemon(
    "nvidia-device-plugin",
    {"NODE_LABEL": "nvidia.com/device-plugin.config", "CONFIG_FILE_SRCDIR": "/available-configs"},
    "/available-configs",
    "plugin-configs",
)
MANAGER = daemon(
    "nvidia-mig-manager",
    {"CONFIG_FILE": "/mig-parted-config/config.yaml"},
    "/mig-parted-config",
    "default-mig-parted-config",
)


def install(cluster: KubeCluster) -> None:
    """Both of them, as an administrator has them."""
    cluster.add_namespace(SPACE)
    layouts = {"metadata": {"name": "default-mig-parted-config"}, "data": {"config.yaml": LAYOUTS}}
    for made in ({"metadata": {"name": "plugin-configs"}, "data": {"default": "version: v1\n"}}, layouts):
        cluster.call("POST", CONFIGS, made)
    for made in (PLUGIN, MANAGER):
        cluster.call("POST", DAEMONS, made)


def _labels(cluster: KubeCluster, node: str) -> dict[str, str]:
    return cluster.get(f"/api/v1/nodes/{node}")["metadata"]["labels"]


def offer(cluster: KubeCluster, node: str, offers: Mapping[str, str], **labels: str) -> None:
    """What the kubelet then tells, and feature discovery: `gpu_replicas` is nvidia.com/gpu.replicas."""
    told = {
        f"nvidia.com/{key.replace('_', '.', 1).replace('_', '-')}": value for key, value in labels.items()
    }
    cluster.patch(f"/api/v1/nodes/{node}", {"metadata": {"labels": told}})
    cluster.patch(f"/api/v1/nodes/{node}/status", {"status": {"allocatable": dict(offers)}})


def is_told(cluster: KubeCluster, node: str) -> bool:
    """Whether a node's label names a configuration."""
    return "nvidia.com/device-plugin.config" in _labels(cluster, node)


def configured(cluster: KubeCluster, node: str) -> dict[str, Any]:
    """The configuration that the plugin of a node takes by its label."""
    name = _labels(cluster, node)["nvidia.com/device-plugin.config"]
    return yaml.safe_load(cluster.get(f"{CONFIGS}/plugin-configs")["data"][name])


def play(cluster: KubeCluster, node: str) -> None:
    """The plugin takes its configuration: what is shared is offered under its own name."""
    sharing = configured(cluster, node).get("sharing", {})
    count = int(_labels(cluster, node)["nvidia.com/gpu.count"])
    for kind, strategy in (("timeSlicing", "time-slicing"), ("mps", "mps")):
        if kind in sharing:
            (resource,) = sharing[kind]["resources"]
            name = f"{resource['name']}.shared" if sharing[kind]["renameByDefault"] else resource["name"]
            replicas = resource["replicas"]
            offers = {"nvidia.com/gpu": "0", name: str(count * replicas)}
            offer(cluster, node, offers, gpu_sharing_strategy=strategy, gpu_replicas=str(replicas))
            return
    offers = {"nvidia.com/gpu": str(count), "nvidia.com/gpu.shared": "0"}
    offer(cluster, node, offers, gpu_sharing_strategy="none", gpu_replicas="1")
