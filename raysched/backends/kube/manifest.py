"""What a launch is in Kubernetes' words: a Job, and a Service where its pods have to find each other; or, for
a Ray job, a RayJob (`ray_job.py`). Pure: the same launch always is the same manifest. What users wrote is a
value in it and nothing else, but for labels, annotations and the overlay, which can only add (`overlay.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raysched.backends.base import EngineRefused
from raysched.backends.kube.command import as_is, command
from raysched.backends.kube.names import KAI_QUEUE, KUEUE_QUEUE, NAME, files_name, labels, name_of
from raysched.backends.kube.overlay import laid_over
from raysched.backends.kube.ray_job import ray_job
from raysched.core.asking import GPU, PRODUCT, Claim, PodAsk, pod_ask
from raysched.core.request import WHOLE
from raysched.core.site import Demand
from raysched.core.work import Launch, Order
from raysched.specs.k8s import MAIN
from raysched.specs.units import parse_duration
from raysched.specs.values import SECRET

KAI_GANG = "kai.scheduler/batch-min-member"
"""The annotation of a Job that says how many of its pods must have room before the first one starts."""
CLAIM = "gpus"
"""The name of a pod's claim of GPUs."""
WORK = "/raysched/work"
"""The working directory of a job."""
FILES = "/raysched/files"
RANK = "metadata.labels['batch.kubernetes.io/job-completion-index']"
"""Where a pod of a Job is told its rank."""
UNPACK = f"cat {FILES}/part-* | tar -xzf - -C {WORK}"

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """Where manifests go: the namespace (None: the one that is current), the mark of this raysched, and the
    image of jobs that name none. `kai` and `kueue` say which queue there serves a queue of ours."""

    namespace: str | None
    system: str
    image: str | None = None
    kai: Mapping[str, str] = field(default_factory=dict[str, str])
    kueue: Mapping[str, str] = field(default_factory=dict[str, str])


def manifests(launch: Launch, target: Target, parts: int = 0) -> list[Manifest]:
    """The objects to make for a launch, in order; `parts` is the number of ConfigMaps that its working
    directory is in. Raises EngineRefused where the spec contradicts itself."""
    order = launch.order
    assert order is not None, f"{launch.run} asks nothing of a cluster"
    claim = pod_ask(order.demand).claim
    claims = [_claim_template(launch, target, claim)] if claim is not None else []
    if dict(order.options).get("ray"):
        return [_ray_job(launch, order, target, parts), *claims]
    services = [_service(launch, target)] if order.demand.nodes > 1 else []
    return [_job(launch, order, target, parts), *services, *claims]


def _metadata(launch: Launch, target: Target) -> Manifest:
    name = name_of(launch.run, target.system)
    return {
        "name": name,
        **({"namespace": target.namespace} if target.namespace else {}),
        "labels": labels(target.system, "run", name),
        "annotations": _annotations(launch),
    }


def _annotations(launch: Launch) -> dict[str, str]:
    return {NAME: str(launch.run), "raysched.io/lease": launch.lease, "raysched.io/job-name": launch.name}


