"""A fake NVML, compiled here, behind the real pynvml in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_nvml.build import compile_fake

PROBE = """
import dataclasses, json, os, sys
from raysched.core.mig import Cut
from raysched.core.work import Partition
from raysched.gpu.driver import PartitionRefused, open_driver

def cuts(pairs):
    return tuple(Cut(*pair) for pair in pairs)

def look():
    found = driver.discover()
    uses = {uuid: dataclasses.asdict(use) for uuid, use in driver.sample().items()}
    return {**dataclasses.asdict(found), "uses": uses}

def do(step):
    if step == "look":
        return look()
    if isinstance(step, str):
        path = os.environ["FAKE_NVML_STATE"]
        if step.startswith("not "):
            lines = [line for line in open(path) if line.strip() != step[4:]]
            open(path, "w").writelines(lines)
        else:
            with open(path, "a") as state:
                print(chr(10) + step, file=state)
        return look()
    gpu, mig, destroy, create = step
    try:
        driver.partition(Partition(gpu, mig, cuts(destroy), cuts(create)))
    except PartitionRefused as refused:
        cut = refused.cut and [refused.cut.profile, refused.cut.start]
        return {**look(), "refused": str(refused), "cut": cut}
    return look()

driver = open_driver(None, "node-a")
print(json.dumps([do(step) for step in json.loads(sys.argv[1])]))
driver.close()
"""

Probe = Callable[..., dict[str, Any]]
Script = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_fake(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the calls that came with driver 510."""
    return compile_fake(tmp_path_factory.mktemp("nvml"), "-DOLD_DRIVER")


@pytest.fixture
def script(fake_nvml: Path, tmp_path: Path) -> Script:
    """What a driver answers after each of some steps, on a machine with these lines of state (none: no
    state, no driver). A step is "look", a line to add to the state (or "not" and one to take out), or a
    partition: GPU, MIG mode, cuts to destroy, cuts to create. How GPUs are cut stays from one call to the
    next."""

    def run(
        lines: tuple[str, ...], *steps: Any, library: Path = fake_nvml, visible: str | None = None
    ) -> list[dict[str, Any]]:
        environ = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        environ["LD_LIBRARY_PATH"] = str(library)
        if lines:
            state = tmp_path / "state"
            state.write_text("\n".join(lines))
            environ["FAKE_NVML_STATE"] = str(state)
        if visible is not None:
            environ["CUDA_VISIBLE_DEVICES"] = visible
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROBE, json.dumps(steps)],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [{**answer, "stderr": done.stderr} for answer in json.loads(done.stdout)]

    return run


@pytest.fixture
def probe(script: Script) -> Probe:
    """What a driver answers on a machine with these lines of state."""

    def run(*lines: str, **options: Any) -> dict[str, Any]:
        return script(lines, "look", **options)[-1]

    return run


@pytest.fixture
def run_on_fake(fake_nvml: Path, tmp_path: Path) -> Callable[[str], None]:
    """Runs a program on the machine of the last `script` or `probe`."""

    def run(program: str) -> None:
        environ = {
            **os.environ,
            "LD_LIBRARY_PATH": str(fake_nvml),
            "FAKE_NVML_STATE": str(tmp_path / "state"),
        }
        subprocess.run([sys.executable, "-c", program], env=environ, check=True)

    return run
