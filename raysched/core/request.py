"""What a job asks for, after its spec was checked: whole numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WHOLE = 10_000
"""A whole GPU, or a whole CPU core, in ten-thousandths: Ray's own resolution."""

Sharing = Literal["exclusive", "fraction", "time_slice", "mig", "mps"]
Isolation = Literal["soft", "hard"]


@dataclass(frozen=True, slots=True)
class Request:
    """What one job (one element of an array) asks for.

    `share` is in ten-thousandths of each GPU and `memory` in MiB of each; with `memory` alone the GPU
    that it lands on sets the share. By time-slice a share only sets the memory. `mig_profile` is the profile
    as the user named it; MIG without it takes the smallest instance with enough `memory` (and `share`).
    `or_mig` and `or_mps`: rather than this way, such a MIG instance, or that share under MPS.
    `cpus` (ten-thousandths of a core) and `host_memory` (MiB) are for each node of the job. `backends` are
    the ones that may launch it, the preferred one first. `container`: only on nodes that run containers.
    `limitable`: raysched starts it itself and without a container, so that it can be put into a control group
    of the kernel. `node_selector` are labels that a node must have where the vm backend starts it.
    """

    gpus: int = 1
    share: int | None = None
    memory: int | None = None
    sharing: Sharing = "exclusive"
    isolation: Isolation = "soft"
    mig_profile: str | None = None
    gpu_types: tuple[str, ...] = ()
    nodes: int | None = None
    cpus: int = 0
    host_memory: int = 0
    backends: tuple[str, ...] = ("vm",)
    or_mig: bool = False
    container: bool = False
    or_mps: bool = False
    limitable: bool = False
    node_selector: tuple[tuple[str, str], ...] = ()


def share_of_memory(memory: int, total: int) -> int:
    """The share that `memory` MiB of a GPU of `total` MiB gets: rounded down, so that memory alone decides
    what fits, but never nothing."""
    return max(1, memory * WHOLE // total)


def memory_of_share(share: int, total: int) -> int:
    """The MiB that a share of a GPU of `total` MiB brings along, rounded down."""
    return share * total // WHOLE
