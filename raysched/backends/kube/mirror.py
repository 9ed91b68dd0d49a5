"""The cluster in the ledger's words: its nodes and GPUs, what others use of them, and where our pods are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from raysched.backends.base import Names
from raysched.backends.kube.cluster import Answered, Cluster
from raysched.backends.kube.devices import Has, among_all, claims_of, devices_of, gpu_id, node_info
from raysched.backends.kube.found import CLAIMS, Found, find, listed
from raysched.backends.kube.names import GOES_ON, ROLE, SYSTEM
from raysched.backends.kube.quantities import cores, mebibytes
from raysched.backends.kube.watching import Watch
from raysched.core.commands import Command, NodeGone, NodeSeen, Outside, Placed
from raysched.core.lease import Place, Slice
from raysched.core.namesakes import gone, own_name
from raysched.core.node import GPUInfo, NodeInfo
from raysched.core.request import WHOLE
from raysched.core.work import Run

OTHERS_S = 15.0
"""Time between two questions about the pods of others, and about what shares GPUs."""
RESERVATIONS = "kai-resource-reservation"
"""The namespace of the pods with which KAI Scheduler keeps the GPUs that it shares."""

Object = dict[str, Any]


class Described(NamedTuple):
    """What a node is to the ledger, and what that was worked out from."""

    node: Object
    name: str
    found: Found
    info: NodeInfo


class Mirror:
    """Watches the nodes, and asks now and then what others use. `names` tells which nodes the ledger has,
    `backend` is ours; `kai`: KAI Scheduler may be used."""

    def __init__(
        self,
        cluster: Cluster,
        changed: Callable[[], None],
        names: Names | None,
        backend: str,
        *,
        kai: bool = False,
    ) -> None:
        self._cluster = cluster
        self._backend = backend
        self._names = names
        self._kai = kai
        self._nodes = Watch(cluster, lambda: "/api/v1/nodes", {}, changed)
        self._described: dict[str, Described] = {}
        self._found = Found()
        self._others: dict[str, list[Has]] = {}
        self._claims: dict[str, list[tuple[str, str]]] = {}
        self._others_at = -OTHERS_S
        self._places: dict[str, Place] = {}

    @property
    def nodes(self) -> list[Object]:
        """The nodes as Kubernetes tells of them, once they were asked for."""
        return list(self._nodes.objects.values())

    async def tell(self, ours: Mapping[Run, Sequence[Object]]) -> list[Command]:
        """All of it. `ours` are the pods of runs that have not ended."""
        await self._nodes.ready()
        taken = await self._names() if self._names else {}
        await self._ask_others(ours)
        self._described = {
            name: self._describe(node, own_name(name, self._backend, taken))
            for name, node in self._nodes.objects.items()
        }
        infos = {name: known.info for name, known in self._described.items()}
        left = gone(self._backend, taken, {info.name for info in infos.values()})
        placed = self._put(ours, infos)
        return [
            *(NodeGone(name, self._backend) for name in left),
            *(NodeSeen(info) for info in infos.values()),
            *(Outside(info.name, self._outside(name, info)) for name, info in infos.items()),
            *placed,
        ]

    def _describe(self, node: Object, name: str) -> Described:
        """A node in the ledger's words, under its name there: worked out once for one that stays as it is."""
        known = self._described.get(node["metadata"]["name"])
        if known is not None and known.node is node and known.name == name and known.found is self._found:
            return known
        return Described(node, name, self._found, node_info(node, name, self._found, self._backend))

    async def cordon(self, node: str, on: bool) -> None:
        """Have Kubernetes put nothing new on a node, or use it again. Raises Answered."""
        change: Object = {"spec": {"unschedulable": on or None}}
        if not on:
            change["metadata"] = {"annotations": {GOES_ON: None}}
        self._nodes.put(await self._cluster.patch(node_path(node), change))

    async def label(self, node: str, labels: Mapping[str, str | None]) -> dict[str, str]:
        """Give a node labels, or (None) take them away; all that it has then. Raises Answered."""
        found = await self._cluster.patch(node_path(node), {"metadata": {"labels": dict(labels)}})
        self._nodes.put(found)
        return dict(found["metadata"].get("labels") or {})

    async def close(self) -> None:
        """Watch no more."""
        await self._nodes.close()

    # ------------------------------------------------------------ others

    async def _ask_others(self, ours: Mapping[Run, Sequence[Object]]) -> None:
        """Learn what others have, and what shares GPUs; claims also as soon as a pod of ours has some."""
        due = time.monotonic() - self._others_at >= OTHERS_S
        if due:
            found = await find(self._cluster, kai=self._kai)
            self._found = self._found if found == self._found else found
        pods = (pod for pods in ours.values() for pod in pods)
        if self._found.slices and (due or any(self._claims_something_new(pod) for pod in pods)):
            self._claims = claims_of(await listed(self._cluster, CLAIMS))
        if not due:
            return
        query = {"fieldSelector": "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"}
        try:
            found, _ = await self._cluster.list("/api/v1/pods", query)
        except Answered:
            found = []  # we may only see our own: nothing is known of others
        self._others_at = time.monotonic()
        self._others = {}
        for pod in found:
            own = SYSTEM in pod["metadata"].get("labels", {})
            if not own and pod["metadata"]["namespace"] != RESERVATIONS:
                self._others.setdefault(pod["spec"]["nodeName"], []).extend(self.has(pod))

    def _claims_something_new(self, pod: Object) -> bool:
        uid = pod["metadata"]["uid"]
        placed = pod["spec"].get("nodeName") and uid not in self._places
        return bool(placed and pod["spec"].get("resourceClaims"))

    def has(self, pod: Object) -> list[Has]:
        """All of GPUs that a pod has."""
        claimed = [Has("", 1, ids=(device,)) for _, device in self._claims.get(pod["metadata"]["uid"], ())]
        return [*devices_of(pod), *claimed]

    def _gpu_id(self, node: str, device: str) -> str:
        return gpu_id(among_all(node, self._backend), device)

    def _outside(self, name: str, info: NodeInfo) -> tuple[str, ...]:
        """The GPUs that others have whole. Where nobody tells which they are, these are the last ones of each
        kind."""
        found: list[str] = []
        counts: dict[str, int] = {}
        for has in self._others.get(name, ()):
            if has.ids:
                whole = has.share in (0, WHOLE) and not has.memory
                found += [self._gpu_id(name, id) for id in has.ids if whole]
            elif not has.share and not has.memory:
                counts[has.resource] = counts.get(has.resource, 0) + has.count
        for resource, count in counts.items():
            kind = [gpu.uuid for gpu in info.gpus if gpu.resource == resource and not gpu.parts]
            found += kind[max(0, len(kind) - count) :]
        known = {gpu.uuid for gpu in info.gpus}
        return tuple(dict.fromkeys(gpu for gpu in found if gpu in known))

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
        for has in self.has(pod):
            slices += self._slices(has, info, pod["spec"]["nodeName"], used)
        asked = [
            container.get("resources", {}).get("requests") or {} for container in pod["spec"]["containers"]
        ]
        cpus = sum(cores(one.get("cpu", "0")) for one in asked)
        return Place(info.name, tuple(slices), cpus, sum(mebibytes(one.get("memory", "0")) for one in asked))

    def _slices(self, has: Has, info: NodeInfo, node: str, used: Mapping[str, int]) -> list[Slice]:
        """The GPUs of a node that a pod has, or is taken to have."""
        if has.ids:
            ids = {self._gpu_id(node, id) for id in has.ids}
            return [_slice(gpu, has) for gpu in info.gpus if gpu.uuid in ids]
        of_kind = [gpu for gpu in info.gpus if gpu.resource == has.resource]
        # Parts go where most is taken already: nobody can tell, and so a GPU is full before the next.
        of_kind.sort(key=lambda gpu: (-used.get(gpu.uuid, 0), gpu.index))
        room = [gpu for gpu in of_kind if used.get(gpu.uuid, 0) + share_of(gpu, has) <= WHOLE]
        return [_slice(gpu, has) for gpu in room[: has.count]]


def _computes(pod: Object) -> bool:
    """Whether a pod does the work of a job, and not only submits it."""
    return pod["metadata"]["labels"].get(ROLE) != "submitter"


def _slice(gpu: GPUInfo, has: Has) -> Slice:
    share = share_of(gpu, has)
    return Slice(gpu.uuid, share, has.memory or gpu.memory * share // WHOLE)


def share_of(gpu: GPUInfo, has: Has) -> int:
    """The share of a GPU that a pod has with one of it."""
    if has.share:
        return has.share
    if has.memory and gpu.memory:
        return min(WHOLE, -(-has.memory * WHOLE // gpu.memory))
    return WHOLE // (gpu.parts or 1)


# ---------------------------------------------------------------- nodes


def name_there(node: str) -> str:
    """What Kubernetes calls a node of the ledger's."""
    return node.partition("@")[0]


def node_path(node: str) -> str:
    """Where the API server has a node of the ledger's."""
    return f"/api/v1/nodes/{name_there(node)}"
