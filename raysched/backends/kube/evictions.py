"""The pods of a node that is drained: each is asked to leave through Kubernetes' eviction API, which keeps to
PodDisruptionBudgets. What may not leave is told, with the reason. One look at a time: whoever drains asks
again until nobody is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raysched.backends.kube.cluster import Cluster
from raysched.backends.kube.names import NAME, SYSTEM
from raysched.core.work import Run

Object = dict[str, Any]

MIRROR = "kubernetes.io/config.mirror"
"""The annotation of a pod that the kubelet itself keeps, from a file."""


@dataclass(frozen=True, slots=True)
class Drain:
    """How a node is drained. `stay` are the jobs of ours that may not be ended, each with the reason;
    `force`: pods that nothing makes again are ended too; `emptydir`: and those whose data goes with them.
    With `plan` nothing is ended."""

    stay: Mapping[str, str]
    force: bool = False
    emptydir: bool = False
    plan: bool = False


@dataclass(frozen=True, slots=True)
class Left:
    """A pod that is still there: `why` it stays, empty where it is about to end. `job` is ours, if it has
    one."""

    pod: str
    why: str = ""
    job: str | None = None


async def evict(
    cluster: Cluster, system: str, node: str, drain: Drain, concerned: Callable[[Object], bool] | None = None
) -> list[Left]:
    """Ask the pods of a node to leave, or only those that are `concerned`; those that are still there. Raises
    Answered and Unreachable."""
    found, _ = await cluster.list("/api/v1/pods", {"fieldSelector": f"spec.nodeName={node}"})
    pods = [pod for pod in found if _leaves(pod) and (concerned is None or concerned(pod))]
    left = await asyncio.gather(*(_asked(cluster, system, pod, drain) for pod in pods))
    return sorted((one for one in left if one is not None), key=lambda one: one.pod)


async def _asked(cluster: Cluster, system: str, pod: Object, drain: Drain) -> Left | None:
    """Ask one pod to leave; None where it is gone already."""
    metadata = pod["metadata"]
    name, job = f"{metadata['namespace']}/{metadata['name']}", _job(pod, system)
    if "deletionTimestamp" in metadata:
        return Left(name, "", job)
    if why := stays(pod, job, drain):
        return Left(name, why, job)
    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
    refused = await cluster.evict(path, plan=drain.plan)
    return None if refused is None else Left(name, refused, job)


def stays(pod: Object, job: str | None, drain: Drain) -> str:
    """Why a pod is not even asked; empty where it is."""
    if job is not None:
        return drain.stay.get(job, "")
    if not _owner(pod) and not drain.force:
        return "nothing makes it again; --force ends it all the same"
    volumes = pod["spec"].get("volumes") or []
    if any("emptyDir" in volume for volume in volumes) and not drain.emptydir:
        return "its data in an emptyDir goes with it; --delete-emptydir-data ends it all the same"
    return ""


def _leaves(pod: Object) -> bool:
    """Whether a pod has to leave: not those that have ended, and not those that belong to their node."""
    ended = pod["status"].get("phase") in ("Succeeded", "Failed")
    of_node = MIRROR in (pod["metadata"].get("annotations") or {}) or _owner(pod) == "DaemonSet"
    return not ended and not of_node


def _owner(pod: Object) -> str:
    """The kind of what makes it again; empty where nothing does."""
    owners = pod["metadata"].get("ownerReferences") or []
    return next((owner["kind"] for owner in owners if owner.get("controller")), "")


def _job(pod: Object, system: str) -> str | None:
    """The id of the job of ours that a pod works for."""
    if (pod["metadata"].get("labels") or {}).get(SYSTEM) != system:
        return None
    run = (pod["metadata"].get("annotations") or {}).get(NAME, "")
    return Run.parse(run).job if run else None
