"""Lines for the state file of the fake NVML (`nvml.c` says what they mean)."""

from __future__ import annotations

from raysched.gpu.geometries import geometry_of
from raysched.gpu.models import MODELS

DRIVER = "driver 570.86.10"
NUMBERS = {
    "A100-80GB": {19: 0, 14: 1, 9: 2, 5: 3, 0: 4, 20: 7, 15: 9},
    "A30": {14: 0, 5: 1, 0: 3, 21: 7, 6: 8},
    "H100-80GB": {19: 0, 14: 1, 9: 2, 5: 3, 0: 4, 20: 7, 15: 9},
}
"""NVML's numbers of the profiles (NVML_GPU_INSTANCE_PROFILE_...) by their ids."""

PRODUCTS = {
    "A100-80GB": "NVIDIA A100-SXM4-80GB",
    "A30": "NVIDIA A30",
    "H100-80GB": "NVIDIA H100 80GB HBM3",
}
PER_SLICE = {"A100-80GB": 14, "A30": 14, "H100-80GB": 16}
"""Multiprocessors of a compute slice."""


def gpu(index: int, uuid: str, model: str, mig: int = 0, used: int = 0) -> list[str]:
    """A GPU that can be cut."""
    return [f"gpu {uuid} {MODELS[model]} {used} {mig} {PRODUCTS[model]}", *profiles(index, model)]


def profiles(index: int, model: str) -> list[str]:
    """What it can be cut into, with the names that a new driver gives."""
    geometry = geometry_of(model, MODELS[model])
    assert geometry is not None
    lines: list[str] = []
    for p in geometry.profiles:
        starts = ",".join(map(str, p.starts))
        sm = p.slices * PER_SLICE[model]
        head = f"profile {index} {NUMBERS[model][p.id]} {p.id} {p.slices} {p.most} {sm}"
        lines.append(f"{head} {p.memory} {p.size} {p.name} {starts}")
    return lines
