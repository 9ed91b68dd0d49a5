"""The variables that a tenant gets, as one pure function of its lease."""

from __future__ import annotations

from raysched.core.jobs import Job
from raysched.core.lease import Place
from raysched.core.request import Sharing
from raysched.core.words import number
from raysched.core.work import Run


def variables(lease: str, sharing: Sharing, place: Place) -> dict[str, str]:
    """What tells a process its share: the marker `RAYSCHED_LEASE`, its devices by UUID, its share.

    A MIG instance is a device of its own (`MIG-...`). `CUDA_VISIBLE_DEVICES` is empty where the lease has no
    GPU, so that none is seen. With several GPUs the fraction and the memory are those of each; on unequal
    cards the smallest.
    """
    uuids = ",".join(slice.device for slice in place.slices)
    env = {
        "RAYSCHED_LEASE": lease,
        "CUDA_VISIBLE_DEVICES": uuids,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "NVIDIA_VISIBLE_DEVICES": uuids or "void",
    }
    if place.slices:
        env["RAYSCHED_GPU_FRACTION"] = number(min(slice.share for slice in place.slices))
        env["RAYSCHED_GPU_MEMORY_MIB"] = str(min(slice.memory for slice in place.slices))
        env["RAYSCHED_SHARING"] = sharing
    return env


def job_variables(job: Job, run: Run, lease: str, place: Place) -> dict[str, str]:
    """The spec's variables, the lease's, and what tells the job which one it is."""
    env: dict[str, str] = dict(job.spec.get("env") or {})
    env.update(variables(lease, job.sharing or job.request.sharing, place))
    env.update(
        RAYSCHED_JOB=job.id,
        RAYSCHED_JOB_NAME=job.name,
        RAYSCHED_RUN=str(run),
        RAYSCHED_ATTEMPT=str(run.attempt),
        RAYSCHED_NODE_RANK=str(run.rank),
        RAYSCHED_NUM_NODES=str(len(job.places)),
    )
    if job.index is not None:
        env["RAYSCHED_ARRAY_INDEX"] = str(job.index)
    return env
