"""Kubernetes' own words in plain ones: why a job waits, and how one ended."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

Object = dict[str, Any]

PULL = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
"""Why a container waits whose image can't be had."""
BROKEN = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
"""Why one waits that can't be made, as a Secret or a volume is missing."""
DELETED = "its Job was deleted in Kubernetes, not by raysched"
BY_KUEUE = "Kueue took it away: its Job was suspended again, for others"
SUSPENDED = "its Job was suspended in Kubernetes, not by raysched"

_NODES = re.compile(r"^\d+/\d+ nodes are available: ")
_AFTER = re.compile(r"\. (preemption: |no new claims).*", re.DOTALL)


def waits(pod: Object, nodes: Sequence[Object] = ()) -> str:
    """Why a pod does not run yet, in a cluster of these nodes."""
    for container in statuses(pod):
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in PULL:
            return (
                f"its image {container['image']} can't be pulled ({reason}): {message or 'no reason given'}"
            )
        if reason in BROKEN:
            return f"its container can't be made ({reason}): {message or 'no reason given'}"
    scheduled = condition(pod, "PodScheduled")
    if scheduled is not None and scheduled["status"] == "False":
        why = unschedulable(scheduled.get("message", ""))
        taints = sorted({taint for node in nodes for taint in untolerated(pod, node)})
        if "untolerated taint" not in why or not taints:
            return f"waits in Kubernetes: {why}"
        return f"waits in Kubernetes: {why}; taints that it does not tolerate: {', '.join(taints)}"
    node = pod["spec"].get("nodeName")
    return f"Kubernetes is starting it on {node}" if node else "waits in Kubernetes"


def unschedulable(message: str) -> str:
    """The scheduler's words without what it adds about preemption."""
    text = _AFTER.sub("", message).strip().rstrip(".")
    found = _NODES.match(text)
    if found is None:
        return text or "no node was found yet"
    return f"no node has room or is open to it: {text[found.end() :]}"


def untolerated(pod: Object, node: Object) -> Iterator[str]:
    """The taints of a node that keep a pod from it, as kubectl writes them: `team=vision:NoSchedule`."""
    tolerations = pod["spec"].get("tolerations") or []
    for taint in node["spec"].get("taints") or []:
        if taint["effect"] != "PreferNoSchedule" and not any(_tolerates(one, taint) for one in tolerations):
            value = f"={taint['value']}" if taint.get("value") else ""
            yield f"{taint['key']}{value}:{taint['effect']}"


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", "")


def not_made(message: str) -> str:
    """Why Kubernetes makes no pod for a job, from an event."""
    if "exceeded quota" in message:
        quota = message[message.index("exceeded quota") :]
        return f"waits in Kubernetes: the namespace's quota is full ({quota})"
    return f"waits in Kubernetes: it makes no pod for it: {message}"


def in_kueue(workload: Object) -> str:
    """Why Kueue does not let a Job go yet, from the workload that it made for it."""
    for kind in ("Admitted", "QuotaReserved"):
        told = condition(workload, kind)
        if told is not None and told["status"] == "False" and told.get("message"):
            return f"waits in Kueue: {told['message']}"
    return "waits in Kueue"


def stuck(pod: Object) -> bool:
    """Whether a pod waits for what may never come: an image, a Secret."""
    reasons = {(one.get("state", {}).get("waiting") or {}).get("reason") for one in statuses(pod)}
    return bool(reasons & (PULL | BROKEN))


def disrupted(pod: Object) -> str:
    """Why Kubernetes took a pod away that may be started again; empty where it did not."""
    told = condition(pod, "DisruptionTarget")
    evicted = pod["status"].get("reason") == "Evicted"
    if not evicted and (told is None or told["status"] != "True"):
        return ""
    why = pod["status"].get("message") or (told or {}).get("message", "")
    kind = "Evicted" if evicted else (told or {}).get("reason", "")
    node = pod["spec"].get("nodeName")
    where = f" from {node}" if node else ""
    return f"Kubernetes took it away{where} ({kind}): {why.strip() or 'no reason given'}"


def failed(pod: Object) -> tuple[int | None, str]:
    """The exit code of a pod that failed, None where its command never ran, and the reason where there is
    more to say than the code; nothing where the pod does not tell."""
    status = pod["status"]
    if status.get("reason") == "DeadlineExceeded":
        return None, "ran longer than its max_runtime"
    for container in status.get("initContainerStatuses") or []:
        ended = container.get("state", {}).get("terminated")
        if ended and ended.get("exitCode"):
            said = (ended.get("message") or "").strip()
            return None, f"its working directory could not be unpacked{f': {said}' if said else ''}"
    for container in status.get("containerStatuses") or []:
        ended = container.get("state", {}).get("terminated")
        if ended:
            return ended["exitCode"], _ending(ended)
    return None, status.get("message") or status.get("reason") or ""


def _ending(ended: Object) -> str:
    reason = ended.get("reason", "")
    if reason == "OOMKilled":
        return "ran out of memory (OOMKilled): ask for more with resources.memory"
    if reason in ("StartError", "ContainerCannotRun"):
        return f"its command could not be started: {(ended.get('message') or reason).strip()}"
    return ""


def of_job(job: Object) -> str:
    """Why a Job failed whose pods are gone."""
    told = condition(job, "Failed") or condition(job, "FailureTarget") or {}
    return told.get("message") or told.get("reason") or "its Job failed"


def statuses(pod: Object) -> Sequence[Object]:
    """What a pod says of its containers."""
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def condition(thing: Object, kind: str) -> Object | None:
    """One of an object's conditions."""
    conditions = thing.get("status", {}).get("conditions") or []
    return next((one for one in conditions if one["type"] == kind), None)
