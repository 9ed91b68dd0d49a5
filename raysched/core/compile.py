"""From a checked job file to what the scheduler understands."""

from __future__ import annotations

from raysched.core.commands import JobRequest
from raysched.core.request import WHOLE, Request, Sharing
from raysched.errors import Refused
from raysched.specs.job import Backend, JobSpec
from raysched.specs.resources import Resources

_LATER: dict[Sharing, str] = {"time_slice": "time-slices", "mig": "MIG instances", "mps": "shares under MPS"}
_AUTO = ("vm", "ray")
"""The backends that `auto` may mean, the preferred one first."""


def compile_job(spec: JobSpec, id: str, package: str | None) -> JobRequest:
    """The job to submit under `id`, with the digest of its packed working directory. Raises Refused."""
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
    """What one element of the job asks for. Raises Refused for a way of sharing that this version lacks."""
    return compile_resources(spec.resources, spec.backend)


def compile_resources(resources: Resources, backend: Backend) -> Request:
    """The request for these resources at a backend. Raises Refused like `compile_request`."""
    sharing = resources.mode
    if sharing in _LATER:
        raise Refused(
            f"resources: {_LATER[sharing]} (sharing: {sharing}) come with a later version; this one grants "
            "whole GPUs, and shares by gpu_fraction or gpu_memory"
        )
    whole = sharing == "exclusive"
    return Request(
        gpus=resources.gpus,
        share=None if whole else resources.gpu_fraction,
        memory=None if whole else resources.gpu_memory,
        sharing=sharing,
        isolation=resources.isolation,
        gpu_types=resources.gpu_type or (),
        nodes=resources.nodes,
        cpus=_cpus(resources),
        host_memory=resources.memory or 0,
        backends=_AUTO if backend == "auto" else (backend,),
    )


def _cpus(resources: Resources) -> int:
    """Work without a GPU counts a core unless it says otherwise: else nothing would keep an array of a
    thousand from starting all at once."""
    if resources.cpus is not None:
        return resources.cpus
    return 0 if resources.gpus else WHOLE
