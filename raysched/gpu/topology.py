"""How the GPUs of a node reach each other: over NVLink, else along the PCIe bus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pynvml

from raysched.core.node import Link, Path
from raysched.gpu.answers import asked

LEVELS: dict[int, Path] = {
    pynvml.NVML_TOPOLOGY_INTERNAL: "pix",
    pynvml.NVML_TOPOLOGY_SINGLE: "pix",
    pynvml.NVML_TOPOLOGY_MULTIPLE: "pxb",
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: "phb",
    pynvml.NVML_TOPOLOGY_NODE: "node",
    pynvml.NVML_TOPOLOGY_SYSTEM: "sys",
}


class Topology:
    """The ways between GPUs, asked once for each pair: they are wired."""

    def __init__(self) -> None:
        self._paths: dict[tuple[str, str], Path | None] = {}

    def links(self, uuid: str, handle: Any, gpus: Sequence[tuple[str, Any]]) -> tuple[Link, ...]:
        """The ways from one GPU to the others, of which `gpus` has UUIDs and handles."""
        others = [(other, there) for other, there in gpus if other != uuid]
        return tuple(
            Link(other, path)
            for other, there in others
            if (path := self._path(uuid, handle, other, there)) is not None
        )

    def _path(self, one: str, handle: Any, other: str, there: Any) -> Path | None:
        pair = (min(one, other), max(one, other))
        if pair not in self._paths:
            self._paths[pair] = _ask(handle, there)
        return self._paths[pair]


def _ask(one: Any, other: Any) -> Path | None:
    if asked(pynvml.nvmlDeviceGetP2PStatus, one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) == 0:
        return "nvlink"
    level = asked(pynvml.nvmlDeviceGetTopologyCommonAncestor, one, other)
    return None if level is None else LEVELS.get(level)
