"""Nodes and objects as each project documents them, in our own form: what `raysched` finds in a cluster."""

from __future__ import annotations

import json
from typing import Any

GPU = "nvidia.com/gpu"
A100 = "NVIDIA-A100-SXM4-80GB"
MEMORY = "81920"
GUID = "GPU-00552014-5c87-89ac-b1a6-7b53aa24b0ec"

Object = dict[str, Any]

# NVIDIA's device plugin and GPU feature discovery: labels and resources.
_WHOLE = {"nvidia.com/gpu.product": A100, "nvidia.com/gpu.memory": MEMORY, "nvidia.com/gpu.count": "2"}
_SHARED = {**_WHOLE, "nvidia.com/gpu.product": f"{A100}-SHARED", "nvidia.com/gpu.replicas": "4"}

# HAMi (docs/develop/protocol.md): id, split, MiB, cores, type, NUMA, health, index, mode; and a colon.
HAMI = (
    f"{GUID},10,81920,100,NVIDIA-{A100[7:]},0,true,0,hami-core:"
    f"{GUID.replace('0055', '0056')},10,81920,100,NVIDIA-{A100[7:]},0,true,1,hami-core:"
)
# The same as JSON, as later versions write it.
HAMI_JSON = json.dumps(
    [
        {"id": GUID, "index": at, "count": 10, "devmem": 81920, "devcore": 100, "type": A100, "health": True}
        for at in range(2)
    ]
)
# Volcano's vGPU device plugin: id, split, MiB, type, health, mode.
VOLCANO = (
    f"{GUID},10,81920,{A100},true,hami-core:{GUID.replace('0055', '0056')},10,81920,{A100},true,hami-core:"
)


def node(
    name: str, resources: dict[str, str], labels: dict[str, str], annotations: dict[str, str] | None = None
) -> Object:
    """A node as the API server tells of it."""
    return {
        "metadata": {"name": name, "labels": labels, "annotations": annotations or {}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "16", "memory": "64Gi", **resources},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def kai_config(mode: str | None = "NonMemoryEnforced", **spec: Any) -> Object:
    """KAI Scheduler's settings."""
    told = {**spec, **({} if mode is None else {"global": {"gpuSharingMode": mode}})}
    return {
        "apiVersion": "kai.scheduler/v1",
        "kind": "Config",
        "metadata": {"name": "kai-config"},
        "spec": told,
    }


def resource_slice(node: str, *devices: Object, generation: int = 1) -> Object:
    """What NVIDIA's DRA driver publishes of a node."""
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node}-gpu.nvidia.com-{generation}"},
        "spec": {
            "driver": "gpu.nvidia.com",
            "nodeName": node,
            "pool": {"name": node, "generation": generation, "resourceSliceCount": 1},
            "devices": list(devices),
        },
    }


def dra_gpu(index: int) -> Object:
    """A whole GPU there."""
    return {
        "name": f"gpu-{index}",
        "attributes": {
            "type": {"string": "gpu"},
            "uuid": {"string": f"GPU-{index}"},
            "productName": {"string": "NVIDIA A100-SXM4-80GB"},
            "architecture": {"string": "Ampere"},
            "driverVersion": {"version": "580.126.9"},
        },
        "capacity": {"memory": {"value": "80Gi"}},
    }


def dra_mig(index: int, start: int, profile: str = "1g.10gb") -> Object:
    """A MIG instance there."""
    return {
        "name": f"gpu-{index}-mig-19-{start}-1",
        "attributes": {
            "type": {"string": "mig"},
            "profile": {"string": profile},
            "parentUUID": {"string": f"GPU-{index}"},
            "productName": {"string": "NVIDIA A100-SXM4-80GB"},
        },
        "capacity": {"memory": {"value": "9728Mi"}, "multiprocessors": {"value": "14"}},
    }


DEVICE_CLASSES = [
    {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": f"{kind}.nvidia.com"},
        "spec": {
            "selectors": [
                {
                    "cel": {
                        "expression": "device.driver == 'gpu.nvidia.com' && "
                        f"device.attributes['gpu.nvidia.com'].type == '{kind}'"
                    }
                }
            ]
        },
    }
    for kind in ("gpu", "mig")
]
"""The classes that NVIDIA's DRA driver installs."""

WHOLE = node("whole", {GPU: "2"}, _WHOLE)
MIXED = node("mixed", {GPU: "0", "nvidia.com/mig-1g.10gb": "7"}, _WHOLE)
SINGLE = node("single", {GPU: "7"}, {**_WHOLE, "nvidia.com/gpu.product": f"{A100}-MIG-1g.10gb"})
SLICED = node("sliced", {GPU: "8"}, {**_SHARED, "nvidia.com/gpu.sharing-strategy": "time-slicing"})
MPS = node("mps", {f"{GPU}.shared": "8"}, {**_SHARED, "nvidia.com/gpu.sharing-strategy": "mps"})
ON_HAMI = node("hami", {GPU: "20"}, {}, {"hami.io/node-nvidia-register": HAMI})
ON_VOLCANO = node(
    "volcano",
    {"volcano.sh/vgpu-number": "20", "volcano.sh/vgpu-memory": "163840"},
    {},
    {"volcano.sh/node-vgpu-register": VOLCANO},
)
CLAIMED = node("claimed", {}, {})
SLICES = [
    resource_slice("claimed", dra_gpu(0), *(dra_mig(1, start) for start in range(7))),
]

# Kueue: the part of what it makes for each Job that is looked at.
KUEUE = "/apis/kueue.x-k8s.io/v1beta2"
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
_LISTED = {"type": "array", "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
WORKLOADS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "workloads.kueue.x-k8s.io"},
    "spec": {
        "group": "kueue.x-k8s.io",
        "names": {"kind": "Workload", "plural": "workloads", "singular": "workload"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1beta2",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {"queueName": {"type": "string"}, "podSets": _LISTED},
                            },
                            "status": {"type": "object", "properties": {"conditions": _LISTED}},
                        },
                    }
                },
            }
        ],
    },
}
