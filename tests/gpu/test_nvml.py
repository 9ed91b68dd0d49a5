"""The NVML driver through the real pynvml, on a fake library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Probe = Callable[..., dict[str, Any]]

DRIVER = "driver 570.86.10"
A100 = "gpu GPU-3f2a-0001 81920 1024 0 NVIDIA A100-SXM4-80GB"
H100 = "gpu GPU-9b1c-0002 81559 0 0 NVIDIA H100 80GB HBM3"
T4 = "gpu GPU-77aa-0003 15360 12 -1 Tesla T4"


def uuids(found: dict[str, Any]) -> list[tuple[int, str]]:
    return [(gpu["index"], gpu["uuid"]) for gpu in found["gpus"]]


def test_lists_gpus_with_model_memory_and_driver(probe: Probe) -> None:
    found = probe(DRIVER, A100, H100, T4)
    assert found["driver_version"] == "570.86.10"
    assert not found["simulated"]
    assert [(gpu["index"], gpu["model"], gpu["memory"]) for gpu in found["gpus"]] == [
        (0, "A100-SXM4-80GB", 81920),
        (1, "H100 80GB HBM3", 81559),
        (2, "Tesla T4", 15360),
    ]


def test_tells_who_uses_how_much(probe: Probe) -> None:
    found = probe(
        DRIVER,
        A100,
        H100,
        "process 0 100 2000 compute",
        "process 0 100 2000 graphics",
        "process 0 90 300 mps",
        "process 1 7 -1 compute",
    )
    assert found["uses"]["GPU-3f2a-0001"] == {
        "memory_mib": 1024,
        "processes": [use(90, 300), use(100, 2000)],
    }
    assert found["uses"]["GPU-9b1c-0002"]["processes"] == [use(7, None)]


def use(pid: int, memory: int | None, instance: str | None = None) -> dict[str, Any]:
    return {"pid": pid, "memory_mib": memory, "instance": instance}


def test_hidden_gpus_are_not_ours(probe: Probe) -> None:
    found = probe(DRIVER, A100, H100, T4, visible="2,GPU-3f2a")
    assert uuids(found) == [(0, "GPU-77aa-0003"), (1, "GPU-3f2a-0001")]
    assert found["uses"].keys() == {"GPU-77aa-0003", "GPU-3f2a-0001"}


def test_a_lost_gpu_does_not_hide_the_others(probe: Probe) -> None:
    found = probe(DRIVER, A100, H100, "lost 0")
    assert uuids(found) == [(1, "GPU-9b1c-0002")]
    assert "GPU 0 can't be read" in found["stderr"]


def test_a_driver_of_before_510_is_read_too(probe: Probe, old_nvml: Path) -> None:
    found = probe(DRIVER, A100, library=old_nvml)
    assert found["gpus"][0]["memory"] == 81920
    assert found["uses"]["GPU-3f2a-0001"] == {"memory_mib": 1024, "processes": []}


def test_without_a_driver_there_are_simply_no_gpus(probe: Probe) -> None:
    found = probe()
    assert (found["driver_version"], found["gpus"], found["uses"]) == (None, [], {})


def test_without_the_library_there_are_simply_no_gpus(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    found = probe(library=tmp_path)
    assert (found["driver_version"], found["gpus"]) == (None, [])


@pytest.mark.parametrize("code", [18, 4, 999])
def test_a_broken_driver_is_told_in_words(probe: Probe, code: int) -> None:
    error = probe(f"init {code}")["error"]
    assert "could not be started" in error
    assert "nvidia-smi" in error
