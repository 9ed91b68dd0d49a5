"""The NVML driver through the real pynvml, on a fake library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Probe = Callable[..., dict[str, Any]]
Script = Callable[..., list[dict[str, Any]]]

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
    assert found["uses"]["GPU-3f2a-0001"]["memory_mib"] == 1024
    assert found["uses"]["GPU-3f2a-0001"]["processes"] == [use(90, 300), use(100, 2000)]
    assert found["uses"]["GPU-9b1c-0002"]["processes"] == [use(7, None)]


def use(pid: int, memory: int | None) -> dict[str, Any]:
    return {"pid": pid, "memory_mib": memory, "instance": None, "busy": None, "graphics": False}


def test_hidden_gpus_are_not_ours(probe: Probe) -> None:
    found = probe(DRIVER, A100, H100, T4, visible="2,GPU-3f2a")
    assert uuids(found) == [(0, "GPU-77aa-0003"), (1, "GPU-3f2a-0001")]
    assert found["uses"].keys() == {"GPU-77aa-0003", "GPU-3f2a-0001"}


def test_a_lost_gpu_does_not_hide_the_others(probe: Probe) -> None:
    found = probe(DRIVER, A100, H100, "lost 0")
    assert uuids(found) == [(1, "GPU-9b1c-0002")]
    assert "GPU 0 can't be read" in found["problem"]


def test_a_driver_of_before_510_is_read_too(probe: Probe, old_nvml: Path) -> None:
    found = probe(DRIVER, A100, library=old_nvml)
    assert found["gpus"][0]["memory"] == 81920
    assert found["uses"]["GPU-3f2a-0001"]["memory_mib"] == 1024
    assert found["uses"]["GPU-3f2a-0001"]["processes"] == []


def test_without_a_driver_there_are_simply_no_gpus(probe: Probe) -> None:
    found = probe()
    assert (found["driver_version"], found["gpus"], found["uses"]) == (None, [], {})


def test_without_the_library_there_are_simply_no_gpus(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    found = probe(library=tmp_path)
    assert (found["driver_version"], found["gpus"]) == (None, [])


@pytest.mark.parametrize("code", [18, 4, 999])
def test_a_broken_driver_is_told_in_words(probe: Probe, code: int) -> None:
    found = probe(f"init {code}")
    assert (found["driver_version"], found["gpus"]) == (None, [])
    assert "could not be started" in found["problem"]
    assert "nvidia-smi" in found["problem"]


def test_where_a_gpu_is_and_what_it_can_do(probe: Probe) -> None:
    found = probe(
        DRIVER,
        A100,
        H100,
        T4,
        "cuda 12080",
        "pci 0 00000000:07:00.0 8.0",
        "pci 1 00000000:0A:00.0 9.0",
        "link 0 1 30 1",
        "link 0 2 50 0",
    )
    a100, h100, t4 = found["gpus"]
    assert found["cuda"] == "12.8"
    assert (a100["pci"], a100["capability"]) == ("00000000:07:00.0", "8.0")
    assert (h100["pci"], h100["capability"]) == ("00000000:0A:00.0", "9.0")
    assert (t4["pci"], t4["capability"]) == ("", "")
    nvlink = {"gpu": h100["uuid"], "path": "nvlink"}
    assert a100["links"] == [nvlink, {"gpu": t4["uuid"], "path": "sys"}]
    assert h100["links"] == [{"gpu": a100["uuid"], "path": "nvlink"}]


def test_a_gpu_that_falls_off_the_bus_stays_known_and_is_out_of_use(script: Script) -> None:
    before, after = script((DRIVER, A100, H100), "look", "lost 0")
    assert uuids(before) == uuids(after)
    assert after["gpus"][0]["fault"] == "it does not answer any more"
    assert not after["gpus"][1]["fault"]
    assert after["uses"].keys() == {"GPU-9b1c-0002"}, "nothing is said of what can't be seen"


def test_a_driver_that_is_reloaded_is_found_again(script: Script) -> None:
    """While it is away its GPUs are out of use; nobody loses what he has."""
    before, away, back = script(
        (DRIVER, A100), "look", "fail nvmlDeviceGetCount_v2 1", "not fail nvmlDeviceGetCount_v2 1"
    )
    assert (before["problem"], away["driver_version"]) == ("", None)
    assert away["gpus"][0] == {**before["gpus"][0], "fault": "NVIDIA's driver does not answer"}
    assert "nvidia-smi" in away["problem"]
    assert (back["gpus"], back["driver_version"]) == (before["gpus"], before["driver_version"])
