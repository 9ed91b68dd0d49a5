"""How a demand is said to Kubernetes: each way of giving GPUs out has words of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from raysched.core.node import Way
from raysched.core.request import WHOLE
from raysched.core.site import Demand, profile_of
from raysched.core.words import number

GPU = "nvidia.com/gpu"
PRODUCT = "nvidia.com/gpu.product"
"""The node label with the name of its GPUs."""
VOLCANO = "volcano.sh/vgpu-number"
GPU_CLASS = "gpu.nvidia.com"
MIG_CLASS = "mig.nvidia.com"
"""DRA's classes of whole GPUs and of MIG instances."""
TYPES = "nvidia.com/use-gputype"
"""The annotation by which HAMi and Volcano are told which GPUs will do."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Devices that are claimed by DRA: `expressions` (CEL) have to be true of each."""

    device_class: str
    count: int
    expressions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PodAsk:
    """What a pod says to get its GPUs: limits of its container, annotations, the labels that its node must
    have, the scheduler that knows them (empty: the usual one), and what it claims."""

    limits: dict[str, str] = field(default_factory=dict[str, str])
    annotations: dict[str, str] = field(default_factory=dict[str, str])
    selector: dict[str, str] = field(default_factory=dict[str, str])
    scheduler: str = ""
    claim: Claim | None = None

    def words(self) -> str:
        """All of it, on one line."""
        said = [f"{name}: {value}" for name, value in self.limits.items()]
        said += [f"{name}: {json.dumps(value)}" for name, value in self.annotations.items()]
        if self.claim is not None:
            said.append(f"{self.claim.count} x {self.claim.device_class} by claim")
            said += self.claim.expressions
        said += [f"node {name}={value}" for name, value in self.selector.items()]
        return ", ".join(said) or "no GPU"


def pod_ask(demand: Demand) -> PodAsk:
    """How a pod asks for its part of a demand."""
    return _WAYS[demand.way](demand) if demand.kind else PodAsk()


def product_of(demand: Demand) -> str:
    """What nodes with such a GPU are labelled. Where each kind of instance has a resource of its own, the
    label names the whole GPU."""
    profile = profile_of(demand.type)
    if profile and demand.resource != GPU:
        return demand.type[: -len(f"-MIG-{profile}")]
    return demand.type


def _part(demand: Demand) -> bool:
    """Whether less than whole GPUs are asked for."""
    return demand.share < WHOLE or demand.gpu_memory > 0


def _selector(demand: Demand) -> dict[str, str]:
    return {PRODUCT: product_of(demand)} if demand.type else {}


def _plugin(demand: Demand) -> PodAsk:
    return PodAsk({demand.resource or GPU: str(demand.count)}, selector=_selector(demand))


def _kai(demand: Demand) -> PodAsk:
    """A pod without a limit: KAI Scheduler keeps GPUs that it shares by pods of its own."""
    if not _part(demand):
        plain = _plugin(demand)
        return PodAsk(plain.limits, selector=plain.selector, scheduler="kai-scheduler")
    asked = (
        {"gpu-memory": str(demand.gpu_memory)}
        if demand.gpu_memory
        else {"gpu-fraction": number(demand.share)}
    )
    several = {"gpu-fraction-num-devices": str(demand.count)} if demand.count > 1 else {}
    annotations = {**asked, **several, "gpu-fraction-container-name": "main"}
    return PodAsk({}, annotations, _selector(demand), "kai-scheduler")


def _hami(demand: Demand) -> PodAsk:
    mode = {"nvidia.com/vgpu-mode": "hami-core"}
    names = (GPU, "nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores")
    return PodAsk(_virtual(demand, *names), {**mode, **_types(demand)})


def _volcano(demand: Demand) -> PodAsk:
    names = (VOLCANO, *(f"volcano.sh/vgpu-{what}" for what in ("memory", "memory-percentage", "cores")))
    return PodAsk(_virtual(demand, *names), _types(demand), scheduler="volcano")


def _virtual(demand: Demand, count: str, memory: str, percentage: str, cores: str) -> dict[str, str]:
    """Both count cores in hundredths. All of them: nobody else gets a part of this GPU."""
    hundredths = str(-(-demand.share * 100 // WHOLE))
    size = {memory: str(demand.gpu_memory)} if demand.gpu_memory else {percentage: hundredths}
    return {count: str(demand.count), **size, cores: hundredths}


def _types(demand: Demand) -> dict[str, str]:
    return {TYPES: demand.type} if demand.type else {}


def _dra(demand: Demand) -> PodAsk:
    device = f"device.attributes['{GPU_CLASS}']"
    expressions: list[str] = []
    if profile := profile_of(demand.type):
        expressions.append(f"{device}.profile == {json.dumps(profile)}")
    if demand.type:
        expressions.append(f"{device}.productName == {json.dumps(product_of(demand))}")
    return PodAsk(claim=Claim(demand.resource, demand.count, tuple(expressions)))


_WAYS: dict[Way, Callable[[Demand], PodAsk]] = {
    "": _plugin,
    "kai": _kai,
    "hami": _hami,
    "volcano": _volcano,
    "dra": _dra,
}
