"""The variables that a tenant gets, as one pure function of its lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raysched.core.jobs import Job
from raysched.core.lease import Place, Slice
from raysched.core.meeting import meeting_port
from raysched.core.node import Node
from raysched.core.request import WHOLE, Sharing
from raysched.core.site import Demand
from raysched.core.words import number
from raysched.core.work import Run

LOOPBACK = "127.0.0.1"
NEW_NAME = "XLA_CLIENT_MEM_FRACTION"
"""What newer versions of JAX call XLA_PYTHON_CLIENT_MEM_FRACTION, which they heed too."""


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
    if sharing == "mps" and place.slices:
        env.update(_under_mps(place.slices[0]))
    return env


def _under_mps(slice: Slice) -> dict[str, str]:
    """What makes a CUDA program a client of its GPU's MPS daemon, and holds it to its share there. Only GPUs
    that the process sees may have a limit: one entry that names another voids them all."""
    return {
        "CUDA_MPS_PIPE_DIRECTORY": slice.pipe or "mps-new",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(max(1, slice.share * 100 // WHOLE)),
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"{slice.gpu}={slice.memory}M",
    }


def advice(sharing: Sharing, place: Place) -> dict[str, str]:
    """What keeps frameworks that heed it to their part of a GPU's memory, where the GPU is not the tenant's
    own; `RAYSCHED_GPU_MEMORY_FRACTION` is for programs that set it themselves. A spec may say otherwise."""
    totals = [slice.memory * WHOLE // slice.total for slice in place.slices if slice.total]
    if sharing in ("exclusive", "mig") or not totals:
        return {}
    return _heeded(max(1, min(totals)))


def _heeded(part: int) -> dict[str, str]:
    """The part of a GPU's memory, in ten-thousandths, in the words of frameworks."""
    fraction = number(part)
    return {
        "RAYSCHED_GPU_MEMORY_FRACTION": fraction,
        "XLA_PYTHON_CLIENT_MEM_FRACTION": fraction,
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }


def rank_variables(rank: int, addresses: Sequence[str], port: int, devices: int) -> dict[str, str]:
    """What tells a command that it is started once on each node of its job, and where the ranks meet.

    `addresses` are those of the nodes, by rank; `devices` is the most GPUs or instances that the job has on
    one of them. docs/decisions/0008-variables-of-a-rank.md says which variables are set and which are not.
    """
    nodes = len(addresses)
    master = addresses[0] if nodes > 1 else LOOPBACK
    env = {
        "RAYSCHED_NODE_RANK": str(rank),
        "RAYSCHED_NUM_NODES": str(nodes),
        "RAYSCHED_NODE_ADDRESSES": ",".join(addresses),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port),
        "PET_NNODES": str(nodes),
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": master,
        "PET_MASTER_PORT": str(port),
    }
    if nodes > 1:
        host = f"[{master}]" if ":" in master else master
        env.update(NODE_RANK=str(rank), JAX_COORDINATOR_ADDRESS=f"{host}:{port}")
    if nodes > 1 and devices <= 1:
        env.update(RANK=str(rank), WORLD_SIZE=str(nodes), LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    return env


def _address(nodes: Mapping[str, Node], name: str) -> str:
    return (nodes[name].info.address if name in nodes else "") or name


def site_variables(job: Job, run: Run, lease: str, demand: Demand) -> dict[str, str]:
    """The variables of a job at a site. The devices are told by the site itself, unless there are none; with
    several nodes what tells them apart is in `site_ranks`."""
    env = rank_variables(0, [LOOPBACK], 0, 0) if demand.nodes == 1 else {}
    env["MASTER_PORT"] = env["PET_MASTER_PORT"] = str(meeting_port(job.id, run.attempt))
    if demand.kind in ("shard", "mps"):
        env.update(_heeded(demand.share))
    env.update(job.spec.get("env") or {})
    env.update(
        RAYSCHED_LEASE=lease,
        RAYSCHED_JOB=job.id,
        RAYSCHED_JOB_NAME=job.name,
        RAYSCHED_RUN=str(run),
        RAYSCHED_ATTEMPT=str(run.attempt),
    )
    if demand.kind:
        env["RAYSCHED_GPU_FRACTION"] = number(demand.share)
        env["RAYSCHED_SHARING"] = job.sharing or job.request.sharing
    else:
        env.update(CUDA_VISIBLE_DEVICES="", NVIDIA_VISIBLE_DEVICES="void")
    if job.index is not None:
        env["RAYSCHED_ARRAY_INDEX"] = str(job.index)
    return env


def site_ranks(job: Job, run: Run, demand: Demand) -> tuple[tuple[tuple[str, str], ...], ...]:
    """The variables of each rank of a job on several nodes of a site. `@2@` stands for the address of the
    node of rank 2, which the site tells only once the job runs. What the spec sets itself is left out."""
    if demand.nodes == 1:
        return ()
    addresses = [f"@{rank}@" for rank in range(demand.nodes)]
    devices = -(-demand.count // demand.nodes) if demand.together else demand.count
    port, own = meeting_port(job.id, run.attempt), job.spec.get("env") or {}
    ranks = (rank_variables(rank, addresses, port, devices) for rank in range(demand.nodes))
    return tuple(tuple((name, value) for name, value in env.items() if name not in own) for env in ranks)


def job_variables(job: Job, run: Run, lease: str, nodes: Mapping[str, Node]) -> dict[str, str]:
    """The spec's variables, the lease's, and what tells the job which one it is. What the spec sets itself
    stays, but of what belongs to the lease and to raysched."""
    place = job.places[run.rank]
    addresses = [_address(nodes, place.node) for place in job.places]
    devices = max(len(place.slices) for place in job.places)
    env = rank_variables(run.rank, addresses, meeting_port(job.id, run.attempt), devices)
    own: dict[str, str] = job.spec.get("env") or {}
    sharing = job.sharing or job.request.sharing
    env.update(advice(sharing, place))
    if NEW_NAME in own:  # JAX fails where it has both
        env.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)
    env.update(own)
    env.update(variables(lease, sharing, place))
    env.update(
        RAYSCHED_JOB=job.id,
        RAYSCHED_JOB_NAME=job.name,
        RAYSCHED_RUN=str(run),
        RAYSCHED_ATTEMPT=str(run.attempt),
    )
    if job.index is not None:
        env["RAYSCHED_ARRAY_INDEX"] = str(job.index)
    return env
