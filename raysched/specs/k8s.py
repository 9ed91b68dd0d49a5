"""What is said to Kubernetes alone: under `k8s:` of a job, and under `backends.k8s` of the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from raysched.specs.fields import Fault, Fields, raise_faults
from raysched.specs.problems import Location, quoted
from raysched.specs.values import Duration, Image, Limit, QueueName, Text, filled, parse_text

MAIN = "main"
"""The name of a job's container."""
OURS = "raysched"
"""What names of volumes, containers, labels and annotations begin with that raysched sets."""

POD = {
    "activeDeadlineSeconds": "use max_runtime",
    "hostname": "it tells the pods of a job apart",
    "nodeName": "use k8s.node_selector: Kubernetes finds the node",
    "nodeSelector": "use k8s.node_selector",
    "restartPolicy": "a failed attempt is a new pod: use retries",
    "serviceAccountName": "use k8s.service_account",
    "setHostnameAsFQDN": "it tells the pods of a job apart",
    "shareProcessNamespace": "the end of a job needs it",
    "subdomain": "it tells the pods of a job apart",
    "terminationGracePeriodSeconds": "use k8s.grace",
}
"""Fields of a pod that raysched sets, and what to use instead."""
CONTAINER = {
    "args": "use entrypoint",
    "command": "use entrypoint",
    "image": "use image",
    "stdin": "a job reads nothing",
    "tty": "a job has no terminal",
    "workingDir": "use working_dir",
}
"""The same for the job's container."""
SET_VARIABLES = ("RAYSCHED_", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")

SET_KEYS = (f"{OURS}.io/", "batch.kubernetes.io/")
SHARING_KEYS = (
    *("gpu-fraction", "gpu-memory", "nvidia.com/", "hami.io/", "volcano.sh/"),
    *("kai.scheduler/", "kueue.x-k8s.io/"),
)
"""What keys of labels and annotations begin with by which schedulers are asked for GPUs."""

_LABEL_KEY = re.compile(
    r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)
_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_CLUSTER = re.compile(r"[a-z]([a-z0-9-]{0,18}[a-z0-9])?")
_DNS = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def parse_dns_name(value: str) -> str:
    """The name of an object of Kubernetes. Raises ValueError."""
    if not _DNS.fullmatch(value):
        raise ValueError(f"{quoted(value)} is no name of Kubernetes: use a-z, 0-9, dots and dashes")
    return value


def parse_cluster_name(value: str) -> str:
    """What we call a cluster. Raises ValueError."""
    if not _CLUSTER.fullmatch(value):
        raise ValueError(
            f"{quoted(value)} can't be the name of a cluster: use up to 20 of a-z, 0-9 and dashes, beginning "
            "with a letter"
        )
    return value


def parse_selector(value: object) -> dict[str, str]:
    """Labels of nodes. Raises ValidationError with every fault."""
    return _pairs(value, _LABEL, ())


def parse_labels(value: object) -> dict[str, str]:
    """Labels of pods, as Kubernetes allows them. Raises ValidationError with every fault."""
    return _pairs(value, _LABEL)


def parse_annotations(value: object) -> dict[str, str]:
    """Annotations: any text under the keys of labels. Raises ValidationError with every fault."""
    return _pairs(value, None)


def _pairs(
    value: object, allowed: re.Pattern[str] | None, taken: tuple[str, ...] = SHARING_KEYS
) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("must hold names and values, each on a line of its own as `name: value`")
    pairs: dict[str, str] = {}
    faults: list[Fault] = []
    for key, content in value.items():
        try:
            pairs[_label_key(key, taken)] = _label_value(content, allowed)
        except ValueError as error:
            faults.append(Fault((str(key),), str(error)))
    if faults:
        raise_faults("labels", faults)
    return pairs


def _label_key(key: object, taken: tuple[str, ...]) -> str:
    text = parse_text(key)
    if not _LABEL_KEY.fullmatch(text):
        raise ValueError("is no name of a label: write NAME or DOMAIN/NAME")
    if text.startswith(SET_KEYS) or text in ("job-name", "controller-uid"):
        raise ValueError("is set by raysched or by Kubernetes: use another name")
    if text.startswith(taken):
        raise ValueError("asks for GPUs or names a queue: use resources, queue, and backends.k8s")
    return text


def _label_value(value: object, allowed: re.Pattern[str] | None) -> str:
    text = parse_text("" if value is None else value)
    if allowed is not None and not allowed.fullmatch(text):
        raise ValueError(f"{quoted(text)} can't be the value of a label: up to 63 letters, digits, - _ and .")
    return text


# ---------------------------------------------------------------- the overlay


def parse_pod(value: object) -> dict[str, Any]:
    """A part of a pod's spec, laid over raysched's own. Raises ValidationError with every fault."""
    if not isinstance(value, Mapping):
        raise ValueError("must hold fields of a pod's spec, such as `volumes: [...]`")
    faults = list(_faults(value))
    if faults:
        raise_faults("pod", faults)
    return dict(value)


def _faults(pod: Mapping[str, Any]) -> Iterator[Fault]:
    for name, instead in POD.items():
        if name in pod:
            yield Fault((name,), f"is set by raysched: {instead}")
    for at, container in _listed(pod, "containers"):
        yield from _container_faults(container, ("containers", at))
    for at, container in _listed(pod, "initContainers"):
        yield from _name_faults(container, ("initContainers", at))
    for at, volume in _listed(pod, "volumes"):
        yield from _name_faults(volume, ("volumes", at))


def _listed(part: Mapping[str, Any], name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The mappings of a list; whatever else it is, Kubernetes refuses."""
    found: Any = part.get(name)
    items: list[Any] = [*found] if isinstance(found, list | tuple) else []
    for at, item in enumerate(items):
        if isinstance(item, Mapping):
            yield at, item


def _name_faults(item: Mapping[str, Any], path: Location) -> Iterator[Fault]:
    if str(item.get("name", "")).startswith(OURS) or item.get("name") == MAIN:
        yield Fault((*path, "name"), "is a name that raysched uses itself: take another")


def _container_faults(container: Mapping[str, Any], path: Location) -> Iterator[Fault]:
    if container.get("name") != MAIN:
        yield Fault(
            (*path, "name"),
            f"must be {MAIN}, the job's own container; others go under initContainers, those that run beside "
            "it with restartPolicy: Always",
        )
    for name, instead in CONTAINER.items():
        if name in container:
            yield Fault((*path, name), f"is set by raysched: {instead}")
    for at, variable in _listed(container, "env"):
        name = str(variable.get("name", ""))
        if name.startswith(SET_VARIABLES):
            yield Fault((*path, "env", at, "name"), f"{name} is set by raysched: remove it")
    for at, mount in _listed(container, "volumeMounts"):
        if f"{mount.get('mountPath', '')}/".startswith(f"/{OURS}/"):
            yield Fault((*path, "volumeMounts", at, "mountPath"), f"/{OURS} is raysched's own: take another")
    resources = container.get("resources")
    for kind in ("limits", "requests", "claims"):
        asked = resources.get(kind) if isinstance(resources, Mapping) else None
        for name in asked if isinstance(asked, Mapping) else ():
            if name in ("cpu", "memory") or "gpu" in name or "nvidia" in name or "/mig-" in name:
                where = (*path, "resources", kind, str(name))
                yield Fault(where, "is set by raysched: use resources of the job")


def parse_file(value: str) -> str:
    """A file, with `~` for the user's home. Raises ValueError for one that depends on where one stands."""
    if not Path(value).expanduser().is_absolute():
        raise ValueError(f"{quoted(value)} must start with / or ~/")
    return value


def parse_tolerations(value: object) -> tuple[dict[str, Any], ...]:
    """Tolerations, as Kubernetes writes them. Raises ValueError."""
    items: list[Any] = [*value] if isinstance(value, list | tuple) else [value]
    if not all(isinstance(item, Mapping) for item in items):
        raise ValueError("must be a list of tolerations, such as [{key: team, operator: Exists}]")
    return tuple(dict(item) for item in items)


# ---------------------------------------------------------------- what is written

DNSName = Annotated[Text, AfterValidator(parse_dns_name)]
Labels = Annotated[
    dict[str, str],
    BeforeValidator(parse_labels, json_schema_input_type=dict[str, str]),
    BeforeValidator(filled),
]
_Selector = Annotated[
    dict[str, str],
    BeforeValidator(parse_selector, json_schema_input_type=dict[str, str]),
    BeforeValidator(filled),
]
_Annotations = Annotated[
    dict[str, str],
    BeforeValidator(parse_annotations, json_schema_input_type=dict[str, str]),
    BeforeValidator(filled),
]
Queues = Annotated[
    dict[QueueName, Annotated[DNSName, Field(max_length=63)]],
    BeforeValidator(filled),
]
"""Which queue of a cluster serves each queue of ours."""
ClusterName = Annotated[Text, AfterValidator(parse_cluster_name)]


class K8sOptions(Fields):
    """What a job says to Kubernetes."""

    cluster: ClusterName | None = Field(
        default=None, description="One of backends.k8s.clusters; null: any that can give what is asked for."
    )
    service_account: DNSName | None = Field(default=None, description="The pod's service account.")
    node_selector: _Selector = Field(default_factory=dict, description="Labels that the nodes must have.")
    tolerations: Annotated[
        tuple[dict[str, Any], ...],
        BeforeValidator(parse_tolerations, json_schema_input_type=list[dict[str, Any]]),
    ] = Field(default=(), description="Taints that do not matter.", examples=[[{"key": "team"}]])
    ray: bool = Field(
        default=False,
        description="Have KubeRay start Ray on all nodes of the job, and the entrypoint once, as its driver.",
    )
    labels: Labels = Field(default_factory=dict, description="Further labels of the pod.")
    annotations: _Annotations = Field(default_factory=dict, description="Further annotations of the pod.")
    pod: Annotated[
        dict[str, Any],
        BeforeValidator(parse_pod, json_schema_input_type=dict[str, Any]),
        BeforeValidator(filled),
    ] = Field(
        default_factory=dict,
        description="Laid over the pod's spec: fields are added, lists appended, and the container named "
        "main is the job's own.",
    )
    grace: Duration = Field(
        default=10_000,
        description="The time between SIGTERM and SIGKILL when a job is stopped.",
        json_schema_extra={"default": "10s"},
    )


class K8sCluster(Fields):
    """A Kubernetes cluster."""

    kubeconfig: Annotated[Text, AfterValidator(parse_file)] | None = Field(
        default=None,
        description="The file that says how it is reached; null: KUBECONFIG, else the usual file, and inside "
        "a pod its service account.",
    )
    context: Text | None = Field(default=None, description="The file's context; null: the current one.")
    namespace: DNSName | None = Field(
        default=None, description="Where jobs run; null: the context's, else default."
    )
    image: Image | None = Field(default=None, description="The image of jobs that name none.")
    kai: Queues = Field(
        default_factory=dict,
        description="The leaf queue of KAI Scheduler that serves each queue; that of default serves all that "
        "are not named. Empty: KAI Scheduler is not used.",
        examples=[{"default": "team-a"}],
    )
    kueue: Queues = Field(
        default_factory=dict,
        description="The same for Kueue: its LocalQueues in the namespace.",
        examples=[{"default": "user-queue"}],
    )
    pull_timeout: Limit = Field(
        default=600_000,
        description="How long an image may fail to be pulled before its job fails.",
        json_schema_extra={"default": "10m"},
    )


class K8sBackend(K8sCluster):
    """One Kubernetes cluster, or several."""

    clusters: Annotated[
        dict[ClusterName, Annotated[K8sCluster, BeforeValidator(filled)]], BeforeValidator(filled)
    ] = Field(
        default_factory=dict,
        description="Several clusters by name; what is said beside them holds for each that does not say "
        "otherwise.",
        examples=[{"east": {"context": "east"}, "west": {"context": "west"}}],
    )

    def each(self) -> dict[str, K8sCluster]:
        """The clusters by name, with all that holds for each; one that has no name is called ""."""
        if not self.clusters:
            return {"": self}
        usual = {name: getattr(self, name) for name in K8sCluster.model_fields}
        return {
            name: one.model_copy(
                update={field: usual[field] for field in usual.keys() - one.model_fields_set}
            )
            for name, one in self.clusters.items()
        }
