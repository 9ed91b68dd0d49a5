"""The site in the ledger's words: its nodes and GPUs, what others use, and where our jobs were put."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from raysched.backends.slurm.records import Gres, Job, Node
from raysched.core.lease import Place, Slice
from raysched.core.node import GPUInfo, Mechanism, NodeInfo
from raysched.core.product import matches
from raysched.core.request import WHOLE
from raysched.core.site import UNTYPED, profile_of

MPS = 100
"""Slurm counts MPS in hundredths of a GPU."""
CLOSED = {
    "DRAIN": "drained",
    "DRAINED": "drained",
    "DRAINING": "draining",
    "DOWN": "down",
    "FAIL": "failing",
    "FAILING": "failing",
    "ERROR": "in an error",
    "MAINT": "in maintenance",
    "MAINTENANCE": "in maintenance",
    "NOT_RESPONDING": "not responding",
    "NO_RESPOND": "not responding",
    "REBOOT": "about to be rebooted",
    "REBOOT_REQUESTED": "about to be rebooted",
    "REBOOT_ISSUED": "being rebooted",
    "POWERING_DOWN": "powering down",
    "INVAL": "not as it is configured",
    "INVALID_REG": "not as it is configured",
    "UNKNOWN": "not known to run",
    "FUTURE": "not there yet",
}
"""States in which Slurm starts nothing new on a node."""


def node_info(node: Node, name: str, memory: Mapping[str, int]) -> NodeInfo:
    """A node for the ledger, under `name`. `memory` has the MiB of a GPU by its type, where that is known."""
    return NodeInfo(
        name=name,
        backends=("slurm",),
        gpus=tuple(_gpus(node, memory)),
        cpus=node.cpus * WHOLE,
        memory=node.memory,
        site=True,
        closed=_closed(node),
    )


def _closed(node: Node) -> str:
    words = [words for state, words in CLOSED.items() if state in node.states]
    if not words:
        return ""
    return f"{words[0]}: {node.reason}" if node.reason else words[0]


def _gpus(node: Node, memory: Mapping[str, int]) -> Iterator[GPUInfo]:
    kinds = [kind for kind in node.gres if kind.name == "gpu"]
    total = sum(kind.count for kind in kinds)
    index = 0
    for kind in kinds:
        parts = _each(node, kind, "shard", total)
        mechanisms: tuple[Mechanism, ...] = ("mps",) if _each(node, kind, "mps", total) else ()
        model = kind.type or UNTYPED
        for _ in range(kind.count):
            size = _memory(model, memory)
            yield GPUInfo(uuid_of(node.name, index), index, model, size, mechanisms=mechanisms, parts=parts)
            index += 1


def _each(node: Node, kind: Gres, name: str, total: int) -> int:
    """How many shards, or MPS, each GPU of a kind has; a MIG instance has none."""
    if profile_of(kind.type):
        return 0
    typed = sum(other.count for other in node.gres if other.name == name and other.type == kind.type)
    if typed and kind.type:
        return typed // kind.count
    return sum(other.count for other in node.gres if other.name == name and not other.type) // max(1, total)


def _memory(model: str, memory: Mapping[str, int]) -> int:
    """MiB as the configuration says, else of a MIG instance as its name does; 0 where nobody does."""
    known = next((size for name, size in memory.items() if matches(model, (name,))), 0)
    if known or not (profile := profile_of(model)):
        return known
    return int(profile.partition(".")[2].partition("gb")[0]) * 10**9 // 2**20


def uuid_of(node: str, index: int) -> str:
    """The name of a GPU of which Slurm tells no UUID."""
    return f"SLURM-{hashlib.sha256(f'{node}/{index}'.encode()).hexdigest()[:16]}"


def used_by_others(node: Node, ours: set[int]) -> tuple[str, ...]:
    """The GPUs that others have whole; `ours` are the indices that jobs of ours have."""
    used = {index for kind in node.used if kind.name == "gpu" for index in kind.indices}
    return tuple(uuid_of(node.name, index) for index in sorted(used - ours))


def indices(job: Job) -> dict[str, set[int]]:
    """The indices of the whole GPUs that a job has, by node."""
    return {
        node: {index for kind in kinds if kind.name == "gpu" for index in kind.indices}
        for node, kinds in zip(job.nodes, job.gres, strict=False)
    }


def places(job: Job, nodes: Mapping[str, NodeInfo]) -> tuple[Place, ...]:
    """Where a job was put, by the site's nodes as the ledger has them; none while one is not known."""
    if not job.nodes or not all(node in nodes for node in job.nodes):
        return ()
    cpus = job.cpus * WHOLE // len(job.nodes)
    given = [*job.gres, *[()] * (len(job.nodes) - len(job.gres))]
    return tuple(
        Place(nodes[node].name, tuple(_slices(nodes[node], node, kinds)), cpus, job.memory)
        for node, kinds in zip(job.nodes, given, strict=False)
    )


def _slices(info: NodeInfo, node: str, kinds: tuple[Gres, ...]) -> Iterator[Slice]:
    gpus = {gpu.index: gpu for gpu in info.gpus}
    for kind in kinds:
        for index in kind.indices:
            gpu = gpus.get(index)
            if gpu is not None and (share := _share(gpu, kind)):
                yield Slice(uuid_of(node, index), share, gpu.memory * share // WHOLE)


def _share(gpu: GPUInfo, kind: Gres) -> int:
    if kind.name == "gpu":
        return WHOLE
    parts = {"shard": gpu.parts, "mps": MPS}.get(kind.name, 0)
    return min(WHOLE, kind.count * WHOLE // parts) if parts else 0
