"""From a checked job file to what the scheduler understands."""

from __future__ import annotations

from dataclasses import replace

from raysched.core.clusters import backend_of
from raysched.core.commands import JobRequest
from raysched.core.host import Host
from raysched.core.request import WHOLE, Request
from raysched.specs.inventory import HostSpec
from raysched.specs.job import Backend, JobSpec
from raysched.specs.resources import Resources

_AUTO = ("vm", "ray")
"""The backends that `auto` may mean, the preferred one first."""


def compile_job(spec: JobSpec, id: str, package: str | None) -> JobRequest:
    """The job to submit under `id`, with the digest of its packed working directory."""
    return JobRequest(
        id=id,
        name=spec.name,
        kind="command",
        request=compile_request(spec),
        spec=spec.as_json(),
        array=spec.array if spec.array > 1 else None,
        package=package,
        queue=spec.queue,
        priority=spec.priority,
        retries=spec.retries,
        max_runtime=spec.max_runtime,
        grace=spec.grace,
    )


def compile_request(spec: JobSpec) -> Request:
    """What one element of the job asks for."""
    boxed = spec.image is not None
    at_cluster = spec.backend == "k8s" and spec.k8s.cluster is not None
    request = compile_resources(spec.resources, spec.backend)
    return replace(
        request,
        backends=(backend_of(spec.k8s.cluster or ""),) if at_cluster else request.backends,
        container=boxed,
        limitable=not boxed,
        node_selector=tuple(sorted(spec.vm.node_selector.items())),
    )


def compile_resources(resources: Resources, backend: Backend) -> Request:
    """The request for these resources at a backend."""
    sharing = resources.mode
    whole = sharing == "exclusive"
    return Request(
        gpus=resources.gpus,
        share=None if whole else resources.gpu_fraction,
        memory=None if whole else resources.gpu_memory,
        sharing=sharing,
        isolation=resources.isolation,
        mig_profile=resources.mig_profile,
        gpu_types=resources.gpu_type or (),
        nodes=resources.nodes,
        cpus=_cpus(resources),
        host_memory=resources.memory or 0,
        backends=_AUTO if backend == "auto" else (backend,),
        or_mig=_must_be_held(resources) and resources.use_mig is None and resources.gpus == 1,
        or_mps=_must_be_held(resources) and resources.gpus <= (resources.nodes or 1),
    )


def _must_be_held(resources: Resources) -> bool:
    """Whether a part of a GPU must be held to its share, and does not say how: a MIG instance will do, where
    one GPU is asked for (several would be instances of one), and MPS, where it is one on each node."""
    return resources.isolation == "hard" and resources.sharing is None and resources.mode == "fraction"


def _cpus(resources: Resources) -> int:
    """Work without a GPU counts a core unless it says otherwise: else nothing would keep an array of a
    thousand from starting all at once."""
    if resources.cpus is not None:
        return resources.cpus
    return 0 if resources.gpus else WHOLE


def compile_host(spec: HostSpec) -> Host:
    """The host that a checked entry of the inventory names."""
    return Host(
        name=spec.name,
        address=spec.address or spec.name,
        user=spec.user,
        port=spec.port,
        key=spec.key,
        jump=spec.jump,
        python=spec.python,
        folder=spec.folder,
        simulate=spec.simulate,
        cpus=spec.cpus,
        memory=spec.memory,
        labels=tuple(sorted(spec.labels.items())),
    )
