"""What a node offers, as it tells of it in the words of each way of sharing (`core/node.Way`), and what a pod
has of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from raysched.backends.kube.found import Found
from raysched.backends.kube.quantities import cores, mebibytes
from raysched.core.asking import GPU, GPU_CLASS, MIG_CLASS, PRODUCT, VOLCANO
from raysched.core.clusters import K8S
from raysched.core.node import GPUInfo, Mechanism, NodeInfo, Way
from raysched.core.request import WHOLE
from raysched.core.site import UNTYPED, profile_of

Object = dict[str, Any]

SHARED = f"{GPU}.shared"
COUNT = "nvidia.com/gpu.count"
MEMORY = "nvidia.com/gpu.memory"
REPLICAS = "nvidia.com/gpu.replicas"
STRATEGY = "nvidia.com/gpu.sharing-strategy"
HAMI = "hami.io/node-nvidia-register"
HAMI_GIVEN = "hami.io/vgpu-devices-allocated"
VOLCANO_NODE = "volcano.sh/node-vgpu-register"
VOLCANO_GIVEN = "volcano.sh/vgpu-ids-new"
"""Annotations by which HAMi and Volcano tell of a node's GPUs, and of those that a pod was given."""

_MIG = re.compile(r"nvidia\.com/mig-(?P<profile>\d+g\.\d+gb(\.[a-z.]+)?)")


def node_info(node: Object, name: str, found: Found = Found(), backend: str = K8S) -> NodeInfo:  # noqa: B008
    """A node for the ledger, under `name`, of the cluster of a backend."""
    room = node["status"].get("allocatable") or {}
    return NodeInfo(
        name=name,
        backends=(backend,),
        gpus=tuple(_gpus(node, among_all(node["metadata"]["name"], backend), room, found)),
        cpus=cores(room.get("cpu", "0")),
        memory=mebibytes(room.get("memory", "0")),
        containers="kubernetes",
        site=True,
        closed=_closed(node),
    )


def _closed(node: Object) -> str:
    """Why Kubernetes starts nothing new on a node; empty where it does."""
    conditions = {one["type"]: one for one in node["status"].get("conditions") or []}
    ready = conditions.get("Ready", {"status": "Unknown"})
    if ready["status"] != "True":
        said = ready.get("message") or ready.get("reason") or "its kubelet says nothing"
        return f"not ready: {said}"
    return "cordoned" if node["spec"].get("unschedulable") else ""


def among_all(node: str, backend: str) -> str:
    """A node of the cluster of a backend, told from those of other clusters."""
    return node if backend == K8S else f"{backend}/{node}"


def gpu_id(node: str, device: object) -> str:
    """What we call a device of a node among all: Kubernetes' own names for it are not unique."""
    return f"K8S-{hashlib.sha256(f'{node}/{device}'.encode()).hexdigest()[:16]}"


def _gpus(node: Object, name: str, room: Mapping[str, str], found: Found) -> Iterator[GPUInfo]:
    """What a node offers: each GPU once, whatever number of pods it can serve."""
    metadata = node["metadata"]
    marks = metadata.get("annotations") or {}
    if registered := read_register(marks.get(HAMI, "")):
        yield from _virtual(name, registered, GPU, "hami")
        return
    if registered := read_register(marks.get(VOLCANO_NODE, "")):
        yield from _virtual(name, registered, VOLCANO, "volcano")
        return
    offered = list(_plugin(name, metadata.get("labels") or {}, room, found))
    yield from offered or _claimed(name, found.slices.get(metadata["name"], ()))


# ---------------------------------------------------------------- device plugins


def _plugin(node: str, labels: Mapping[str, str], room: Mapping[str, str], found: Found) -> Iterator[GPUInfo]:
    """Of shared GPUs each once, with its parts."""
    index = 0
    for resource, count in sorted(room.items()):
        kind = _kind(resource, labels, int(count) if count.isdigit() else 0)
        if kind is None:
            continue
        model, number, parts, memory = kind
        held: tuple[Mechanism, ...] = ("mps",) if parts and labels.get(STRATEGY) == "mps" else ()
        way: Way = ""
        if found.kai is not None and not parts and not profile_of(model):
            way, held = "kai", found.kai
        for _ in range(number):
            yield GPUInfo(
                gpu_id(node, index),
                index,
                model,
                memory,
                mechanisms=held,
                parts=parts,
                resource=resource,
                way=way,
            )
            index += 1