def _service(launch: Launch, target: Target) -> Manifest:
    """By which the pods of a job find each other, also before all of them are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(launch, target),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": name_of(launch.run, target.system)},
        },
    }


def _claim_template(launch: Launch, target: Target, claim: Claim) -> Manifest:
    """From which each pod gets a claim of its own."""
    selectors = [{"cel": {"expression": expression}} for expression in claim.expressions]
    exactly = {
        "deviceClassName": claim.device_class,
        "allocationMode": "ExactCount",
        "count": claim.count,
        **({"selectors": selectors} if selectors else {}),
    }
    requests = [{"name": CLAIM, "exactly": exactly}]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": _metadata(launch, target),
        "spec": {"spec": {"devices": {"requests": requests}}},
    }


# ---------------------------------------------------------------- the queues of the cluster


def _queue(names: Mapping[str, str], order: Order) -> str:
    """The queue there of a job of ours; that of `default` also serves queues that are not named."""
    return names.get(order.queue, names.get("default", ""))


def _queue_labels(order: Order, target: Target) -> dict[str, str]:
    kai, kueue = _queue(target.kai, order), _queue(target.kueue, order)
    if order.demand.way == "kai" and not kai and not pod_ask(order.demand).limits:
        raise EngineRefused(
            f"queue: KAI Scheduler shares the GPUs of this cluster, and no queue of it serves {order.queue}: "
            "name one under backends.k8s.kai in raysched.yaml",
            final=True,
        )
    return {**({KAI_QUEUE: kai} if kai else {}), **({KUEUE_QUEUE: kueue} if kueue else {})}


def _scheduler(order: Order, target: Target) -> str:
    """Who puts the pods somewhere: with a queue of KAI Scheduler it is that one, GPUs or not."""
    if order.demand.way == "kai" and not _queue(target.kai, order):
        return ""
    return "kai-scheduler" if _queue(target.kai, order) else pod_ask(order.demand).scheduler


# ---------------------------------------------------------------- the Job


def _job(launch: Launch, order: Order, target: Target, parts: int) -> Manifest:
    """Kubernetes makes no pods of it before its record knows of it: it has a parallelism of 0 until then,
    which costs the cluster less than to suspend it, or waits for Kueue."""
    pods = order.demand.nodes
    indexed = {"completionMode": "Indexed"} if pods > 1 else {}
    metadata = _metadata(launch, target)
    metadata["labels"] = {**metadata["labels"], **_queue_labels(order, target)}
    in_kueue = KUEUE_QUEUE in metadata["labels"]
    if pods > 1 and KAI_QUEUE in metadata["labels"]:
        metadata["annotations"] = {**metadata["annotations"], KAI_GANG: str(pods)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "suspend": in_kueue,
            "completions": pods,
            "parallelism": pods if in_kueue else 0,
            **indexed,
            # A pod that fails is never made again: the ledger decides about attempts.
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": MAIN, "operator": "NotIn", "values": [0]},
                    },
                ]
            },
            "template": _template(launch, order, target, parts),
        },
    }


def _ray_job(launch: Launch, order: Order, target: Target, parts: int) -> Manifest:
    """Its pods are alike: no rank tells them apart, and Ray lets them find each other. KAI Scheduler starts
    them all together; what submits comes after them, has no GPU, and goes past it."""
    demand = order.demand
    metadata = _metadata(launch, target)
    metadata["labels"] = {**metadata["labels"], **_queue_labels(order, target)}
    each = replace(order, demand=replace(demand, nodes=1), ranks=())
    template = _template(launch, each, target, parts)
    if KAI_QUEUE in metadata["labels"]:
        past = replace(each, demand=replace(each.demand, way=""))
        submits = _template(launch, past, replace(target, kai={}), parts)
    else:
        submits = template
    return ray_job(metadata, template, submits, launch.entrypoint, demand.nodes, demand.count)


def _template(launch: Launch, order: Order, target: Target, parts: int) -> Manifest:
    options = dict(order.options)
    metadata = _metadata(launch, target)
    return {
        "metadata": {
            "labels": {**options.get("labels", {}), **metadata["labels"], **_pod_labels(order, target)},
            "annotations": {
                **options.get("annotations", {}),
                **metadata["annotations"],
                **pod_ask(order.demand).annotations,
            },
        },
        "spec": laid_over(_pod(launch, order, target, parts), options.get("pod") or {}),
    }


def _pod_labels(order: Order, target: Target) -> dict[str, str]:
    labels = _queue_labels(order, target)
    return {KAI_QUEUE: labels[KAI_QUEUE]} if KAI_QUEUE in labels else {}


def _pod(launch: Launch, order: Order, target: Target, parts: int) -> Manifest:
    options = dict(order.options)
    account = options.get("service_account")
    pod: Manifest = {
        "restartPolicy": "Never",
        # Else the command is the first process of its pod, which no signal ends that it does not handle.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": seconds(parse_duration(options.get("grace") or "10s")),
        "enableServiceLinks": False,
        "automountServiceAccountToken": account is not None,
        "containers": [_container(launch, order, target)],
        "volumes": [{"name": "raysched-work", "emptyDir": {}}],
    }
    if account is not None:
        pod["serviceAccountName"] = account
    if order.limit is not None:
        pod["activeDeadlineSeconds"] = seconds(order.limit)
    if order.demand.nodes > 1:
        pod["subdomain"] = name_of(launch.run, target.system)
    ask = pod_ask(order.demand)
    if scheduler := _scheduler(order, target):
        pod["schedulerName"] = scheduler
    if ask.claim is not None:
        name = name_of(launch.run, target.system)
        pod["resourceClaims"] = [{"name": CLAIM, "resourceClaimTemplateName": name}]
    if selector := _selector(ask, options.get("node_selector") or {}):
        pod["nodeSelector"] = selector
    if tolerations := _tolerations(order.demand, options.get("tolerations") or ()):
        pod["tolerations"] = tolerations
    if launch.package and parts:
        pod["initContainers"] = [_unpacking(order.demand, pod["containers"][0])]
        pod["volumes"].append(_files(launch.package, target, parts))
    return pod


def seconds(milliseconds: int) -> int:
    """Whole seconds, rounded up."""
    return -(-milliseconds // 1000)


def _selector(ask: PodAsk, own: Mapping[str, str]) -> dict[str, str]:
    if PRODUCT in own and PRODUCT in ask.selector:
        raise EngineRefused(f"k8s.node_selector: {PRODUCT} is set from gpu_type: remove it", final=True)
    return {**own, **ask.selector}


def _tolerations(demand: Demand, own: Sequence[Mapping[str, Any]]) -> list[Manifest]:
    """Nodes with GPUs are often closed for all else, by this taint."""
    for_gpus: list[Manifest] = [{"key": GPU, "operator": "Exists"}] if demand.kind else []
    return [*for_gpus, *(dict(toleration) for toleration in own)]


# ---------------------------------------------------------------- containers


def _container(launch: Launch, order: Order, target: Target) -> Manifest:
    image = launch.image or target.image
    if image is None:
        raise EngineRefused(
            "image: names none, and neither does backends.k8s.image in raysched.yaml: name one", final=True
        )
    return {
        "name": MAIN,
        "image": image,
        "command": command(launch.entrypoint),
        "workingDir": WORK,
        "env": _variables(launch, order, target),
        "resources": _resources(order.demand),
        "volumeMounts": [{"name": "raysched-work", "mountPath": WORK}],
        # A container that says nothing of its end says its last lines.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _variables(launch: Launch, order: Order, target: Target) -> list[Manifest]:
    own = dict(launch.env)
    own.update(RAYSCHED_LEASE=launch.lease, RAYSCHED_RUN=str(launch.run))
    found = {name: _variable(name, value) for name, value in own.items()}
    if order.demand.nodes > 1:
        found.update(_rank_variables(order, name_of(launch.run, target.system)))
    return [found[name] for name in sorted(found)]


def _variable(name: str, value: str) -> Manifest:
    if secret := SECRET.fullmatch(value):
        return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret["name"], "key": secret["key"]}}}
    return {"name": name, "value": as_is(value)}


def _rank_variables(order: Order, name: str) -> dict[str, Manifest]:
    """Variables that tell the pods of one job apart. Their template is one, so that each can only have what
    all have, or its own number."""
    first, *others = (dict(rank) for rank in order.ranks)
    found: dict[str, Manifest] = {}
    for variable, value in first.items():
        if all(other[variable] == value for other in others):
            address = re.sub("@([0-9]+)@", lambda rank: f"{name}-{rank[1]}.{name}", value)
            found[variable] = {"name": variable, "value": as_is(address)}
        else:
            found[variable] = {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": RANK}}}
    return found


def _resources(demand: Demand) -> Manifest:
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if demand.cpus:
        requests["cpu"] = f"{-(-demand.cpus * 1000 // WHOLE)}m"
    if demand.memory:
        requests["memory"] = limits["memory"] = f"{demand.memory}Mi"
    ask = pod_ask(demand)
    limits.update(ask.limits)
    claims = [{"name": CLAIM}] if ask.claim is not None else []
    parts = (("requests", requests), ("limits", limits), ("claims", claims))
    return {kind: asked for kind, asked in parts if asked}


def _unpacking(demand: Demand, main: Manifest) -> Manifest:
    """Unpacks the working directory before the command starts, in the same image."""
    return {
        "name": "raysched-files",
        "image": main["image"],
        "command": ["/bin/sh", "-c", UNPACK],
        "resources": _resources(Demand("", "", 0, 1, False, demand.cpus, demand.memory, 0)),
        "volumeMounts": [
            {"name": "raysched-work", "mountPath": WORK},
            {"name": "raysched-files", "mountPath": FILES, "readOnly": True},
        ],
    }


def _files(digest: str, target: Target, parts: int) -> Manifest:
    sources = [
        {
            "configMap": {
                "name": files_name(digest, target.system, part),
                "items": [{"key": "part", "path": f"part-{part:03}"}],
            }
        }
        for part in range(parts)
    ]
    return {"name": "raysched-files", "projected": {"sources": sources}}
