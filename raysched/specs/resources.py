"""What a job asks for: the `resources` of a job file, and the keyword arguments of the Python decorator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, StrictBool, ValidationError
from typing_extensions import TypedDict

from raysched.errors import SpecError
from raysched.specs.fields import Contradiction, Fields, problems_of
from raysched.specs.problems import listing
from raysched.specs.units import WHOLE
from raysched.specs.values import (
    Cores,
    Count,
    Fraction,
    GPUCount,
    GPUTypes,
    MIGProfile,
    QueueName,
    Size,
    WholeNumber,
)

Sharing = Literal["exclusive", "fraction", "time_slice", "mig", "mps"]
Isolation = Literal["soft", "hard"]


class Resources(Fields):
    """GPUs, CPUs and memory that a job asks for."""

    gpus: GPUCount = Field(
        default=1, description="How many GPUs, shares or MIG instances; 0: none is visible."
    )
    gpu_fraction: Fraction | None = Field(
        default=None,
        description="The part of each GPU, more than 0 and at most 1; 1 is a whole GPU. "
        "By time-slice it is the part of its memory.",
        examples=[0.25, "1/4", "25%"],
    )
    gpu_memory: Size | None = Field(
        default=None,
        description="The memory of each GPU; alone, it sets the share.",
        examples=["10GB", "16GiB"],
    )
    use_mig: StrictBool | None = Field(
        default=None, description="Whether each is a MIG instance; null: as mig_profile says."
    )
    mig_profile: MIGProfile | None = Field(
        default=None, description="The MIG profile of each instance; sets use_mig.", examples=["1g.10gb"]
    )
    sharing: Sharing | None = Field(
        default=None,
        description="How a GPU is shared; null: as the other fields say, exclusive without any. "
        "By time_slice, tenants take turns on the whole compute.",
    )
    isolation: Isolation = Field(
        default="soft",
        description="hard: refuse where nothing holds the job to its share (MIG, MPS, HAMi, a kernel limit); "
        "soft: variables tell it.",
    )
    gpu_type: GPUTypes | None = Field(
        default=None,
        description="Any of these GPUs: whole words of the product name, whatever the case.",
        examples=["A100", ["A100", "H100"]],
    )
    nodes: Count | None = Field(
        default=None,
        description="Spread the GPUs evenly over this many nodes, and start the command once on each; "
        "null: as few as fit.",
    )
    cpus: Cores | None = Field(
        default=None,
        description="CPU cores on each node, 0 reserves none; null: none beside GPUs, one without.",
        examples=[4, 0.5],
    )
    memory: Size | None = Field(
        default=None, description="Host memory on each node; null reserves none.", examples=["16GB"]
    )

    @property
    def mig(self) -> bool:
        """Whether MIG instances are asked for."""
        return bool(self.use_mig) or self.mig_profile is not None

    @property
    def part(self) -> bool:
        """Whether less than whole GPUs are asked for, by fraction or by memory."""
        return self.gpu_memory is not None or self.gpu_fraction not in (None, WHOLE)

    @property
    def mode(self) -> Sharing:
        """How a GPU is shared: `sharing`, or what follows from the other fields."""
        if self.sharing is not None:
            return self.sharing
        if self.mig:
            return "mig"
        return "fraction" if self.part else "exclusive"

    def contradictions(self) -> Iterator[Contradiction]:
        """Fields that can't stand together."""
        if self.gpus == 0:
            yield from self._without_gpus()
        elif self.mig:
            yield from self._against_mig()
        else:
            yield from self._against_sharing()
        if self.nodes and self.gpus % self.nodes:
            yield Contradiction(
                ("nodes", "gpus"),
                f"must divide gpus, so that each node gives as many: {self.nodes} and {self.gpus} do not fit",
            )

    def _without_gpus(self) -> Iterator[Contradiction]:
        for name in ("gpu_fraction", "gpu_memory", "use_mig", "mig_profile", "sharing", "gpu_type"):
            if getattr(self, name):
                message = f"has no meaning with gpus: 0; remove {name}, or ask for a GPU"
                yield Contradiction((name, "gpus"), message)

    def _against_mig(self) -> Iterator[Contradiction]:
        if self.use_mig is False:
            yield Contradiction(
                ("use_mig", "mig_profile"), "is false, and mig_profile asks for MIG: remove one of them"
            )
        if self.gpu_fraction is not None:
            yield Contradiction(
                ("gpu_fraction", "mig_profile", "use_mig"),
                "can't be had of a MIG instance, whose size mig_profile says: remove gpu_fraction or MIG",
            )
        if self.gpu_memory is not None and self.mig_profile is not None:
            yield Contradiction(
                ("gpu_memory", "mig_profile"), "is what mig_profile says already: remove one of them"
            )
        if self.mig_profile is None and self.gpu_memory is None:
            yield Contradiction(
                ("use_mig", "mig_profile", "gpu_memory"),
                "needs mig_profile, such as 1g.10gb, or gpu_memory, the least that an instance must have",
            )
        if self.sharing not in (None, "mig"):
            yield Contradiction(
                ("sharing", "mig_profile", "use_mig"), f"can't be {self.sharing} with MIG: remove sharing"
            )

    def _against_sharing(self) -> Iterator[Contradiction]:
        if self.gpu_fraction == WHOLE and self.gpu_memory is not None:
            yield Contradiction(
                ("gpu_fraction", "gpu_memory"), "of 1 is a whole GPU with all its memory: remove one of them"
            )
        if self.sharing == "exclusive" and self.part:
            yield Contradiction(
                ("sharing", "gpu_fraction", "gpu_memory"),
                "can't be exclusive with gpu_fraction or gpu_memory: exclusive is the whole GPU",
            )
        if self.sharing in ("fraction", "mps") and self.gpu_fraction is None and self.gpu_memory is None:
            yield Contradiction(
                ("sharing", "gpu_fraction", "gpu_memory"),
                f"can't be {self.sharing} without gpu_fraction or gpu_memory, the part for each tenant",
            )
        if self.sharing == "mps" and self.gpus > (self.nodes or 1):
            yield Contradiction(
                ("gpus", "sharing"),
                f"can't be {self.gpus} with sharing: mps: a program reaches the MPS daemon of one GPU only; "
                "ask for one, or for as many nodes",
            )
        if self.sharing == "mig":
            yield Contradiction(("sharing", "mig_profile", "use_mig"), "needs mig_profile, such as 1g.10gb")


class LeaseSpec(Resources):
    """What a Python program asks for: resources, and where to wait for them."""

    queue: QueueName = Field(default="default", description="The queue that the lease is asked of.")
    priority: WholeNumber = Field(
        default=0, ge=-1000, le=1000, description="Order in the queue; higher goes first."
    )


class ResourceOptions(TypedDict, total=False):
    """The fields of `resources` as keyword arguments, with the meaning that they have in a file."""

    gpus: int
    gpu_fraction: float | str
    gpu_memory: str
    use_mig: bool
    mig_profile: str
    sharing: Sharing
    isolation: Isolation
    gpu_type: str | Sequence[str]
    nodes: int
    cpus: float
    memory: str


class LeaseOptions(ResourceOptions, total=False):
    """The keyword arguments of `raysched.remote`, `raysched.lease` and `raysched.placement_group`."""

    queue: str
    priority: int


def check_options(options: Mapping[str, Any]) -> LeaseSpec:
    """What keyword arguments ask for. Raises SpecError, one line an argument that is wrong."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return LeaseSpec.model_validate(given)
    except ValidationError as error:
        problems = problems_of(error)
        raise SpecError(listing(problems), problems) from None