def _kind(resource: str, labels: Mapping[str, str], count: int) -> tuple[str, int, int, int] | None:
    """Model, number, parts and MiB of the GPUs behind a resource of which a node has so many."""
    product = labels.get(PRODUCT, UNTYPED)
    if cut := _MIG.fullmatch(resource):
        profile = cut["profile"].replace("gb.", "gb+", 1)
        model = f"{product}-MIG-{profile}"
        return model, count, 0, _instance_memory(model)
    if resource not in (GPU, SHARED) or not count:
        return None
    if profile_of(product):  # all GPUs of the node are cut into these
        return product, count, 0, _instance_memory(product)
    told = labels.get(MEMORY, "")
    memory = int(told) if told.isdigit() else 0
    replicas = labels.get(REPLICAS, "1")
    parts = int(replicas) if replicas.isdigit() else 1
    if labels.get(STRATEGY) in ("time-slicing", "mps") and parts > 1:
        number = labels.get(COUNT, "")
        return product, int(number) if number.isdigit() else count // parts, parts, memory
    return product, count, 0, memory


def _instance_memory(model: str) -> int:
    """The MiB of a MIG instance as its name says."""
    return int(profile_of(model).partition(".")[2].partition("gb")[0]) * 10**9 // 2**20


# ---------------------------------------------------------------- HAMi and Volcano


@dataclass(frozen=True, slots=True)
class Registered:
    """A GPU as a node registered it: `memory` in MiB, `mode` how it is shared (hami-core, mig, mps)."""

    id: str
    memory: int
    model: str
    healthy: bool
    mode: str


def read_register(text: str) -> list[Registered]:
    """The GPUs in such an annotation: JSON, or devices that end in `:` with fields between `,`, as earlier
    versions write it. What can't be read is left out."""
    if not text.strip():
        return []
    try:
        told: Any = json.loads(text)
    except ValueError:
        lines = [line.split(",") for line in text.split(":") if line.strip()]
        return [one for line in lines if (one := _registered(*_fields(line))) is not None]
    devices: list[Any] = told if isinstance(told, list) else []
    return [
        one
        for device in devices
        if isinstance(device, dict)
        if (one := _registered(*(device.get(key) for key in ("id", "devmem", "type", "health", "mode"))))
    ]


def _fields(line: Sequence[str]) -> tuple[object, object, object, object, object]:
    """Id, memory, type, health and mode of: id, split, memory, [cores,] type, [NUMA,] health, [index,] mode.
    HAMi writes all of them, Volcano leaves out those in brackets."""
    if len(line) >= 7:
        return line[0], line[2], line[4], line[6], line[8] if len(line) > 8 else ""
    if len(line) >= 5:
        return line[0], line[2], line[3], line[4], line[5] if len(line) > 5 else ""
    return None, None, None, None, None


def _registered(
    id: object, memory: object, model: object, healthy: object, mode: object
) -> Registered | None:
    if not isinstance(id, str) or not isinstance(model, str) or not str(memory).isdigit():
        return None
    well = healthy is True or str(healthy).lower() == "true"
    return Registered(id, int(str(memory)), model, well, str(mode or "hami-core"))


def _virtual(node: str, registered: Sequence[Registered], resource: str, way: Way) -> Iterator[GPUInfo]:
    """Those that the library of HAMi shares; it also cuts MIG instances by itself, which is not used here."""
    for index, one in enumerate(registered):
        if one.mode == "hami-core":
            fault = "" if one.healthy else "its device plugin says that it is not healthy"
            yield GPUInfo(
                gpu_id(node, one.id),
                index,
                one.model,
                one.memory,
                mechanisms=("hami",),
                fault=fault,
                resource=resource,
                way=way,
            )


