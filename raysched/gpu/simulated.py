"""A driver whose GPUs are made up. Nothing else is: no use of them is measured, so none is reported."""

from __future__ import annotations

import re
import uuid

from raysched.core.node import GPUInfo
from raysched.core.work import Partition
from raysched.errors import ConfigError
from raysched.gpu.driver import Discovery, GPUUse, PartitionRefused
from raysched.gpu.models import MODELS

_PART = re.compile(r"(?:(\d{1,9})x)?(\S+)", re.IGNORECASE)
_MOST = 128
"""GPUs that one node may be given: more than any machine has, few enough to list."""

_SPACE = uuid.UUID("6f9a5c0e-3a0b-5d5e-9a41-1c1a3f0f7c55")
"""The name space of simulated UUIDs: an arbitrary constant."""


class SimulatedDriver:
    """The GPUs that `text` names, such as `2xA100-80GB,1xA30`, on the node called `node`."""

    def __init__(self, text: str, node: str) -> None:
        self._gpus = tuple(
            GPUInfo(f"GPU-{uuid.uuid5(_SPACE, f'{node}/{index}')}", index, model, MODELS[model])
            for index, model in enumerate(parse_simulation(text))
        )

    def discover(self) -> Discovery:
        """The same GPUs each time."""
        return Discovery(driver_version=None, simulated=True, gpus=self._gpus)

    def sample(self) -> dict[str, GPUUse]:
        """Nothing is measured."""
        return {gpu.uuid: GPUUse(memory_mib=None) for gpu in self._gpus}

    def partition(self, change: Partition) -> None:
        """Not yet."""
        raise PartitionRefused("this driver can't cut GPUs yet")

    def close(self) -> None:
        """Nothing to let go of."""


def parse_simulation(text: str) -> tuple[str, ...]:
    """The model of each GPU in `2xA100-80GB,1xA30`. Raises ConfigError for anything else."""
    parts = [_part(part.strip(), text) for part in text.split(",")]
    total = sum(count for count, _ in parts)
    if total > _MOST:
        raise ConfigError(f"--simulate {text}: a node may have {_MOST} GPUs at most, not {total}")
    return tuple(model for count, model in parts for _ in range(count))


def _part(part: str, text: str) -> tuple[int, str]:
    """Count and model of `2xA100-80GB`; the count may be left out."""
    match = _PART.fullmatch(part)
    known = {model.lower(): model for model in MODELS}
    model = known.get(match[2].lower()) if match else None
    count = int(match[1] or 1) if match else 0
    if model is None or count == 0:
        raise ConfigError(
            f"--simulate {text}: {part!r} is no count and model, such as 2xA100-80GB; the models are "
            + ", ".join(MODELS)
        )
    return count, model
