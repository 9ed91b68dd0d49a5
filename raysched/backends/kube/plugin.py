"""How NVIDIA's device plugin and MIG manager are told what a node's GPUs are to be, and how one sees that
they are. Pure.

The plugin (k8s-device-plugin, also in the GPU Operator) has named configurations in a ConfigMap, and takes
the one that a label of its node names. The MIG manager (mig-parted) does the same with layouts, and says in
another label how far it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raysched.backends.kube.devices import COUNT, REPLICAS, SHARED, STRATEGY
from raysched.core.asking import GPU

Object = dict[str, Any]
Kind = Literal["whole", "time-slicing", "mps", "mig"]

CONFIG_LABEL = "nvidia.com/device-plugin.config"
"""The label of a node with the name of the plugin's configuration there."""
LAYOUT_LABEL = "nvidia.com/mig.config"
STATE_LABEL = "nvidia.com/mig.config.state"
"""The labels of a node with the name of its MIG layout, and how far the MIG manager is with it."""
MIG_STRATEGY = "nvidia.com/mig.strategy"
MPS_CAPABLE = "nvidia.com/mps.capable"
INSTANCE = "nvidia.com/mig-"
MOST_REPLICAS = 64

_SHARED_KINDS = {"time-slicing": "timeSlicing", "mps": "mps"}


@dataclass(frozen=True, slots=True)
class Sharing:
    """What the GPUs of a node are to be: whole, in so many `replicas`, or cut by the MIG `layout`."""

    kind: Kind
    replicas: int = 1
    layout: str = ""

    @property
    def name(self) -> str:
        """What the plugin's configuration, or the layout, is called."""
        if self.kind == "mig":
            return self.layout
        return "raysched-whole" if self.kind == "whole" else f"raysched-{self.kind}-{self.replicas}"

    @property
    def words(self) -> str:
        """For people: `4 replicas by mps`."""
        if self.kind == "mig":
            return f"the MIG layout {self.layout}"
        return "whole" if self.kind == "whole" else f"{self.replicas} replicas each by {self.kind}"


def config(sharing: Sharing) -> Object:
    """The plugin's configuration. Replicas have a name of their own, so that nobody who asks for a GPU gets
    one, and a pod gets at most one: two may be of one GPU."""
    if sharing.kind not in _SHARED_KINDS:
        return {"version": "v1"}
    replicated: Object = {
        "renameByDefault": True,
        "failRequestsGreaterThanOne": True,
        "resources": [{"name": GPU, "replicas": sharing.replicas}],
    }
    return {"version": "v1", "sharing": {_SHARED_KINDS[sharing.kind]: replicated}}


# ---------------------------------------------------------------- where they are configured


def config_map(daemons: Sequence[Object]) -> tuple[str, str] | None:
    """Namespace and name of the ConfigMap from which the plugin takes the configuration that a node's label
    names, by all DaemonSets of the cluster; None where it takes none by label."""
    for daemon, container, variables in _containers(daemons):
        if variables.get("NODE_LABEL") == CONFIG_LABEL and "CONFIG_FILE_SRCDIR" in variables:
            folder = variables["CONFIG_FILE_SRCDIR"]
            if (name := _mounted(daemon, container, folder)) is not None:
                return daemon["metadata"]["namespace"], name
    return None


def layout_file(daemons: Sequence[Object]) -> tuple[str, str, str] | None:
    """Namespace, name and key of the ConfigMap with the MIG manager's layouts; None where there is none."""
    for daemon, container, variables in _containers(daemons):
        folder, _, file = variables.get("CONFIG_FILE", "").rpartition("/")
        if "mig" in daemon["metadata"]["name"] and (name := _mounted(daemon, container, folder)) is not None:
            return daemon["metadata"]["namespace"], name, file
    return None


def _containers(daemons: Sequence[Object]) -> Iterator[tuple[Object, Object, dict[str, str]]]:
    for daemon in daemons:
        for container in daemon["spec"]["template"]["spec"]["containers"]:
            variables = {one["name"]: one.get("value", "") for one in container.get("env") or []}
            yield daemon, container, variables


