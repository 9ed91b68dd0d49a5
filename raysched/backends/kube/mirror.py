"""The cluster in the ledger's words: its nodes and GPUs, what others use of them, and where our pods are."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from raysched.backends.kube.cluster import Answered, Cluster
from raysched.backends.kube.manifest import GPU, PRODUCT
from raysched.backends.kube.names import ROLE, SYSTEM
from raysched.backends.kube.quantities import cores, mebibytes
from raysched.backends.kube.watching import Watch
from raysched.core.commands import Command, NodeGone, NodeSeen, Outside, Placed
from raysched.core.lease import Place, Slice
from raysched.core.node import GPUInfo, Mechanism, NodeInfo
from raysched.core.request import WHOLE
from raysched.core.site import UNTYPED, profile_of
from raysched.core.work import Run

OTHERS_S = 15.0
"""Time between two questions about the pods of others."""
SHARED = f"{GPU}.shared"
COUNT = "nvidia.com/gpu.count"
MEMORY = "nvidia.com/gpu.memory"
REPLICAS = "nvidia.com/gpu.replicas"
STRATEGY = "nvidia.com/gpu.sharing-strategy"
_MIG = re.compile(r"nvidia\.com/mig-(?P<profile>\d+g\.\d+gb(\.[a-z.]+)?)")
_SHARED_MODEL = "-SHARED"

Object = dict[str, Any]
Nodes = Callable[[], Awaitable[Mapping[str, NodeInfo]]]


class Mirror:
    """Watches the nodes, and asks now and then what others use. `beside` tells which nodes the ledger has."""

    def __init__(self, cluster: Cluster, changed: Callable[[], None], beside: Nodes | None) -> None:
        self._cluster = cluster
        self._beside = beside
        self._nodes = Watch(cluster, lambda: "/api/v1/nodes", {}, changed)
        self._told: set[str] = set()
        self._others: dict[str, dict[str, int]] = {}
        self._others_at = -OTHERS_S
        self._places: dict[str, Place] = {}

    @property
    def nodes(self) -> list[Object]:
        """The nodes as Kubernetes tells of them, once they were asked for."""
        return list(self._nodes.objects.values())

    async def tell(self, ours: Mapping[Run, Sequence[Object]]) -> list[Command]:
        """All of it. `ours` are the pods of runs that have not ended."""
        await self._nodes.ready()
        beside = await self._beside() if self._beside else {}
        infos = {name: node_info(node, _name(name, beside)) for name, node in self._nodes.objects.items()}
        await self._ask_others()
        names = {info.name for info in infos.values()}
        gone = [NodeGone(name) for name in self._told - names]
        self._told = names
        placed = self._put(ours, infos)
        return [
            *gone,
            *(NodeSeen(info) for info in infos.values()),
            *(Outside(info.name, self._outside(name, info)) for name, info in infos.items()),
            *placed,
        ]

    async def cordon(self, node: str, on: bool) -> None:
        """Have Kubernetes put nothing new on a node, or use it again. Raises Answered."""
        path = f"/api/v1/nodes/{node.partition('@')[0]}"
        self._nodes.put(await self._cluster.patch(path, {"spec": {"unschedulable": on or None}}))

    async def close(self) -> None:
        """Watch no more."""
        await self._nodes.close()

    # ------------------------------------------------------------ others

    async def _ask_others(self) -> None:
        if time.monotonic() - self._others_at < OTHERS_S:
            return
        query = {"fieldSelector": "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"}
        try:
            pods, _ = await self._cluster.list("/api/v1/pods", query)
        except Answered:
            pods = []  # we may only see our own: nothing is known of others
        self._others_at = time.monotonic()
        self._others = {}
        for pod in pods:
            if SYSTEM not in pod["metadata"].get("labels", {}):
                used = self._others.setdefault(pod["spec"]["nodeName"], {})
                for resource, count in devices(pod).items():
                    used[resource] = used.get(resource, 0) + count

    def _outside(self, name: str, info: NodeInfo) -> tuple[str, ...]:
        """The GPUs that others have whole: the last ones of each kind, as nobody tells which they are."""
        found: list[str] = []
        for resource, count in self._others.get(name, {}).items():
            kind = [gpu.uuid for gpu in info.gpus if gpu.resource == resource and not gpu.parts]
            found += kind[max(0, len(kind) - count) :]
        return tuple(found)

    # ------------------------------------------------------------ ours

    def _put(self, ours: Mapping[Run, Sequence[Object]], infos: Mapping[str, NodeInfo]) -> Iterator[Placed]:
        """Where our leases are. Kubernetes does not tell which GPU of a node a pod has: each gets one that no
        other pod of ours has, and keeps it."""
        ours = {run: [pod for pod in pods if _computes(pod)] for run, pods in ours.items()}
        running = {
            pod["metadata"]["uid"]: pod
            for pods in ours.values()
            for pod in pods
            if pod["status"].get("phase") in ("Pending", "Running") and pod["spec"].get("nodeName") in infos
        }
        self._places = {uid: place for uid, place in self._places.items() if uid in running}
        for uid, pod in sorted(running.items(), key=lambda item: item[1]["metadata"]["creationTimestamp"]):
            if uid not in self._places:
                self._places[uid] = self._place(pod, infos[pod["spec"]["nodeName"]])
        for run, pods in ours.items():
            places = [self._places[uid] for pod in pods if (uid := pod["metadata"]["uid"]) in self._places]
            if places and len(places) == len(pods):
                yield Placed(f"{run.job}.{run.attempt}", tuple(places))

    def _place(self, pod: Object, info: NodeInfo) -> Place:
        used: dict[str, int] = {}
        for place in self._places.values():
            for slice in place.slices if place.node == info.name else ():
                used[slice.gpu] = used.get(slice.gpu, 0) + slice.share
        slices: list[Slice] = []
        for resource, count in devices(pod).items():
            of_kind = [gpu for gpu in info.gpus if gpu.resource == resource]
            # Parts go where most is taken already: nobody can tell, and so a GPU is full before the next.
            of_kind.sort(key=lambda gpu: (-used.get(gpu.uuid, 0), gpu.index))
            room = [gpu for gpu in of_kind if used.get(gpu.uuid, 0) + share_of(gpu) <= WHOLE]
            slices += [
                Slice(gpu.uuid, share_of(gpu), gpu.memory * share_of(gpu) // WHOLE) for gpu in room[:count]
            ]
        asked = [
            container.get("resources", {}).get("requests") or {} for container in pod["spec"]["containers"]
        ]
        cpus = sum(cores(one.get("cpu", "0")) for one in asked)
        return Place(info.name, tuple(slices), cpus, sum(mebibytes(one.get("memory", "0")) for one in asked))


def _computes(pod: Object) -> bool:
    """Whether a pod does the work of a job, and not only submits it."""
    return pod["metadata"]["labels"].get(ROLE) != "submitter"


def share_of(gpu: GPUInfo) -> int:
    """The share of a GPU that one of what the node offers is."""
    return WHOLE // (gpu.parts or 1)


def devices(pod: Object) -> dict[str, int]:
    """How many GPUs, instances or replicas a pod has, by resource."""
    found: dict[str, int] = {}
    for container in pod["spec"]["containers"]:
        limits = container.get("resources", {}).get("limits") or {}
        for resource, count in limits.items():
            if resource in (GPU, SHARED) or _MIG.fullmatch(resource):
                found[resource] = found.get(resource, 0) + int(count)
    return found


# ---------------------------------------------------------------- nodes


def _name(name: str, beside: Mapping[str, NodeInfo]) -> str:
    """A node's own name, or with the cluster's behind it where another backend has one of that name."""
    known = beside.get(name)
    return name if known is None or "k8s" in known.backends else f"{name}@k8s"


def node_info(node: Object, name: str) -> NodeInfo:
    """A node for the ledger, under `name`."""
    room = node["status"].get("allocatable") or {}
    return NodeInfo(
        name=name,
        backends=("k8s",),
        gpus=tuple(_gpus(node["metadata"]["name"], node["metadata"].get("labels") or {}, room)),
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


def _gpus(node: str, labels: Mapping[str, str], room: Mapping[str, str]) -> Iterator[GPUInfo]:
    """What a node offers: of shared GPUs each once, with its parts."""
    index = 0
    for resource, count in sorted(room.items()):
        kind = _kind(resource, labels, int(count) if count.isdigit() else 0)
        if kind is None:
            continue
        model, number, parts, memory = kind
        mps: tuple[Mechanism, ...] = ("mps",) if parts and labels.get(STRATEGY) == "mps" else ()
        for _ in range(number):
            uuid = f"K8S-{hashlib.sha256(f'{node}/{index}'.encode()).hexdigest()[:16]}"
            yield GPUInfo(uuid, index, model, memory, mechanisms=mps, parts=parts, resource=resource)
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