# ---------------------------------------------------------------- DRA


def _claimed(node: str, devices: Sequence[Object]) -> Iterator[GPUInfo]:
    """What can be claimed: GPUs, and MIG instances."""
    for index, device in enumerate(devices):
        told = {key: next(iter(value.values())) for key, value in (device.get("attributes") or {}).items()}
        kind, model = told.get("type"), str(told.get("productName", UNTYPED))
        if kind == "mig" and (profile := str(told.get("profile", ""))):
            model = f"{model}-MIG-{profile}"
        elif kind != "gpu":
            continue
        capacity = (device.get("capacity") or {}).get("memory") or {}
        yield GPUInfo(
            gpu_id(node, device["name"]),
            index,
            model,
            mebibytes(capacity.get("value", "0")),
            resource=MIG_CLASS if kind == "mig" else GPU_CLASS,
            way="dra",
        )


# ---------------------------------------------------------------- what a pod has


@dataclass(frozen=True, slots=True)
class Has:
    """What a pod has: `count` of a resource, of each this share (0: all that one of it is), and where its
    scheduler told them which ones these are."""

    resource: str
    count: int
    share: int = 0
    memory: int = 0
    ids: tuple[str, ...] = ()


def devices_of(pod: Object) -> list[Has]:
    """The GPUs, instances, replicas and shares that a pod asked a device plugin or a scheduler for."""
    marks = pod["metadata"].get("annotations") or {}
    found = [Has(resource, count) for resource, count in _limits(pod).items() if _is_device(resource)]
    return [*(_given(pod, has, marks) for has in found), *_fraction(marks)]


def _limits(pod: Object) -> dict[str, int]:
    found: dict[str, int] = {}
    for container in pod["spec"]["containers"]:
        for resource, count in ((container.get("resources") or {}).get("limits") or {}).items():
            if str(count).isdigit():
                found[resource] = found.get(resource, 0) + int(count)
    return found


def _is_device(resource: str) -> bool:
    return resource in (GPU, SHARED, VOLCANO) or _MIG.fullmatch(resource) is not None


def _given(pod: Object, has: Has, marks: Mapping[str, str]) -> Has:
    """With what HAMi or Volcano say that a pod was given, once they have."""
    told = marks.get({GPU: HAMI_GIVEN, VOLCANO: VOLCANO_GIVEN}.get(has.resource, ""), "")
    devices = [device.split(",") for device in re.split("[:;]", told) if device.strip()]
    if not devices or any(len(device) < 4 for device in devices):
        return has
    hundredths, memory = devices[0][3], devices[0][2]
    share = int(hundredths) * WHOLE // 100 if hundredths.isdigit() else 0
    ids = tuple(device[0] for device in devices)
    return Has(has.resource, len(ids), share, int(memory) if memory.isdigit() else 0, ids)


def _fraction(marks: Mapping[str, str]) -> Iterator[Has]:
    """What KAI Scheduler was asked for."""
    many = marks.get("gpu-fraction-num-devices", "1")
    count = int(many) if many.isdigit() else 1
    if (fraction := marks.get("gpu-fraction")) is not None:
        try:
            yield Has(GPU, count, int(Decimal(fraction) * WHOLE))
        except InvalidOperation:
            return
    elif marks.get("gpu-memory", "").isdigit():
        yield Has(GPU, count, 0, int(marks["gpu-memory"]))


def claims_of(claims: Sequence[Object]) -> dict[str, list[tuple[str, str]]]:
    """By the uid of each pod the devices that its claims got: node and the device's name there."""
    found: dict[str, list[tuple[str, str]]] = {}
    for claim in claims:
        status = claim.get("status") or {}
        results = ((status.get("allocation") or {}).get("devices") or {}).get("results") or []
        devices = [(one["pool"], one["device"]) for one in results if one["driver"] == GPU_CLASS]
        for user in status.get("reservedFor") or []:
            if user.get("resource") == "pods":
                found.setdefault(user["uid"], []).extend(devices)
    return found