def _mounted(daemon: Object, container: Object, folder: str) -> str | None:
    """The ConfigMap that a container has in a folder."""
    mounts = container.get("volumeMounts") or []
    names = {mount["name"] for mount in mounts if folder and mount["mountPath"].rstrip("/") == folder}
    for volume in daemon["spec"]["template"]["spec"].get("volumes") or []:
        if volume["name"] in names and "configMap" in volume:
            return str(volume["configMap"]["name"])
    return None


# ---------------------------------------------------------------- what a node offers then


def offered(node: Object) -> dict[str, int]:
    """The GPUs, replicas and instances that a node has for pods."""
    room = node["status"].get("allocatable") or {}
    return {
        resource: int(count)
        for resource, count in sorted(room.items())
        if (resource in (GPU, SHARED) or resource.startswith(INSTANCE)) and count.isdigit() and int(count)
    }


def expected(sharing: Sharing, gpus: int, layouts: Mapping[str, Any], strategy: str) -> list[dict[str, int]]:
    """What a node with so many GPUs offers once its GPUs are so: any of these. `layouts` are the MIG
    manager's, `strategy` the node's for MIG."""
    if sharing.kind != "mig":
        return [{GPU: gpus} if sharing.kind == "whole" else {SHARED: gpus * sharing.replicas}]
    entries: list[Object] = list(layouts[sharing.layout])
    # With a filter an entry is for some models only, and nobody tells here which ones a node has.
    choices = [[one] for one in entries] if any("device-filter" in one for one in entries) else [entries]
    return [_instances(choice, gpus, strategy) for choice in choices]


def _instances(entries: Sequence[Object], gpus: int, strategy: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for entry in entries:
        devices = entry["devices"]
        many = len(devices) if isinstance(devices, list) else gpus
        if not entry["mig-enabled"]:
            found[GPU] += many
        for profile, count in (entry.get("mig-devices") or {}).items():
            resource = GPU if strategy == "single" else INSTANCE + re.sub(r"\+", ".", profile)
            found[resource] += count * many
    return {resource: count for resource, count in sorted(found.items()) if count}


def reached(node: Object, sharing: Sharing, any_of: Sequence[Mapping[str, int]]) -> bool:
    """Whether a node is as it should be, in all that it tells: its labels lag behind what it offers, and the
    other way round."""
    labels = node["metadata"].get("labels") or {}
    if labels.get(LAYOUT_LABEL if sharing.kind == "mig" else CONFIG_LABEL) != sharing.name:
        return False
    if offered(node) not in list(any_of):
        return False
    if sharing.kind == "mig":
        return labels.get(STATE_LABEL) == "success"
    shared = labels.get(STRATEGY, "none") if sharing.kind == "whole" else sharing.kind
    replicas = "1" if sharing.kind == "whole" else str(sharing.replicas)
    return labels.get(STRATEGY, "none") == shared and labels.get(REPLICAS, "1") in (replicas, "0")


def gpus_of(node: Object) -> int | None:
    """How many GPUs a node has; None where it does not tell."""
    labels = node["metadata"].get("labels") or {}
    if (count := labels.get(COUNT, "")).isdigit():
        return int(count)
    found = offered(node)
    return found[GPU] if set(found) == {GPU} and labels.get(STRATEGY, "none") == "none" else None


def hindrance(node: Object, sharing: Sharing) -> str:
    """Why the GPUs of a node can't be so; empty where they can."""
    labels = node["metadata"].get("labels") or {}
    shared = labels.get(STRATEGY, "none") in ("time-slicing", "mps")
    cut = [resource for resource in offered(node) if resource.startswith(INSTANCE)]
    if not offered(node):
        return "its GPUs are not offered to pods: see `raysched k8s doctor`"
    if gpus_of(node) is None:
        return "it does not tell how many GPUs it has: GPU feature discovery has to run there"
    if sharing.kind == "mig" and shared:
        return "its GPUs are given out in replicas: set --whole first"
    if sharing.kind == "mig" and labels.get(MIG_STRATEGY, "none") == "none":
        return "the device plugin there offers no MIG instances: its MIG strategy is none"
    if sharing.kind in _SHARED_KINDS and (cut or "-MIG-" in labels.get("nvidia.com/gpu.product", "")):
        return "its GPUs are cut into MIG instances: set --mig all-disabled first"
    if sharing.kind == "mps" and labels.get(MPS_CAPABLE, "true") != "true":
        return "its GPUs can't be shared by MPS"
    return ""
