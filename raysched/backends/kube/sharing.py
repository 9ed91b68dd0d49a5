"""The GPUs of a node are shared in another way: one look at a time, until the node is so.

The node is cordoned, nobody uses its GPUs any more, NVIDIA's plugin is told, the node says that it is so, and
it is used again unless somebody else had cordoned it before. How far it is stands at the node itself, in an
annotation, so that it is taken up again wherever it was cut off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from raysched.backends.base import EngineRefused
from raysched.backends.kube import plugin
from raysched.backends.kube.cluster import Answered, Cluster
from raysched.backends.kube.evictions import Drain, Left, evict
from raysched.backends.kube.names import GOES_ON
from raysched.backends.kube.plugin import CONFIG_LABEL, LAYOUT_LABEL, STATE_LABEL, Sharing

Object = dict[str, Any]

DAEMONS = "/apis/apps/v1/daemonsets"


@dataclass(frozen=True, slots=True)
class Look:
    """How far a node is. `state` is `planned` (nothing was done), `draining` (`left` still have GPUs there),
    `waiting` (for the node to say that it is so) or `done`. `changes` is what is done, in words; `offers`
    what the node has for pods now, `wanted` what it will."""

    state: str
    changes: tuple[str, ...]
    offers: Mapping[str, int]
    wanted: Mapping[str, int]
    left: tuple[Left, ...] = ()


class Setter:
    """Shares the GPUs of the nodes of a cluster; `system` is this raysched's mark, `has` tells whether a pod
    has part of a GPU. Each call raises EngineRefused, Answered and Unreachable."""

    def __init__(self, cluster: Cluster, system: str, has: Callable[[Object], bool]) -> None:
        self._cluster = cluster
        self._system = system
        self._has = has

    async def look(self, name: str, sharing: Sharing, drain: Drain, *, end: bool) -> Look:
        """Bring a node one step further to what is wanted; with `drain.plan` only say how. Those who use its
        GPUs are ended only with `end`."""
        node = await self._node(name)
        writes = await self._writes(node, sharing)
        offers = plugin.offered(node)
        goes_on = _going_on(node)
        if goes_on is not None and goes_on["to"] != sharing.name:
            raise EngineRefused(
                f"{name} is on its way to {goes_on['to']}: ask for that again, or give it up with "
                f"`raysched node uncordon {name}`"
            )
        if plugin.reached(node, sharing, writes.any_of):
            if not drain.plan:
                await self._finish(node, goes_on)
            return Look("done", (), offers, offers)
        if goes_on is not None and goes_on["told"]:
            return await self._wait(node, sharing, writes, drain)
        if why := plugin.hindrance(node, sharing):
            raise EngineRefused(f"{name}: {why}", final=True)
        changes = writes.words(node, sharing)
        if drain.plan:
            left = await self._left(name, drain)
            return Look("planned", changes, offers, writes.any_of[0], left)
        if goes_on is None:
            goes_on = await self._close(node, sharing)
        if left := await self._left(name, drain if end else _only_look(drain)):
            if not end:
                await self._finish(node, goes_on)
                raise EngineRefused(_busy(name, left))
            return Look("draining", changes, offers, writes.any_of[0], left)
        await self._tell(node, sharing, writes, goes_on)
        return Look("waiting", changes, offers, writes.any_of[0])

    async def _node(self, name: str) -> Object:
        found, _ = await self._cluster.list("/api/v1/nodes", {"fieldSelector": f"metadata.name={name}"})
        if not found:
            raise EngineRefused(f"the cluster has no node {name}")
        return found[0]

    async def _left(self, name: str, drain: Drain) -> tuple[Left, ...]:
        return tuple(await evict(self._cluster, self._system, name, drain, self._has))

    # ------------------------------------------------------------ what is written

    async def _writes(self, node: Object, sharing: Sharing) -> Writes:
        """What has to be written, and what the node offers then."""
        daemons, _ = await self._cluster.list(DAEMONS, {})
        gpus = plugin.gpus_of(node) or 0
        strategy = (node["metadata"].get("labels") or {}).get(plugin.MIG_STRATEGY, "none")
        if sharing.kind != "mig":
            where = plugin.config_map(daemons)
            if where is None:
                raise EngineRefused(NO_PLUGIN, final=True)
            return Writes(where, plugin.expected(sharing, gpus, {}, strategy))
        layouts = await self._layouts(plugin.layout_file(daemons))
        if sharing.layout not in layouts:
            known = ", ".join(sorted(layouts))
            raise EngineRefused(f"the MIG manager has no layout {sharing.layout}: it has {known}", final=True)
        return Writes(None, plugin.expected(sharing, gpus, layouts, strategy))

    async def _layouts(self, where: tuple[str, str, str] | None) -> Mapping[str, Any]:
        if where is None:
            raise EngineRefused(NO_MIG_MANAGER, final=True)
        space, name, key = where
        found = await self._cluster.get(_path(space, name)) or {}
        text = (found.get("data") or {}).get(key, "")
        try:
            told: Any = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise EngineRefused(f"the ConfigMap {name} in {space} can't be read: {error}") from None
        return told.get("mig-configs") or {}

    async def _close(self, node: Object, sharing: Sharing) -> Object:
        """Cordon a node, and write down why."""
        goes_on = {
            "to": sharing.name,
            "told": False,
            "cordoned": not node["spec"].get("unschedulable"),
        }
        await self._patch(node, {"spec": {"unschedulable": True}, **_annotated(goes_on)})
        return goes_on

    async def _tell(self, node: Object, sharing: Sharing, writes: Writes, goes_on: Object) -> None:
        """Write the plugin's configuration, and name it at the node."""
        labels: dict[str, str] = {CONFIG_LABEL: sharing.name}
        if writes.where is not None:
            await self._write(*writes.where, sharing)
        else:
            # Else the state of the last layout would be taken for that of this one.
            labels = {LAYOUT_LABEL: sharing.name, STATE_LABEL: "pending"}
        change = _annotated({**goes_on, "told": True})
        await self._patch(node, {"metadata": {**change["metadata"], "labels": labels}})

    async def _write(self, space: str, name: str, sharing: Sharing) -> None:
        data = {"data": {sharing.name: yaml.safe_dump(plugin.config(sharing), sort_keys=False)}}
        try:
            await self._cluster.patch(_path(space, name), data)
        except Answered as error:
            if not error.missing:
                raise
            made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **data}
            await self._cluster.create(_path(space), made)

    async def _wait(self, node: Object, sharing: Sharing, writes: Writes, drain: Drain) -> Look:
        name = node["metadata"]["name"]
        if sharing.kind == "mig" and node["metadata"]["labels"].get(STATE_LABEL) == "failed":
            await self._patch(node, _annotated(None))
            raise EngineRefused(
                f"NVIDIA's MIG manager could not cut the GPUs of {name}: see its log there; the node stays "
                f"cordoned, `raysched node uncordon {name}` uses it again",
                final=True,
            )
        state = "planned" if drain.plan else "waiting"
        return Look(state, writes.words(node, sharing), plugin.offered(node), writes.any_of[0])

    async def _finish(self, node: Object, goes_on: Object | None) -> None:
        """Use the node again, if it was cordoned for this."""
        if goes_on is not None:
            opened = {"spec": {"unschedulable": None}} if goes_on["cordoned"] else {}
            await self._patch(node, {**opened, **_annotated(None)})

    async def _patch(self, node: Object, change: Object) -> None:
        await self._cluster.patch(f"/api/v1/nodes/{node['metadata']['name']}", change)


