"""Whatever NVML answers, it is said in words, and nobody loses what he has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from streams import errors

ROOT = Path(__file__).parents[2]
SAME_AS = {
    "nvmlInit": "nvmlInitWithFlags",
    "nvmlSystemGetCudaDriverVersion": "nvmlSystemGetCudaDriverVersion_v2",
    "nvmlDeviceGetMemoryInfo": "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetPciInfo": "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetCount": "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex": "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetGpuInstanceProfileInfo": "nvmlDeviceGetGpuInstanceProfileInfoV",
    "nvmlDeviceGetGpuInstancePossiblePlacements": "nvmlDeviceGetGpuInstancePossiblePlacements_v2",
    "nvmlGpuInstanceGetComputeInstanceProfileInfo": "nvmlGpuInstanceGetComputeInstanceProfileInfoV",
}
"""The functions of the library behind those of pynvml that have another name."""


@pytest.mark.timeout(900)  # some 500 lives of a driver, which take long on a busy machine
def test_no_error_code_of_any_call_is_a_traceback_or_a_lost_lease(fake_nvml: Path, tmp_path: Path) -> None:
    """Each call that the product makes fails with each code that it tells from others, and with one more:
    what is known stays known, with words for what is wrong, and all is well once the call works again. With
    every code of NVML's header: `make torture`."""
    done = errors(fake_nvml, tmp_path, "some")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["wrong"], "\n".join(found["wrong"][:10])
    assert found["codes"] >= 31
    missed = _calls_of_the_product() - set(found["calls"])
    assert not missed, "a call of the product was not tried"


def _calls_of_the_product() -> set[str]:
    """The functions of NVML that the sources name."""
    call = re.compile(r"pynvml\.(nvml(?!EventType)[A-Z][a-z]+[A-Z]\w+|nvmlInit|nvmlShutdown)\b")
    sources = (ROOT / "raysched" / "gpu").glob("*.py")
    names = {name for path in sources for name in call.findall(path.read_text())}
    return {SAME_AS.get(name, name) for name in names}
