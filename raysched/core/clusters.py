"""Several Kubernetes clusters: each is a backend of its own, called `k8s-NAME`. A job of `k8s` may be handed
to any of them. Where there is only one, without a name, that is `k8s`.
"""

from __future__ import annotations

from collections.abc import Iterable

K8S = "k8s"


def backend_of(cluster: str) -> str:
    """The backend of a cluster; "" is one without a name."""
    return f"{K8S}-{cluster}" if cluster else K8S


def cluster_of(backend: str) -> str | None:
    """The name of the cluster that a backend is of, "" where it has none; None where it is of none."""
    kind, _, name = backend.partition("-")
    return name if kind == K8S else None


def kind_of(backend: str) -> str:
    """What a job file calls a backend."""
    return K8S if cluster_of(backend) is not None else backend


def among(backend: str, sites: Iterable[str]) -> tuple[str, ...]:
    """Which backends are meant by one of a request, of those that reach a site."""
    clusters = tuple(name for name in sites if cluster_of(name) is not None) if backend == K8S else ()
    return clusters or (backend,)