@dataclass(frozen=True, slots=True)
class Writes:
    """The ConfigMap that is written to (namespace and name; None: none is), and what the node then offers:
    any of these."""

    where: tuple[str, str] | None
    any_of: list[dict[str, int]]

    def words(self, node: Object, sharing: Sharing) -> tuple[str, ...]:
        """What is written where."""
        label = LAYOUT_LABEL if self.where is None else CONFIG_LABEL
        before = (node["metadata"].get("labels") or {}).get(label)
        named = f"label {label}={sharing.name}" + (f" (was {before})" if before else "")
        if self.where is None:
            return (named,)
        space, name = self.where
        return (f"ConfigMap {name} in {space}: {sharing.name}", named)


NO_PLUGIN = (
    "NVIDIA's device plugin takes no configuration by label here: name a ConfigMap in its Helm chart "
    "(config.name) or in the GPU Operator's ClusterPolicy (devicePlugin.config.name)"
)
NO_MIG_MANAGER = "no MIG manager runs in this cluster: install NVIDIA's GPU Operator with migManager.enabled"


def _path(space: str, name: str = "") -> str:
    path = f"/api/v1/namespaces/{space}/configmaps"
    return f"{path}/{name}" if name else path


def _going_on(node: Object) -> Object | None:
    text = (node["metadata"].get("annotations") or {}).get(GOES_ON)
    try:
        return None if text is None else dict(json.loads(text))
    except ValueError:  # somebody wrote into it
        return None


def _annotated(goes_on: Object | None) -> Object:
    text = None if goes_on is None else json.dumps(goes_on, sort_keys=True)
    return {"metadata": {"annotations": {GOES_ON: text}}}


def _only_look(drain: Drain) -> Drain:
    return Drain(drain.stay, drain.force, drain.emptydir, plan=True)


def _busy(name: str, left: tuple[Left, ...]) -> str:
    who = ", ".join(one.pod for one in left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
    return f"the GPUs of {name} are in use by {who}: wait until they end, or end them first with --drain"
